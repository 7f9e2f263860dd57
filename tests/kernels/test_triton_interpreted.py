"""Runs the tests of the Triton kernels in Triton's interpreter, in a process of its own.

The interpreter must be chosen before Triton is imported, and nothing compiles beside it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from triton_device import INTERPRETED

pytest.importorskip("triton")

FILES = sorted(
    str(path)
    for path in Path(__file__).parent.glob("test_*_triton.py")
    if "on_device" in path.read_text()
)


def run_interpreted(*arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, *FILES]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-5000:] + finished.stderr[-2000:]


@pytest.mark.skipif(INTERPRETED, reason="starts the interpreter itself")
def test_triton_kernels_in_the_interpreter():
    assert FILES
    run_interpreted()


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="starts the interpreter itself")
def test_triton_kernels_over_many_shapes_in_the_interpreter():
    run_interpreted("-m", "slow")
