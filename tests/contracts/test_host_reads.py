"""An iteration never waits for the device but once, at its end.

It runs on torch's meta device, whose tensors have no values: whoever asks for one there (item,
tolist, bool, nonzero, a copy to the host) gets an exception. A copy from the host waits as well,
unless it is non_blocking; those are caught on their way.
"""

import copy
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from four_tasks import four_tasks
from pretended import PretendedGpu
from tiny import build_classifier, build_tiny, make_job
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastdigin import hardware
from fastdigin.engine import checks
from fastdigin.engine.engine import Engine
from fastdigin.models.classifier import Classifier
from fastdigin.objectives import ClassConfidence, Cutouts


class BlockingCopies(TorchDispatchMode):
    """Refuses copies from the host that wait for the device."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = op(*args, **kwargs)
        sources = [x for x in args if isinstance(x, Tensor)]
        if op.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            target, source = (found, args[0]) if len(sources) == 1 else sources[:2]
            blocking = not (kwargs.get("non_blocking") or args[2:] == (True,))
            if source.device.type == "cpu" and target.device.type == "meta" and blocking:
                raise AssertionError(f"{op} waits for the device")
        return found


def on_meta(x):
    """A copy, on the meta device, of a job or a part of one."""
    if isinstance(x, Tensor):
        return x.to("meta")
    if isinstance(x, (nn.Module, Classifier)):
        return copy.deepcopy(x).to("meta")
    if is_dataclass(x) and not isinstance(x, type):
        moved = copy.copy(x)
        for field in fields(x):
            object.__setattr__(moved, field.name, on_meta(getattr(x, field.name)))
        return moved
    if isinstance(x, Mapping):
        return {key: on_meta(value) for key, value in x.items()}
    return type(x)(map(on_meta, x)) if isinstance(x, (list, tuple)) else x


@pytest.fixture(scope="module")
def jobs():
    """Two of each task, made by the tasks themselves."""
    engine = Engine(build_tiny(levels=1).model, slots=2, kept_steps=0, compile="off")
    return [replace(e.result.job, info=None) for e in four_tasks(engine)]


@pytest.fixture(scope="module")
def meta_model():
    model = build_tiny(levels=1).model
    for network in model.networks:
        network.to("meta")
    return model


def iterate(model, jobs, monkeypatch, gpu=None):
    """An iteration of the jobs in one batch: how often figures were read, and the slots.

    gpu: as which it shall decide, judging together and replaying graphs; None is a CPU.
    """
    reads = []

    def read(figures):
        reads.append(figures)
        return [0.5] * figures.numel()

    monkeypatch.setattr(checks, "check_values", lambda name, tensor: None)  # it refuses meta
    with hardware.pretend(gpu or hardware.Hardware()):
        engine = Engine(model, slots=len(jobs), kept_steps=1, compile="off")
        engine.submit(jobs)
        batch = engine._batch
        assert batch.refill(run_stage=None) == []
        monkeypatch.setattr(Tensor, "tolist", read)
        with BlockingCopies():
            batch.iterate()
    return reads, batch.slots


@pytest.mark.parametrize(
    "gpu", [None, PretendedGpu(graphs=False), PretendedGpu()], ids=["cpu", "gpu", "graphs"]
)
def test_an_iteration_of_all_tasks_reads_once(jobs, meta_model, monkeypatch, gpu):
    moved = []
    for job in jobs:
        constants = on_meta(job)
        if job.injection is not None:  # as the tasks leave it, where the device is another
            mapping = job.injection.mapping
            constants = replace(constants, injection=replace(constants.injection, mapping=mapping))
        moved.append(constants)
    assert sum(job.injection is not None and job.blending is not None for job in moved) == 4
    reads, slots = iterate(meta_model, moved, monkeypatch, gpu)
    assert [slot.error for slot in slots] == [None] * 8
    assert all(slot.iteration == 1 for slot in slots), "nobody was updated"
    assert len(reads) == 1 and reads[0].device.type == "meta"


def test_references_and_crops_may_come_from_the_host(meta_model, monkeypatch):
    classifier = build_classifier().to("meta")
    job = make_job(meta_model, steps=2)
    confidence = ClassConfidence(classifier, 0, cutouts=Cutouts(count=2))
    job = replace(job, losses=[*job.losses, confidence], latents=job.latents)
    assert job.losses[0].reference.device.type == "cpu"
    reads, (slot,) = iterate(meta_model, [job], monkeypatch)
    assert slot.error is None and slot.iteration == 1 and len(reads) == 1


@pytest.mark.parametrize("read", [
    lambda image: float(image.mean()),
    lambda image: image.mean().item(),
    lambda image: image.mean().cpu(),
    lambda image: image.new_zeros(()) if image.mean() > 0 else image.mean(),
    lambda image: image.nonzero().sum(),
    lambda image: image.mean() + torch.ones(3).to(image.device).sum(),
])  # fmt: skip
def test_the_detector_sees_what_waits(meta_model, monkeypatch, read):
    job = make_job(meta_model, steps=2, monitors={"read": read})
    _, (slot,) = iterate(meta_model, [job], monkeypatch)
    assert slot.error is not None
