"""Runs jobs on Ray Data: one actor per GPU or share of the cores, fed with ids.

The driver holds ids and nothing else. It follows the run by the records that reach the folder and
by what the actors say of their progress, repeats what an actor's death has lost, and gives up
where nobody has been heard for long.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from tqdm import tqdm

from fastdigin.errors import UserError
from fastdigin.hardware import check_workers
from fastdigin.models.missing import first_sentence
from fastdigin.scale.beats import EVERY, Beats
from fastdigin.scale.tail import Tail
from fastdigin.scale.worker import AHEAD, Load, Told, Worker

PARTS = 16
"""Into how many blocks an actor's work is cut, at least where that leaves it whole batches: at the
end some actors wait for others, half a block on the average."""

LARGEST = 32
"""The most jobs of a block, in multiples of the slots: what an actor's death costs is small."""

MANY = 1000
"""How many jobs an actor is expected to do where nobody has counted them."""

PATIENCE = 1800.0
"""Seconds without a word from any actor after which a run is given up."""

START = 600
"""Seconds that all actors have to load their models."""


@dataclass(frozen=True)
class Pool:
    """The actors of a run.

    size: how many. cpus, gpus: of each. sharing: how many of them share the memory of a GPU, or of
    a machine without, at most.
    """

    size: int
    cpus: float
    gpus: float
    sharing: int

    @classmethod
    def of_cluster(cls, size: int | None) -> Pool:
        """One actor per GPU, or per core where there is none; ``size`` of them where given."""
        return cls.of_machines([n["Resources"] for n in ray.nodes() if n["Alive"]], size)

    @classmethod
    def of_machines(cls, machines: Sequence[Mapping[str, float]], size: int | None) -> Pool:
        """The same, by what each machine has."""
        gpus, cpus = ([have.get(kind, 0.0) for have in machines] for kind in ("GPU", "CPU"))
        check_workers(size or 1, max(1, int(sum(gpus)), int(sum(cpus))))
        size = size or max(1, int(sum(gpus) or sum(cpus)))
        sharing = math.ceil(size / (sum(gpus) or len(machines)))
        return cls(size, _share(cpus, size), min(1, _share(gpus, size)), sharing)

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))

    def apply(self, dataset: Dataset, load: Load, told: Told, *, full: bool) -> Dataset:
        """A row per job of a dataset whose blocks name inputs."""
        return dataset.map_batches(
            Worker,
            batch_size=None,
            compute=ActorPoolStrategy(
                size=self.size,
                max_tasks_in_flight_per_actor=AHEAD,
                max_concurrent_calls_per_actor=AHEAD,
                enable_true_multi_threading=True,
            ),
            fn_constructor_args=(load, told, full),
            num_cpus=self.cpus,
            num_gpus=self.gpus or None,
        )


def _share(machines: Sequence[float], size: int) -> float:
    """The most that each of ``size`` actors can have of what machines have: whole units or parts.

    An actor is on one machine, and all must find their share; Ray counts in steps of 1e-4.
    """
    total = sum(machines)
    if size > total:
        return math.floor(1e4 / math.ceil(size / total)) / 1e4 if total else 0.0
    share = int(total // size)
    while share > 1 and sum(units // share for units in machines) < size:
        share -= 1
    return share


def connect(address: str | None) -> None:
    """Joins the Ray cluster at an address; None is Ray's own choice, in the end one of its own.

    That is RAY_ADDRESS, or what `ray start` has started here, or else a new one.
    """
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the run says it itself
    if ray.is_initialized():
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR",
                 include_dashboard=False if address is None else None)  # fmt: skip
    except Exception as error:  # a bare one where Ray's own processes do not start in time
        said = first_sentence(error)
        address = address or os.environ.get("RAY_ADDRESS")
        if not address:
            raise UserError(
                f"--ray: Ray does not start on this machine ({said}); try again when it has less "
                "to do, or leave --ray out"
            ) from None
        raise UserError(
            f"--ray {address}: no Ray cluster answers there ({said}); start one with `ray start "
            "--head`, set RAY_AUTH_TOKEN where it asks for a token, or give --ray without an "
            "address for one of this machine"
        ) from None


def told(out: Path, pool: Pool, jobs: int | None = None) -> Told:
    """What the actors of a run are told. jobs: how many there are, where that is known."""
    expected = MANY if jobs is None else math.ceil(jobs / pool.size)
    return Told(str(out.absolute()), pool.threads, expected, os.getcwd(), Beats.remote())


@dataclass
class Run:
    """One task's jobs on a pool.

    ids: of the jobs to be done. load: see :data:`fastdigin.scale.worker.Load`; its rows have an
    "id". on_record: gets every line that is added to the results folder. patience: see PATIENCE.
    """

    task: str
    ids: Sequence[str]
    out: Path
    load: Load
    pool: Pool
    slots: int
    on_record: Callable[[dict], None] = lambda line: None
    patience: float = PATIENCE
    finished: int = 0
    """How many jobs the folder holds already; for the progress bar."""
    errors: dict[str, str] = field(default_factory=dict)
    """id -> what happened to jobs that have no record."""

    def __post_init__(self) -> None:
        self._tail = Tail(self.out, added=True)
        self._left = dict.fromkeys(self.ids)

    def run(self) -> None:
        """Until every job has a record, or has failed to get one on an actor of its own."""
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.wait_for_min_actors_s = START
        total = self.finished + len(self.ids)
        with tqdm(
            total=total, initial=self.finished, desc=self.task, unit="image", file=sys.stderr,
            bar_format="{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
        ) as bar:  # fmt: skip
            for count in self._counts():
                if self._left:
                    self._pass(count, bar)
        for id in self._left:
            self.errors.setdefault(id, "its worker died each time that it was tried")

    def _counts(self) -> Iterator[int]:
        """Of the blocks: few, then ever more, to tell the job that kills from others."""
        yield block_count(len(self._left), self.pool.size, self.slots)
        yield math.ceil(len(self._left) / self.slots)
        yield len(self._left)

    def _pass(self, count: int, bar: tqdm) -> None:
        ids = list(self._left)
        spoken = told(self.out, self.pool, len(ids))
        dataset = ray.data.from_items([{"id": id} for id in ids], override_num_blocks=count)
        rows = _Drain(self.pool.apply(dataset, self.load, spoken, full=False))
        while not rows.ended.wait(EVERY):
            share, silence = ray.get(spoken.beats.read.remote())
            self._follow(bar, share)
            if silence > self.patience:
                raise UserError(
                    f"no worker has been heard for {silence / 60:.0f} minutes: the pool no longer "
                    "works. What is finished is kept; the same command does the rest"
                )
        self._follow(bar, 0.0)
        for id in rows.done:  # also of a line that was there before this run looked
            self._left.pop(id, None)
        self.errors = {id: why for id, why in rows.errors.items() if id in self._left}
        if rows.failure is not None and len(self._left) == len(ids):
            raise UserError(f"the workers cannot start: {rows.failure}")

    def _follow(self, bar: tqdm, share: float) -> None:
        for _, line in self._tail.read():
            if line["task"] == self.task and line["id"] in self._left:
                del self._left[line["id"]]
                self.on_record(line)
        done = bar.total - len(self._left)
        bar.n = min(bar.total, done + share)
        bar.refresh()


class _Drain:
    """Reads the rows of a dataset in a thread, so that a pool that hangs does not hang the run."""

    def __init__(self, dataset: Dataset):
        self.errors: dict[str, str] = {}
        self.done: list[str] = []
        self.failure: str | None = None
        self.ended = threading.Event()
        threading.Thread(target=self._read, args=(dataset,), daemon=True).start()

    def _read(self, dataset: Dataset) -> None:
        try:
            for row in dataset.iter_rows():
                if row["status"] == "error":
                    self.errors[row["id"]] = row["error"]
                elif row["status"] == "done":
                    self.done.append(row["id"])
        except Exception as error:  # whatever ends Ray's execution; the run names it
            self.failure = str(error).strip().splitlines()[-1]
        self.ended.set()


def block_count(jobs: int, actors: int, slots: int) -> int:
    """How many blocks, the same for every actor, of about whole batches each."""
    each = jobs / actors
    batches = min(LARGEST, max(1, round(each / (PARTS * slots))))
    return min(jobs, actors * math.ceil(each / (batches * slots)))


def wait_for(reference, seconds: float):
    """What a task of Ray returns; its UserError is raised as it is."""
    began = time.monotonic()
    try:
        return ray.get(reference, timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        waited = time.monotonic() - began
        raise UserError(f"Ray has found no room for a worker in {waited:.0f} s") from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
