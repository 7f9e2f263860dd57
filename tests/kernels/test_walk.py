"""How many calls lie between an attention layer and the kernel (kernels/README.md)."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fastdigin
import fastdigin_kernels
from fastdigin.models.attention import (
    AttentionControl,
    AttentionProcessor,
    InjectedAttention,
    InjectedSelfAttention,
    SourceAttention,
)
from fastdigin_kernels.attention import sdpa
from fastdigin_kernels.common import choice, native

OURS = tuple(str(Path(path)) for package in (fastdigin, fastdigin_kernels)
             for path in package.__path__)  # fmt: skip
MOST = 6

QUERIES, MAP = torch.randn(2, 4, 16, 16), torch.rand(2, 4, 16, 16)
WEIGHT = torch.tensor([0.3, 1.0])
CONTROLS = {
    "nothing injected": None,
    "queries and keys": AttentionControl(
        injected=InjectedAttention(
            {"attn2": SourceAttention(QUERIES, QUERIES)}, torch.eye(16).expand(2, 16, 16), WEIGHT
        )
    ),
    "a map": AttentionControl(
        injected=InjectedAttention(
            {"attn2": SourceAttention(MAP, None)}, torch.eye(16).expand(2, 16, 16), WEIGHT
        )
    ),
    "self-attention": AttentionControl(
        injected_self=InjectedSelfAttention(
            {"attn1": SourceAttention(QUERIES, QUERIES)}, {"attn1": WEIGHT}
        )
    ),
}


def frames_to(call, kernel) -> list[int]:
    """How many frames of ours lie above each call of ``kernel`` while ``call`` runs."""
    counts = []

    def profile(frame, event, _):
        if event == "call" and frame.f_code is kernel.__code__:
            counts.append(0)
            while frame := frame.f_back:
                counts[-1] += frame.f_code.co_filename.startswith(OURS)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return counts


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
@pytest.mark.parametrize("impl", ["cpp", "sdpa", "auto"])
def test_an_attention_call_is_short(impl, control, monkeypatch):
    if impl == "cpp" and native.library_path() is None:
        pytest.skip("installed without the CPU library")
    # Stand-ins, because a profile sees neither ctypes' functions nor whose code PyTorch's are.
    if impl == "cpp":
        from fastdigin_kernels.attention import cpp

        real = cpp._library.fastdigin_attention_forward

        def kernel(*args):
            return real(*args)

        library = SimpleNamespace(fastdigin_attention_forward=kernel)
        monkeypatch.setattr(cpp, "_library", library)
    else:
        nobody = dataclasses.replace(choice._operations["attention"], rivals={})
        monkeypatch.setitem(choice._operations, "attention", nobody)
        monkeypatch.setattr("fastdigin_kernels.common.choice._chosen", {})
        real_sdpa = sdpa.scaled_dot_product_attention

        def kernel(*args):
            return real_sdpa(*args)

        monkeypatch.setattr(sdpa, "scaled_dot_product_attention", kernel)
    linear = nn.Linear(64, 64)
    layer = SimpleNamespace(heads=4, to_q=linear, to_k=linear, to_v=linear, to_out=[linear])
    name = "attn1" if control is not None and control.injected_self is not None else "attn2"
    processor, x = AttentionProcessor(name, impl), torch.randn(4, 16, 64)
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient):
            counts = frames_to(lambda: processor(layer, x, control=control), kernel)
        assert counts and max(counts) <= MOST, counts
        assert min(counts) >= 2, "the processor and attention() at least: is something counted?"
