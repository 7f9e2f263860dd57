"""The parts that run a task: their ids, resuming, distances in known pictures."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from fastdigin import embedded
from fastdigin.tasks.explanation import Explanation
from fastdigin.tasks.part import Part
from fastdigin_bench import truth_tasks
from fastdigin_bench.truth_part import Setup
from fastdigin_bench.truth_tasks import inside_distances, outside_distances

SIZE = 64
GREY = 128 / 255
STEP = 51 / 255  # of an 8-bit picture: no rounding


@pytest.fixture
def model():
    """An autoencoder that is 0.1 too bright."""
    return SimpleNamespace(image_size=SIZE, encode_image=lambda x: x, decode=lambda z: z + 0.1)


@pytest.fixture
def photo(tmp_path):
    """A grey photo; its object is the left half."""
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(255, (0, 0, SIZE // 2, SIZE))
    mask.save(tmp_path / "photo-mask.png")
    Image.new("RGB", (SIZE, SIZE), (128, 128, 128)).save(tmp_path / "photo.png")
    return embedded.Photo(
        "photo", tmp_path / "photo.png", tmp_path / "photo-mask.png", "boot", "red", "brick", ""
    )


def save(path, *boxes):
    """A grey picture that is brighter in some boxes."""
    picture = Image.new("RGB", (SIZE, SIZE), (128, 128, 128))
    for box in boxes:
        picture.paste((179, 179, 179), box)
    picture.save(path)
    return path.name


def test_outside_distances(model, photo, tmp_path):
    automatic = Image.new("L", (SIZE, SIZE))
    automatic.paste(255, (0, 0, SIZE, SIZE // 2))  # the upper half
    automatic.save(tmp_path / "mask.png")
    right_below = (SIZE // 2, SIZE // 2, SIZE, SIZE)
    left = (0, 0, SIZE // 2, SIZE)
    record = {"mask": "mask.png", "image": save(tmp_path / "result.png", right_below, left)}
    found = outside_distances(model, photo, record, tmp_path)
    assert found == pytest.approx(
        {"outside_l1": STEP, "outside_l1_autoencoder": 0.1, "outside_true_l1": STEP / 2}, abs=1e-6
    )


def test_inside_distances(model, photo, tmp_path):
    upper = (0, 0, SIZE, SIZE // 2)
    whole = (0, 0, SIZE, SIZE)
    record = {
        "image": save(tmp_path / "result.png", upper),
        "initial_image": save(tmp_path / "inversion.png", whole),
    }
    found = inside_distances(model, photo, record, tmp_path)
    expected = {"inside_l1": STEP / 2, "inside_l1_autoencoder": 0.1, "inside_l1_inversion": STEP}
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def fake_part():
    """A part of one of the tasks whose jobs cost nothing; notes the ids that it did."""
    done = []

    def make(task, records):
        def run(skip, tick):
            picture = torch.full((3, SIZE, SIZE), GREY)
            for record in records:
                if record["id"] in skip:
                    continue
                done.append(record["id"])
                base = {
                    "task": task, "status": "done", "seed": 0, "iterations": 1, "seconds": 0.1,
                    "history": [{"total": 1.0}], "best_iteration": 0, "caption": "x",
                }  # fmt: skip
                failed = record.get("status") == "failed"
                pictures = {} if failed else {
                    "image": picture, "initial_image": picture, "mask": picture[0]
                }  # fmt: skip
                yield Explanation(task, record["id"], base | record, pictures, {"model": "fake"})

        return Part(task, {"model": "fake"}, [r["id"] for r in records], run)

    make.done = done
    return make


@pytest.fixture
def setup(model):
    garments = SimpleNamespace(classes=embedded.GARMENTS, class_index=embedded.GARMENTS.index)
    names = ("clean", "robust", "spurious", "judge", "background")

    def setup(limit):
        return Setup(SimpleNamespace(model=model), dict.fromkeys(names, garments), limit)

    return setup


@pytest.fixture
def pairs(fake_part, monkeypatch):
    """Counterfactuals of the packaged pairs; from the tenth on they do not flip."""

    def part(engine, classifier, judge, count, seed):
        return fake_part("counterfactual", [
            {"id": f"{p.photo.id}-to-{p.target}", "target": p.target, "flipped": number < 9,
             "judge_prediction": p.target, "target_confidence_before": 0.1,
             "target_confidence": 0.9}
            for number, p in enumerate(embedded.pairs()[:count])
        ])  # fmt: skip

    monkeypatch.setattr(truth_tasks, "counterfactual_part", part)


def value(figures, name):
    return {f.name: f.value for f in figures}[name]


def test_counterfactuals(pairs, setup, tmp_path, capsys):
    measured = truth_tasks.counterfactuals("robust", setup(10), tmp_path / "out")
    assert (measured.jobs, measured.failed) == (10, 0)
    assert value(measured.figures, "flips to the target") == 0.9
    assert measured.figures[0].n == 10
    assert measured.figures[1].met is True
    assert capsys.readouterr().out == ""  # stdout is for the figures


def test_only_what_is_missing_is_done_and_only_what_is_asked_counts(
    pairs, fake_part, setup, tmp_path
):
    few = truth_tasks.counterfactuals("clean", setup(2), tmp_path)
    assert len(fake_part.done) == 2
    more = truth_tasks.counterfactuals("clean", setup(4), tmp_path)
    assert len(fake_part.done) == len(set(fake_part.done)) == 4 and more.jobs == 4
    assert truth_tasks.counterfactuals("clean", setup(2), tmp_path) == few
    assert len(fake_part.done) == 4
    assert few.figures[1].target is None  # the judge has none for the clean classifier


def test_a_failed_job_is_told_and_counts_nowhere(fake_part, setup, tmp_path, monkeypatch):
    neuron = {"activation": 3.0, "dataset_max_activation": 2.0}
    records = [
        {"id": "neuron-0007-max-000", **neuron},
        {"id": "neuron-0003-max-000", "status": "failed", "error": "NaN"},
    ]
    monkeypatch.setattr(truth_tasks, "neuron_part", lambda *_: fake_part("neurons", records))
    measured = truth_tasks.neurons(setup(2), tmp_path)
    assert (measured.jobs, measured.failed) == (2, 1)
    assert measured.figures[0].n == 1


def test_disagreements_look_at_the_background(fake_part, setup, tmp_path, monkeypatch):
    confidences = {
        "f_confidence": 0.95, "g_confidence": 0.05, "f_confidence_before": 0.9,
        "g_confidence_before": 0.9,
    }  # fmt: skip
    classes = list(embedded.PLANTED)
    records = [{"id": f"{c}-{n:03d}", "class": c, **confidences} for n in range(4) for c in classes]
    monkeypatch.setattr(
        truth_tasks, "disagreement_part",
        lambda engine, f, g, count, seed: fake_part("disagreement", records[:count]),
    )  # fmt: skip
    monkeypatch.setattr(truth_tasks, "predictions", lambda classifier, images: ["grass", "plain"])
    measured = truth_tasks.disagreements(setup(11), tmp_path)
    assert measured.jobs == 11 and len(fake_part.done) == 11
    assert value(measured.figures, "planted background before") == pytest.approx(4 / 11)
    assert value(measured.figures, "planted background after") == 0


def test_neuron_counterfactuals(fake_part, setup, tmp_path, monkeypatch):
    plans = [p for p, _ in zip(truth_tasks.neuron_counterfactual_plans(), range(8), strict=False)]
    records = [
        {"id": f"{item.id}-neuron-{neuron}-{direction}", "neuron": neuron, "direction": direction,
         "activation_before": 1.0, "activation": 2.0, "background_after": "plain"}
        for item, neuron, direction in plans
    ]  # fmt: skip
    monkeypatch.setattr(
        truth_tasks, "neuron_counterfactual_part",
        lambda *_: fake_part("neuron-counterfactual", records),
    )  # fmt: skip
    measured = truth_tasks.neuron_counterfactuals(setup(8), tmp_path)
    assert measured.jobs == 8
    assert value(measured.figures, "activation moves as asked") == 0.5
    assert value(measured.figures, "lowered: planted background vanishes") == 1
