"""Work in fresh processes: what they take and how long is not blurred by what ran here before."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from typing import TypeVar
from unittest.mock import patch

T = TypeVar("T")


def in_processes(
    function: Callable[..., T], arguments: Sequence[tuple], **environment: str
) -> list[T]:
    """``function(*each)`` of all arguments at the same time, each in a process of its own.

    environment: variables that the processes start with, beside those of this one.
    """
    with patch.dict(os.environ, environment), ExitStack() as stack:
        running = []
        for each in arguments:
            pool = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
            running.append(pool.submit(function, *each))
        return [process.result() for process in running]
