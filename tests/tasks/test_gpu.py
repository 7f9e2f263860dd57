"""All four tasks on the packaged model on a GPU; on the CPU the same tests, with fewer dtypes."""

from dataclasses import replace

import pytest
import torch

import fastdigin as fd
from fastdigin.models.precision import pin_results
from fastdigin.photos import collect
from fastdigin.tasks.counterfactual import Counterfactuals
from fastdigin.tasks.disagreement import Disagreements
from fastdigin.tasks.neuron_counterfactual import NeuronCounterfactuals
from fastdigin.tasks.neurons import NeuronVisualisations

GPU = pytest.mark.gpu
RUNS = [
    pytest.param("cpu", torch.bfloat16, 0.05, marks=pytest.mark.slow),
    pytest.param("cuda", torch.float32, 0.01, marks=GPU),
    pytest.param("cuda", torch.bfloat16, 0.05, marks=GPU),
    pytest.param("cuda", torch.float16, 0.02, marks=GPU),
]
"""Device, dtype, and how far an image before its optimisation may be from that in fp32 on the CPU,
as a mean over pixels in [0, 1]."""


def brief(task, model, **changes):
    settings = task.default_settings(model)
    short = replace(settings.optimisation, steps=6, iterations=2)
    return replace(settings, optimisation=short, **changes)


def four_records(device, dtype):
    """One record of each task, by its name."""
    model = fd.LatentDiffusion.load("embedded", device=device, dtype=dtype)
    robust, spurious = (
        fd.Classifier.load(f"embedded:{name}").to(device, dtype) for name in ("robust", "spurious")
    )
    engine = fd.Engine(model, slots=2, compile="off")
    photos = collect(["embedded:photos"], 2)
    target = "boot" if photos[0].source != "boot" else "bag"
    records = [
        *fd.counterfactuals(
            engine, photos[:1], robust, target,
            settings=brief(Counterfactuals, model, null_text_steps=2, injection_fractions=(0.3,)),
        ),
        *fd.disagreements(
            engine, robust, spurious, "sneaker", settings=brief(Disagreements, model, draws=2)
        ),
        *fd.visualise_neurons(
            engine, spurious, 76, ["boot"], fd.most_activating(spurious, [76], photos),
            settings=brief(NeuronVisualisations, model, samples_per_word=1),
        ),
        *fd.neuron_counterfactuals(
            engine, photos[:1], spurious, 76, "max",
            settings=brief(NeuronCounterfactuals, model, null_text_steps=2),
        ),
    ]  # fmt: skip
    return {record.task: record for record in records}


@pytest.fixture(scope="module")
def in_fp32():
    return four_records("cpu", torch.float32)


@pytest.fixture
def pinned(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    pin_results()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("device", "dtype", "tolerance"), RUNS)
def test_four_tasks_end_near_those_in_fp32(in_fp32, device, dtype, tolerance):
    found = four_records(device, dtype)
    assert found.keys() == in_fp32.keys() and len(found) == 4
    for task, record in found.items():
        assert record.error is None, task
        assert record.image.isfinite().all() and len(record.history) == 3, task
        # The photo's reconstruction, or the sample before any update.
        start, expected = (r.pictures["initial_image"] for r in (record, in_fp32[task]))
        assert (start - expected).abs().mean() < tolerance, task
        assert not torch.equal(record.image, start), task


@pytest.mark.parametrize("device", [
    pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=GPU),
])  # fmt: skip
def test_pinned_results_repeat_to_the_bit(device, pinned):
    once, again = (four_records(device, torch.float32) for _ in range(2))
    for task, record in once.items():
        assert torch.equal(record.image, again[task].image), task
        assert record.history == again[task].history, task
