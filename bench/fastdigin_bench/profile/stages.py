"""A task driven from its photos to its records, with each operation noted in its stage."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fastdigin.engine.batch import Batch
from fastdigin.engine.costs import job_bytes
from fastdigin.engine.engine import Engine
from fastdigin.engine.graphs import _Recorded
from fastdigin.engine.planner import Plan
from fastdigin.engine.queue import Search
from fastdigin.hardware import Hardware, LiveBytes, pretend
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.results import Record
from fastdigin.tasks import sources
from fastdigin_bench.profile.gpus import Gpu
from fastdigin_bench.profile.ledger import Counts, Ledger
from fastdigin_bench.profile.mends import without as running_without
from fastdigin_bench.profile.networks import as_fake
from fastdigin_bench.profile.replay import replay
from fastdigin_bench.profile.workload import make_task
from fastdigin_bench.text_jobs import none_failed
from fastdigin_kernels.common.devices import pretend_device

STAGES = ("preparation", "inversion", "recording", "search", "iterations", "final")
"""preparation: texts, and everything that is in no other stage. recording: of the sources'
attention. search: of the schedules, or of the best draw. final: the evaluation after the last
update."""

DRIVEN = 2
"""Iterations that are run: all that follow cost what the second one does, and are noted."""


@dataclass(frozen=True)
class Driven:
    """totals: (stage, part) -> its counts. iterations: of the engine, with updates.

    peak: most bytes alive. held: bytes beside the jobs when iterations begin: weights, and graphs
    of what went before; the plan predicts the rest of the peak. classifiers: how many judge an
    image.
    """

    totals: dict[tuple[str, str], Counts]
    iterations: int
    peak: int
    held: int
    slots: int
    plan: Plan
    classifiers: int
    records: list[Record]


def drive(
    task: str,
    model: LatentDiffusion,
    classifier: Classifier,
    settings: Any,
    gpu: Gpu,
    without: Collection[str] = (),
    **of_engine: int | None,
) -> Driven:
    """Runs the task on as many images as the engine has slots; nothing is computed.

    model, classifier: on the meta device; they are changed in place. gpu: which the engine shall
    think that it has. without: the mends that are turned off (mends.py); models in fp32 are for
    the caller. of_engine: arguments of Engine. Raises RuntimeError where an image fails, for then
    the counts are not those of the task.
    """
    wanted = settings.optimisation.iterations
    settings = replace(
        settings, optimisation=replace(settings.optimisation, iterations=min(wanted, DRIVEN))
    )
    for steps in (1, settings.optimisation.steps):  # the planner's own, and the task's
        model.ddim_table(steps)  # has content, so it is made outside
    live = LiveBytes()
    ledger, held, before = Ledger(live), [], {}

    def note(batch: Batch) -> None:
        held.append(live.now - sum(job_bytes(slot.job) for slot in batch.slots))
        before.update(copy.deepcopy(ledger.totals))

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for mode in (FakeTensorMode(allow_non_fake_inputs=True), live, ledger):
            stack.enter_context(mode)
        # A list is read at once, which the fake tensors' own method would not show.
        stack.enter_context(patch.object(FakeTensor, "tolist", lambda x: ledger.read_list(x)))
        for network in (*model.networks, classifier.network):
            as_fake(network)
        classifier.to("cpu")
        stack.enter_context(pretend(_Pretended(gpu, ledger, graphs="graphs" not in without)))
        stack.enter_context(pretend_device("cuda", gpu.capability, gpu.name))
        stack.enter_context(running_without(without))
        once = ledger.totals.setdefault(("graphs", "other"), Counts())
        stack.enter_context(patch.object(_Recorded, "__init__", _aside(ledger, once)))
        engine = Engine(model, compile="off", **of_engine)
        slots = engine.slots
        _replay_networks(model, classifier, ledger)
        stack.enter_context(named_stages(ledger.stage, note))
        made = make_task(task, engine, classifier, folder, slots, settings)
        records = none_failed(made.run())
    for (stage, part), counts in ledger.totals.items():
        if stage == "iterations":
            counts.repeat(before.get((stage, part), Counts()), wanted - len(held))
    return Driven(
        ledger.totals, wanted, live.peak, held[0] if held else 0, slots, engine.plan,
        len(made.classifiers), records,
    )  # fmt: skip


class _Pretended(Hardware):
    """A GPU whose clock goes as the formula says."""

    is_gpu = True

    def __init__(self, gpu: Gpu, ledger: Ledger, graphs: bool):
        super().__init__()
        self._gpu, self._ledger = gpu, ledger
        self.has_graphs = graphs
        self.capability = gpu.capability

    @property
    def name(self) -> str:
        return self._gpu.name

    @property
    def total_memory(self) -> int:
        return self._gpu.memory

    def free_memory(self) -> int:
        return self._gpu.memory - self._ledger.live.now

    def seconds(self) -> float:
        return self._ledger.seconds(self._gpu.rates)

    def record(self, run: Callable[[], None], forget: Any, pool: Any) -> Callable[[], None]:
        def replay() -> None:
            with self._ledger.one_launch():
                run()

        return replay


def _aside(ledger: Ledger, counts: Counts) -> Callable[..., None]:
    """Recording a graph, counted by itself: a run of thousands of images does it once."""
    recorded = _Recorded.__init__

    def record(*arguments) -> None:
        with ledger.into(counts):
            recorded(*arguments)

    return record


def _replay_networks(model: LatentDiffusion, classifier: Classifier, ledger: Ledger) -> None:
    replay(model.unet, "unet", ledger)
    replay(model.vae.decoder, "decoder", ledger)
    replay(model.vae.encoder, "encoder", ledger)
    # The blocks, not the network: neurons are read off the head's input by a hook.
    if hasattr(classifier.network, "blocks"):
        replay(classifier.network.blocks, "classifier", ledger)


@contextmanager
def named_stages(
    stage: Callable[[str], AbstractContextManager], on_update: Callable[[Batch], None]
) -> Iterator[None]:
    """Enters ``stage(name)`` around what the tasks and the engine do.

    on_update: called before every iteration that updates.
    """

    def staged(name: Callable[..., str] | str, function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*args, **kwargs):
            with stage(name if isinstance(name, str) else name(*args)):
                return function(*args, **kwargs)

        return run

    def of_iteration(batch: Batch, *_) -> str:
        if not any(slot.active and slot.updates_left for slot in batch.slots):
            return "final"
        on_update(batch)
        return "iterations"

    places = [
        (sources, "invert", "inversion"),
        (sources, "store_attention", "recording"),
        (Search, "run", "search"),
        (Batch, "iterate", of_iteration),
    ]
    with ExitStack() as stack:
        for owner, name, of in places:
            stack.enter_context(patch.object(owner, name, staged(of, getattr(owner, name))))
        yield
