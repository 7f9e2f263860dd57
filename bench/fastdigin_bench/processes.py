"""Two processes of one thread each: what a user of two cores would start.

A process is the bench itself, called with --one-process; it prints the seconds that its images took
from inside, because the time to start Python, to load a model and to compile is nobody's method.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import ArgumentTypeError, Namespace
from dataclasses import dataclass

ENGINE, PLAIN = "engine", "plain"
COUNT = 2


@dataclass(frozen=True)
class Share:
    """Every COUNT-th of items[start:stop], from ``first`` on. side: ENGINE or PLAIN."""

    side: str
    start: int
    stop: int
    first: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """From what ``str`` gives."""
        side, *numbers = text.split(":")
        if side not in (ENGINE, PLAIN) or len(numbers) != 3:
            raise ArgumentTypeError(f"is not a share: {text!r}")
        return cls(side, *map(int, numbers))

    def __str__(self) -> str:
        return f"{self.side}:{self.start}:{self.stop}:{self.first}"

    def of(self, items: list) -> list:
        return items[self.start : self.stop][self.first :: COUNT]


def seconds_an_image(side: str, start: int, stop: int, options: Namespace) -> float:
    """Seconds until the slower of two processes is through with its share, per image of both."""
    command = [sys.executable, "-m", "fastdigin.cli", "bench", "throughput"]
    for name in ("jobs", "iterations", "slots", "memory", "compile"):
        if (value := getattr(options, name)) is not None:
            command += [f"--{name}", str(value)]
    shares = [Share(side, start, stop, first) for first in range(COUNT)]
    running = [
        subprocess.Popen(
            [*command, "--one-process", str(share)], stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
        )
        for share in shares
    ]  # fmt: skip
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"a process of the {side} failed; its message is above")
    return max(json.loads(text.splitlines()[-1])["seconds"] for text in outputs) / (stop - start)
