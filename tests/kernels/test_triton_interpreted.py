"""Runs the tests of the Triton kernels in Triton's interpreter, in a process of its own.

The interpreter must be chosen before Triton is imported, and nothing compiles beside it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_operations import INTERPRETED

pytest.importorskip("triton")

FILES = ("test_conformance.py", "test_attention.py", "test_norms_and_gates.py")


@pytest.mark.skipif(INTERPRETED, reason="starts the interpreter itself")
@pytest.mark.parametrize(
    "which", ["not slow and not gpu", pytest.param("slow", marks=pytest.mark.slow)]
)
def test_triton_kernels_in_the_interpreter(which):
    files = [str(Path(__file__).parent / name) for name in FILES]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton",
               "-m", which, *files]  # fmt: skip
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-5000:] + finished.stderr[-2000:]
    assert "skipped" not in finished.stdout.splitlines()[-1], "only Triton's are asked for"
