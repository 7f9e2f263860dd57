"""The parts that run a task: distances in known pictures, resuming, and what failed."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from fastdigin import embedded
from fastdigin.results import CounterfactualRecord, NeuronCounterfactualRecord, NeuronRecord
from fastdigin.tasks.task import Request
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


@pytest.fixture
def part():
    """A task of neurons whose jobs cost nothing; those of ``failing`` fail."""
    done = []

    def make(count, failing=()):
        def run(*, skip, on_progress):
            for id in ids:
                if id in skip:
                    continue
                done.append(id)
                yield NeuronRecord(
                    id=id, status="failed" if id in failing else "done",
                    error="NaN" if id in failing else None, iterations=1, seconds=0.1,
                    history=[{"total": 1.0}], best_iteration=0, caption="x", activation=3.0,
                    dataset_max_activation=2.0, pictures={"image": brighter()},
                    settings=settings,
                )  # fmt: skip

        ids, settings = [f"neuron-{n}" for n in range(count)], {"model": "fake"}
        return SimpleNamespace(
            name="neurons", requests=[Request(id) for id in ids], run_settings=settings, run=run
        )

    make.done = done
    return make


def test_only_what_is_missing_is_done_and_only_what_is_asked_counts(part, tmp_path, capsys):
    assert [r.id for r in finished(part(2), tmp_path)] == ["neuron-0", "neuron-1"]
    assert len(finished(part(4), tmp_path)) == 4
    few = finished(part(2), tmp_path)
    assert [r.id for r in few] == ["neuron-0", "neuron-1"] and few[0].share_of_maximum == 1.5
    assert torch.allclose(few[0].image, brighter(), atol=1e-6)
    assert part.done == [f"neuron-{n}" for n in range(4)]
    assert capsys.readouterr().out == ""  # stdout is for the figures


def test_a_failed_job_is_told_and_counts_nowhere(part, tmp_path):
    one = part(3, failing=["neuron-1"])
    done = finished(one, tmp_path)
    assert [r.id for r in done] == ["neuron-0", "neuron-2"]
    measured = Measured.of(ids(one), done, [])
    assert (measured.jobs, measured.failed) == (3, 1)
