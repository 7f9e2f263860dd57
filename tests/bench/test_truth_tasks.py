"""The parts that run a task: distances in known pictures, resuming, and what failed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny import IMAGE_SHAPE, make_job

from fastdigin import embedded
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Settings
from fastdigin.results import CounterfactualRecord, NeuronCounterfactualRecord, NeuronRecord
from fastdigin.tasks.task import Request, Task
from fastdigin_bench.truth_figures import neuron_figures
from fastdigin_bench.truth_part import Measured
from fastdigin_bench.truth_tasks import finished, ids, inside, outside

SIZE = 64
GREY = 128 / 255
STEP = 51 / 255  # of an 8-bit picture: no rounding
WHOLE, UPPER, LEFT = (0, 0, SIZE, SIZE), (0, 0, SIZE, SIZE // 2), (0, 0, SIZE // 2, SIZE)
RIGHT_BELOW = (SIZE // 2, SIZE // 2, SIZE, SIZE)


@pytest.fixture
def model():
    """An autoencoder that is 0.1 too bright."""
    return SimpleNamespace(image_size=SIZE, encode_image=lambda x: x, decode=lambda z: z + 0.1)


@pytest.fixture
def photo(tmp_path):
    """A grey photo; its object is the left half."""
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(255, LEFT)
    mask.save(tmp_path / "photo-mask.png")
    Image.new("RGB", (SIZE, SIZE), (128, 128, 128)).save(tmp_path / "photo.png")
    return embedded.Photo(
        "photo", tmp_path / "photo.png", tmp_path / "photo-mask.png", "boot", "red", "brick", ""
    )


def brighter(*boxes):
    """A grey picture that is brighter in some boxes."""
    picture = torch.full((3, SIZE, SIZE), GREY)
    for left, top, right, bottom in boxes:
        picture[:, top:bottom, left:right] = GREY + STEP
    return picture


def test_outside(model, photo):
    pictures = {"image": brighter(RIGHT_BELOW, LEFT), "mask": torch.zeros(SIZE, SIZE)}
    pictures["mask"][: SIZE // 2] = 1  # the automatic one: the upper half
    found = outside(model, photo, CounterfactualRecord(id="x", pictures=pictures))
    expected = {"result": STEP, "autoencoder": 0.1, "result_true_mask": STEP / 2}
    assert vars(found) == pytest.approx(expected, abs=1e-6)


def test_inside(model, photo):
    pictures = {"image": brighter(UPPER), "initial_image": brighter(WHOLE)}
    found = inside(model, photo, NeuronCounterfactualRecord(id="x", pictures=pictures))
    expected = {"result": STEP / 2, "autoencoder": 0.1, "inversion": STEP}
    assert vars(found) == pytest.approx(expected, abs=1e-6)


@dataclass(frozen=True)
class ToySettings:
    optimisation: Settings = Settings(steps=4, iterations=1)


@dataclass(kw_only=True)
class Toy(Task):
    """Records of neurons from the jobs of tests/tiny.py."""

    name = "neurons"
    record_type = NeuronRecord
    settings_type = ToySettings

    count: int
    losses: Mapping[str, Sequence] = field(default_factory=dict)

    def make_requests(self):
        return [Request(f"neuron-{n}") for n in range(self.count)]

    def jobs(self, checked, width):
        return [make_job(self.model, r.id, losses=self.losses.get(r.id)) for r in checked]

    def explain(self, result):
        figures = {"activation": 3.0, "dataset_max_activation": 2.0}
        return NeuronRecord.of(result, settings=self.run_settings, before=None, **figures)


class Broken:
    name, weight = "broken", 1.0

    def __call__(self, candidate):
        raise ValueError("no neuron")


@pytest.fixture(scope="module")
def engine(tiny):
    return Engine(tiny.model, slots=2, compile="off")


def test_only_what_is_missing_is_done_and_only_what_is_asked_counts(engine, tmp_path, capsys):
    finished(Toy(engine=engine, count=1), tmp_path)
    first = (tmp_path / "results.jsonl").read_bytes()
    assert len(finished(Toy(engine=engine, count=3), tmp_path)) == 3
    (one,) = finished(Toy(engine=engine, count=1), tmp_path)
    assert one.id == "neuron-0" and one.share_of_maximum == 1.5
    assert one.image.shape == IMAGE_SHAPE and one.iterations == 2
    written = (tmp_path / "results.jsonl").read_bytes()
    assert written.startswith(first) and len(written.splitlines()) == 3
    assert capsys.readouterr().out == ""  # stdout is for the figures


def test_a_failed_job_is_told_and_counts_nowhere(engine, tmp_path):
    toy = Toy(engine=engine, count=3, losses={"neuron-1": [Broken()]})
    done = finished(toy, tmp_path)
    assert [r.id for r in done] == ["neuron-0", "neuron-2"]
    measured = Measured.of(ids(toy), done, neuron_figures(done))
    assert (measured.jobs, measured.failed) == (3, 1)
    assert measured.figures[0].n == 2
