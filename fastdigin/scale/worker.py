"""An actor of Ray that holds a live engine: rows that name inputs come in, small rows go out.

Pictures and records never travel through Ray. The actor writes them into the results folder itself,
by id, and what the folder already holds as done is not done again: Ray repeats a block whose actor
has died, and the repetition goes on where the actor stopped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from fastdigin.results import ResultStore
from fastdigin.results.keys import keys_of
from fastdigin.results.store import IMAGE_KEYS
from fastdigin.scale.beats import EVERY
from fastdigin.scale.tail import Finished
from fastdigin.tasks.task import Request, Task

Rows = Sequence[Mapping[str, Any]]

Load = Callable[[], Callable[[Rows], tuple[Task, Sequence[Request]]]]
"""Called once in each actor. What it returns makes of some rows a task and those of its requests
that the rows mean, in their order."""


@dataclass(frozen=True)
class Told:
    """What all actors of a run are told.

    out: the results folder. threads: of an actor on the CPU. folder: the one to work in, for
    relative paths. beats: the actor of Ray that hears their progress.
    """

    out: str
    threads: int
    folder: str
    beats: Any


DEATHS = 3
"""Ray begins a block again whose actor died, without end; one that killed so many is given up."""


class Worker:
    """Makes records of the rows of a block; yields one row per job, also where it failed.

    Args:
        load: makes the task, and with it the engine, in this process.
        told: what all actors of the run have in common.
        full: whether rows hold all keys of the task's records, whatever became of their jobs, or
            only what a run needs to count.
    """

    def __init__(self, load: Load, told: Told, full: bool = False):
        os.chdir(told.folder)
        torch.set_num_threads(told.threads)
        self._told, self._full = told, full
        self._keys: Sequence[str] = ("id", "status", "error")
        self._chosen = load()
        self._finished = Finished(told.out)
        self._stored: tuple[Task, ResultStore] | None = None
        self._name = ray.get_runtime_context().get_actor_id()

    def __call__(self, block: Mapping[str, np.ndarray]) -> Iterator[dict[str, list]]:
        names = list(block)
        rows = [dict(zip(names, row, strict=True)) for row in zip(*block.values(), strict=True)]
        progress = _Progress(self._told.beats, self._name)
        left: dict[str, None] = {}
        try:
            if ray.get(self._told.beats.begin.remote(repr(rows))) > DEATHS:
                raise RuntimeError(f"{DEATHS} workers died while they did a block with this job")
            task, requests = self._chosen(rows)
            left = dict.fromkeys(request.id for request in requests)
            store = self._store_of(task)
            self._finished.read()
            todo = []
            for request in requests:
                line = self._finished.line(task.name, request.id)
                if line is None:
                    todo.append(request)
                else:
                    del left[request.id]
                    yield self._row(line)
            for record in task.records(todo, on_progress=progress.advance):
                line = record.save(store)
                left.pop(record.id, None)
                progress.finished()
                yield self._row(line)
        except Exception as error:
            # The run goes on: a row says what happened to those that have no record.
            for id in left or [str(row.get("id", "")) for row in rows]:
                yield self._row(
                    {"id": id, "status": "error", "error": f"{type(error).__name__}: {error}"}
                )
        finally:
            progress.over()

    def _store_of(self, task: Task) -> ResultStore:
        """Opened once for a task: it checks the folder and its settings."""
        if self._stored is None or self._stored[0] is not task:
            self._stored = task, ResultStore(self._told.out, task.name, task.run_settings)
            if self._full:
                own = [key.name for key in keys_of(task.record_type).values()]
                self._keys = ["schema", "task", *own, *IMAGE_KEYS]
        return self._stored[1]

    def _row(self, line: Mapping[str, Any]) -> dict[str, list]:
        return {key: [_cell(line.get(key))] for key in self._keys}


def _cell(value: Any) -> Any:
    """A value of a record as one of a table: what is nested becomes JSON."""
    return json.dumps(value) if isinstance(value, (dict, list)) else value


class _Progress:
    """Tells of the work that is under way: a heartbeat, and the shares of unfinished images."""

    def __init__(self, beats: Any, name: str):
        self._beats, self._name = beats, name
        self._share, self._last = 0.0, 0.0

    def advance(self, share: float) -> None:
        self._share += share
        if time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            self._beats.beat.remote(self._name, max(0.0, self._share))

    def finished(self) -> None:
        """A whole image of the share has a record by now."""
        self._share -= 1

    def over(self) -> None:
        self._beats.beat.remote(self._name, 0.0)
