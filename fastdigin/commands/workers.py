"""One command in several processes, each with a shard of the jobs and its share of the machine.

On CPUs the networks of one process leave cores idle between their many small operations; a process
per core does not (bench/NOTES.md). On GPUs it is how one command uses several.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from fastdigin.commands.history import STARTED_BY
from fastdigin.commands.run import conclude
from fastdigin.engine.memory import parse_memory
from fastdigin.errors import UserError
from fastdigin.hardware import check_workers
from fastdigin.results.store import read_runs


def run_workers(arguments: Sequence[str], options: Namespace) -> int:
    """Runs the command line in ``options.workers`` processes; the exit code of the worst.

    Their threads and their memory are equal shares of what this process would take, or a GPU each
    where there are enough. The first shows its progress, which stands for all; what the others say
    on stderr follows at the end, but for a usage error that all of them make. What a worker has
    finished stays where another dies.
    """
    if STARTED_BY in os.environ:  # this is a worker: whatever it is told, it starts no others
        raise UserError("a worker was told to start workers: report this command line as a bug")
    count = options.workers
    check_workers(count, max(os.cpu_count() or 1, torch.cuda.device_count()))
    memory = []
    if hasattr(options, "memory"):
        memory = ["--memory", share_of_memory(options.memory, sharing(count))]
    with tempfile.TemporaryDirectory() as folder:
        workers = []
        for number in range(1, count + 1):
            shard = options.shard.split(number, count)
            own = ["--workers", "1", "--shard", str(shard), "--json", *memory]
            messages = None if number == 1 else Path(folder) / str(number)
            workers.append(
                _Worker(
                    _with_own(arguments, own),
                    _environment(number, count) | {STARTED_BY: json.dumps(arguments)},
                    messages,
                    options.json,
                )
            )
        with _ended_together(workers):
            codes = [worker.wait() for worker in workers]
        for worker in workers[1:]:
            if codes != [2] * count:
                print(worker.messages.read_text(errors="replace"), end="", file=sys.stderr)
    for number, code in enumerate(codes, start=1):
        if code not in (0, 1, 2):
            print(
                f"worker {number} of {count} ended with code {code}; what it finished is kept, and "
                "the same command does the rest",
                file=sys.stderr,
            )
    if 2 not in codes:
        conclude(list(read_runs(options.out)), options.out, as_json=options.json)
    return max(code if code in (0, 1, 2) else 1 for code in codes)


def _with_own(arguments: Sequence[str], own: Sequence[str]) -> list[str]:
    """The command line with a worker's own options last, but before "--", which ends options."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [*arguments[:end], *own, *arguments[end:]]


@contextlib.contextmanager
def _ended_together(workers: Sequence[_Worker]) -> Iterator[None]:
    """Whoever interrupts or terminates this process ends the workers."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    except BaseException:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


class _Worker:
    """A process. messages: the file for its stderr, None for this process's own.

    relay: prints on stdout what it prints there.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        messages: Path | None,
        relay: bool,
    ):
        self.messages = messages
        with contextlib.ExitStack() as files:
            stderr = messages and files.enter_context(messages.open("w"))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fastdigin.cli", *arguments],
                env=environment, stdout=subprocess.PIPE, stderr=stderr, errors="replace",
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read, args=(relay,), daemon=True)
        self._reader.start()

    def terminate(self) -> None:
        """Its finished jobs are on the disk. Not by SIGINT, which a background job may ignore."""
        self._process.terminate()

    def wait(self) -> int:
        """Until it has ended; its exit code."""
        self._reader.join()
        return self._process.wait()

    def _read(self, relay: bool) -> None:
        for line in self._process.stdout:
            if relay:
                print(line, end="", flush=True)


def _environment(number: int, count: int) -> dict[str, str]:
    threads = max(1, torch.get_num_threads() // count)
    # A file of the user that is called as a module of Python must not stand in for it.
    safe = {"PYTHONSAFEPATH": "1"}
    changes = {"OMP_NUM_THREADS": str(threads), **safe}
    if number > 1:
        changes["TQDM_DISABLE"] = "1"
    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(gpu) for gpu in range(gpus)]
        changes["CUDA_VISIBLE_DEVICES"] = names[(number - 1) % len(names)]
    return os.environ | changes


def sharing(count: int) -> int:
    """How many of this machine's processes share a device, at most."""
    return math.ceil(count / (torch.cuda.device_count() or 1))


def share_of_memory(memory: str, processes: int) -> str:
    """--memory for each of the processes that share a device; as it is for one alone."""
    if processes == 1:
        return memory
    device = torch.device("cuda", 0) if torch.cuda.device_count() else torch.device("cpu")
    return str(parse_memory(memory, device) // processes)
