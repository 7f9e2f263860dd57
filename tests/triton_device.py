"""Where the tests of Triton kernels run: on a GPU (``pytest -m gpu``), or in Triton's interpreter.

The interpreter must be chosen before Triton is imported, and nothing compiles in its process: so
tests/kernels/test_triton_interpreted.py runs these tests in a process of their own. To run one
file by hand: TRITON_INTERPRET=1 pytest tests/kernels/test_attention_triton.py
"""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16]
if not INTERPRETED:  # the interpreter multiplies bfloat16 wrongly
    DTYPES.append(torch.bfloat16)

on_device = [] if INTERPRETED else [pytest.mark.gpu]
"""For a test file's ``pytestmark``."""


@pytest.fixture
def poisoned():
    """Every uninitialised tensor is NaN: what a kernel leaves out shows."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = filled


def excess(actual, torchs, truth) -> float:
    """Error (RMS) over the allowed one: twice that of PyTorch's own operation. At most 1 is right.

    A quarter of an ulp of the largest value is always allowed: where PyTorch is exact by luck. So
    are eight roundings in fp32 of numbers near 1, which the inputs are: where the terms of a sum
    cancel (the gradient of the one key there is), both errors are nothing but such roundings.
    """
    truth = truth.double()
    error, allowed = ((x.double() - truth).square().mean().sqrt() for x in (actual, torchs))
    ulp = torch.finfo(actual.dtype).eps * truth.abs().max()
    return float(error / (2 * allowed + ulp / 4 + 8 * torch.finfo(torch.float32).eps))
