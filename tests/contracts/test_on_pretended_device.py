"""All four tasks of every family, where tensors say that they are on a GPU (pretended_devices.py).

An iteration waits for the device once, at its end, and for each job that it finishes. A mixing of
devices fails, wherever it is; so does a product of two dtypes, in bf16.
"""

import math

import pytest
import torch
from families import FAMILIES
from four_tasks import four_tasks
from pretended import PretendedGpu
from pretended_devices import DEVICE, PretendedDevice, to_device
from tiny import build_classifier, build_tiny

from fastdigin.engine.batch import Batch
from fastdigin.engine.engine import Engine
from fastdigin.hardware import pretend
from fastdigin.models.diffusion import LatentDiffusion


@pytest.fixture
def iterations(monkeypatch):
    """(waits, finished jobs) of every iteration, while a PretendedDevice is at work."""
    found, iterate = [], Batch.iterate

    def noted(batch, *advance):
        mode = PretendedDevice.current
        waits = len(mode.waits)
        results = iterate(batch, *advance)
        found.append((mode.waits[waits:], len(results)))
        return results

    monkeypatch.setattr(Batch, "iterate", noted)
    return found


def check(model, dtype, gpu, iterations):
    with PretendedDevice(), pretend(gpu):
        for network in model.networks:
            to_device(network)
        assert model.device == DEVICE
        engine = Engine(model, slots=2, kept_steps=1, compile="off")
        records = list(
            four_tasks(engine, build=lambda **x: build_classifier(**x).to(dtype=dtype).to(DEVICE))
        )
    assert [record.error for record in records] == [None] * 8
    for record in records:
        totals = [row["total"] for row in record.history]
        assert len(totals) == 2 and totals[0] != totals[1], "nothing was optimised"
        assert all(map(math.isfinite, totals)) and totals[record.best_iteration] == min(totals)
        assert record.image.isfinite().all() and record.image.std() > 0.01
    for waits, finished in iterations:
        assert 1 <= len(waits) <= 1 + finished, waits  # a finished job is brought to the host
    assert any(not finished for _, finished in iterations)


@pytest.mark.parametrize(
    "gpu", [PretendedGpu(graphs=False), PretendedGpu()], ids=["plain", "graphs"]
)
def test_an_iteration_of_all_tasks_waits_once(gpu, iterations):
    check(build_tiny(levels=1).model, torch.float64, gpu, iterations)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_mixes_devices_or_dtypes(name, folder_of, iterations):
    model = LatentDiffusion.load(str(folder_of(name)), device="cpu", dtype=torch.bfloat16)
    check(model, torch.bfloat16, PretendedGpu(), iterations)
