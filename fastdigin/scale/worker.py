"""An actor of Ray that holds a live engine: rows that name inputs come in, small rows go out.

Pictures and records never travel through Ray. The actor writes them into the results folder itself,
by id, and what the folder already holds as done is not done again: Ray repeats a block whose actor
has died, and the repetition goes on where the actor stopped.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import ray
import torch

from fastdigin.engine.engine import Engine
from fastdigin.results import ResultStore
from fastdigin.results.keys import keys_of
from fastdigin.results.store import IMAGE_KEYS
from fastdigin.scale.beats import EVERY
from fastdigin.scale.tail import Finished
from fastdigin.tasks.running import run_stream
from fastdigin.tasks.task import Request, Task

log = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, Any]]

Load = Callable[[], Callable[[Rows], tuple[Task, Sequence[Request]]]]
"""Called once in each actor. What it returns makes of some rows a task and those of its requests
that the rows mean, in their order."""


@dataclass(frozen=True)
class Told:
    """What all actors of a run are told.

    out: the results folder. threads: of an actor on the CPU. expected: about how many jobs each
    will do. folder: the one to work in, for relative paths. beats: the actor of Ray that hears
    their progress.
    """

    out: str
    threads: int
    expected: int
    folder: str
    beats: Any


AHEAD = 4
"""How many blocks an actor has at a time: enough for its slots while one block's slowest job is
done."""

DEATHS = 3
"""Ray begins a block again whose actor died, without end; one that killed so many is given up."""


@dataclass(eq=False)
class _Block:
    """Rows that Ray has handed over. made: a row for each of its jobs, then None."""

    rows: list[dict[str, Any]]
    made: SimpleQueue[dict[str, list] | None] = field(default_factory=SimpleQueue)
    task: Task | None = None
    left: dict[str, Request] = field(default_factory=dict)  # jobs that have no row yet
    suspect: bool = False  # whether a worker has died that had begun it

    def finish(self, id: str, row: dict[str, list]) -> None:
        self.made.put(row)
        del self.left[id]
        if not self.left:
            self.made.put(None)


class Worker:
    """Makes records of the rows of blocks; yields one row per job, also where it failed.

    Several blocks are here at once, each in a thread of Ray's (:data:`AHEAD`), so that the engine's
    slots are filled from the next one while the last jobs of another are done. One thread of the
    worker's own does all that touches the networks, their loading too: with a second thread that
    computes, OpenMP's would sleep between any two operations (1.7 times the time on two cores). A
    block that was under way when a worker died is then done by itself, so that the one that kills
    shows.

    Args:
        load: makes the task, and with it the engine, in this process.
        told: what all actors of the run have in common.
        full: whether rows hold all keys of the task's records, whatever became of their jobs, or
            only what a run needs to count.
    """

    def __init__(self, load: Load, told: Told, full: bool = False):
        os.chdir(told.folder)
        self._told, self._full = told, full
        self._keys: Sequence[str] = ("id", "status", "error")
        self._finished = Finished(told.out)
        self._stored: tuple[Task, ResultStore] | None = None
        self._progress = _Progress(told.beats, ray.get_runtime_context().get_actor_id())
        self._inbox: SimpleQueue[_Block] = SimpleQueue()
        self._waiting: _Block | None = None  # until the slots are empty
        self._open: dict[str, _Block] = {}  # of each job that is under way
        loaded: Future[None] = Future()
        threading.Thread(target=self._work, args=(load, loaded), daemon=True).start()
        loaded.result()

    def __call__(self, block: Mapping[str, np.ndarray]) -> Iterator[dict[str, list]]:
        names = list(block)
        rows = [dict(zip(names, row, strict=True)) for row in zip(*block.values(), strict=True)]
        handed = _Block(rows)
        self._inbox.put(handed)
        while (row := handed.made.get()) is not None:
            yield row

    def _work(self, load: Load, loaded: Future[None]) -> None:
        torch.set_num_threads(self._told.threads)  # it is a setting of each thread
        try:
            self._chosen = load()
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        try:
            while True:
                block, self._waiting = self._waiting or self._inbox.get(), None
                if self._begin(block):
                    self._do(block)
        except BaseException:
            log.exception("a worker's thread has ended")
            os._exit(1)  # whoever waits for a row would wait for ever: Ray begins anew

    def _do(self, block: _Block) -> None:
        try:
            self._run(block)
        except Exception as error:  # the run goes on: rows say what happened
            for lost in dict.fromkeys(self._open.values()):
                self._fail(lost, error)
        self._open.clear()
        self._progress.over()

    def _run(self, first: _Block) -> None:
        """Does a block, and those that come meanwhile."""
        told, engine = self._told, first.task.engine
        for task, record in run_stream(
            engine, self._stream(first), told.expected, self._progress.advance
        ):
            line = record.save(self._store_of(task))
            self._progress.finished()
            self._open.pop(record.id).finish(record.id, self._row(line))

    def _stream(self, block: _Block | None) -> Iterator[tuple[Task, Sequence[Request]]]:
        """What is to be done of a block, and of those that may share its slots."""
        engine = block.task.engine
        while block is not None:
            self._open |= dict.fromkeys(block.left, block)
            yield block.task, list(block.left.values())
            block = None if block.suspect else self._companion(engine)

    def _companion(self, engine: Engine) -> _Block | None:
        """The next block that has come and may share the slots, if there is one."""
        while True:
            try:
                block = self._inbox.get_nowait()
            except Empty:
                return None
            if not self._begin(block):
                continue
            if block.suspect or block.task.engine is not engine or self._open.keys() & block.left:
                self._waiting = block
                return None
            return block

    def _begin(self, block: _Block) -> bool:
        """Learns what a block asks for and what of it is done; whether anything is left."""
        try:
            if block.task is None:
                self._ask(block)
            self._finished.read()
            for id in list(block.left):
                if (line := self._finished.line(block.task.name, id)) is not None:
                    block.finish(id, self._row(line))
        except Exception as error:
            self._fail(block, error)
        return bool(block.left)

    def _ask(self, block: _Block) -> None:
        times = ray.get(self._told.beats.begin.remote(repr(block.rows)))
        if times > DEATHS:
            raise RuntimeError(f"{DEATHS} workers died while they did a block with this job")
        task, requests = self._chosen(block.rows)
        block.left = {request.id: request for request in requests}
        self._store_of(task)
        block.task, block.suspect = task, times > 1
        if not requests:
            block.made.put(None)

    def _fail(self, block: _Block, error: Exception) -> None:
        """A row says what happened to those that have no record."""
        for id in block.left or [str(row.get("id", "")) for row in block.rows]:
            said = {"id": id, "status": "error", "error": f"{type(error).__name__}: {error}"}
            block.made.put(self._row(said))
        block.left = {}
        block.made.put(None)

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
