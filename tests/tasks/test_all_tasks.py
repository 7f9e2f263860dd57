"""What the public calls of all four tasks promise alike."""

from dataclasses import replace

import pytest
import torch
from cli_commands import SNEAKER as PHOTO

import fastdigin as fd

OF_PHOTOS = (fd.counterfactuals, fd.neuron_counterfactuals)
THREE = {
    fd.counterfactuals: {"images": [PHOTO.path] * 3},  # more than there are slots
    fd.disagreements: {"seeds": 3},
    fd.visualise_neurons: {"neurons": [3, 4, 5]},
    fd.neuron_counterfactuals: {"images": [PHOTO.path] * 3},
}


@pytest.mark.parametrize("task", THREE)
def test_progress_adds_up_and_starts_with_the_preparation(call, task):
    done = []
    records = call(task, on_progress=done.append, **THREE[task])
    assert next(records).status == "done"
    assert 0 < done[0] < 0.25, "told after the first pass of the U-Net, not after a stage"
    assert len(list(records)) == 2 and sum(done) == pytest.approx(3)
    assert max(done) < 0.6


@pytest.mark.parametrize("task", THREE)
def test_no_grad_does_no_harm_and_inference_mode_is_refused(call, task):
    (expected,) = call(task)
    with torch.no_grad():
        (found,) = call(task)
    assert torch.equal(found.image, expected.image)
    with torch.inference_mode(), pytest.raises(fd.UserError, match="call it outside of that"):
        list(call(task))


@pytest.mark.parametrize("images", [None, 5])
def test_what_are_no_images_is_refused_by_name(call, images):
    with pytest.raises(fd.UserError, match=f"images is {images}: give files"):
        call(fd.counterfactuals, images=images)


@pytest.mark.parametrize("objective", ["conf", "log_conf", "logits"])
@pytest.mark.parametrize(
    ("task", "names"),
    [(fd.counterfactuals, ("target_loss",)), (fd.disagreements, ("f_loss", "g_loss"))],
)
def test_every_objective_is_optimised(call, task, names, objective):
    (e,) = call(task, set={"objective": objective})
    # Not the total of the best image, which is the smallest whatever the optimisation does.
    losses = [sum(row[name] for name in names) for row in e.history]
    assert e.status == "done" and min(losses[1:]) < losses[0]


@pytest.mark.parametrize("task", OF_PHOTOS)
def test_one_bad_image_fails_alone(call, task, tmp_path):
    images = [fd.ImageInput("bad", tmp_path / "nowhere.png"), fd.ImageInput("good", PHOTO.path),
              fd.ImageInput("other", PHOTO.path, prompt="no such word")]  # fmt: skip
    by_id = {e.id.split("-")[0]: e for e in call(task, images=images)}
    assert {id: e.status for id, e in by_id.items()} == {
        "bad": "failed", "good": "done", "other": "failed",
    }  # fmt: skip
    assert "nowhere.png" in by_id["bad"].error
    record = by_id["other"].save(tmp_path)
    assert "'no such word'" in record["error"] and by_id["other"].image is None
    assert record["image"] is None and record["background_l1"] is None


WRONG = [
    {"image": None}, {"image": 3}, {"image": torch.rand(3, 64, 64, device="meta")},
    {"image": [[0.5]]}, {"mask": 0.5}, {"mask": torch.ones(64, 64, device="meta")},
    {"prompt": 7}, {"prompt": ["a photo of a sneaker"]}, {"source": 5}, {"caption": b"on grass"},
    {"prompt": "a \ud800 sneaker"}, {"prompt": "a\0 sneaker"}, {"caption": "on \ud83d grass"},
    {"source": "bo\0ot"}, {"image": "no\0where.png"}, {"image": "\ud800.png"},
    {"mask": "no\0mask.png"},
]  # fmt: skip


def test_inputs_of_wrong_types_fail_alone(call):
    good = fd.ImageInput("good", PHOTO.path, source="sneaker")
    wrong = [replace(good, id=f"wrong-{number}", **change) for number, change in enumerate(WRONG)]
    found = list(call(fd.counterfactuals, images=[*wrong[:5], good, *wrong[5:]]))
    assert [e.id for e in found if e.status == "done"] == ["good-to-bag"]
    assert len(found) == len(WRONG) + 1
    for e in found:
        if e.status == "failed":
            (name,) = WRONG[int(e.id.split("-")[1])]
            assert name in e.error


@pytest.mark.parametrize("task", OF_PHOTOS)
def test_the_users_mask_wins(call, task):
    mask = torch.zeros(64, 64)
    mask[8:24, 32:50] = 1
    (e,) = call(task, images=fd.ImageInput("x", PHOTO.path, mask=mask))
    assert torch.equal(e.pictures["mask"], mask)
    assert torch.equal(e.result.job.losses[1].mask.cpu(), mask)


def test_finished_ids_are_skipped(call):
    images = [fd.ImageInput("gone", "nowhere.png"), PHOTO.path]
    ids = {"gone-to-bag", f"{PHOTO.id}-to-bag"}
    assert list(call(fd.counterfactuals, images=images, skip=ids)) == []
    (e,) = call(fd.counterfactuals, images=images, skip={"gone-to-bag"})
    assert e.id == f"{PHOTO.id}-to-bag"


ERRORS = {
    fd.counterfactuals: [
        ({"images": []}, "images is empty"),
        ({"targets": ["bag", "boot"]}, "2 targets for 1 images"),
        ({"targets": "bg"}, "did you mean 'bag'"),
        ({"targets": None}, "has no target"),
        ({"images": ["nowhere.png"]}, "nowhere.png' does not exist"),
        ({"images": torch.rand(3, 64, 32)}, "not square"),
        ({"set": {"optimisation": fd.Settings(steps=2000)}}, "1..1000, got 2000"),
        ({"set": {"objective": "loss"}}, "objective must be one of"),
        ({"set": {"injection_fractions": ()}}, "injection_fractions"),
        ({"set": {"blending_fractions": (1.5,)}}, "blending_fractions"),
    ],
    fd.disagreements: [
        ({"classes": []}, "classes is empty"),
        ({"classes": ["sneker"]}, "did you mean 'sneaker'"),
        ({"classes": [8]}, "0 to 7"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"seeds": 10**9}, "seeds must be at least 1 and at most 1000000, got 1000000000"),
        ({"seeds": 2.5}, "seeds must be a whole number, got 2.5"),
        ({"set": {"objective": "loss"}}, "objective must be one of"),
        ({"set": {"draws": 0}}, "draws must be at least 1 and at most 1000000, got 0"),
        ({"set": {"f_weight": float("nan")}}, "f_weight must be above 0, got nan"),
        ({"set": {"prompt": "a photo"}}, "must contain {}"),
        ({"set": {"prompt": "{} " + "a " * 30}}, "tokens"),
    ],
    fd.visualise_neurons: [
        ({"neurons": []}, "neurons is empty"),
        ({"neurons": [-1]}, "neuron -1 does not exist"),
        ({"neurons": 99999}, "neuron 99999 does not exist"),
        ({"words": []}, "words for neuron 76 are empty"),
        ({"words": lambda neuron, images: []}, "words for neuron 76 are empty"),
        ({"words": ["bag " * 30]}, "tokens"),
        ({"dataset": []}, "dataset is empty"),
        ({"images_per_neuron": 0}, "per_neuron must be at least 1"),
        ({"images_per_neuron": 3}, "images_per_neuron must lie in 1..2"),
        ({"set": {"direction": "other"}}, "direction must be one of max, min"),
    ],
    fd.neuron_counterfactuals: [
        ({"images": []}, "images is empty"),
        ({"neurons": 99999}, "neuron 99999 does not exist"),
        ({"neurons": "x"}, "neuron x does not exist"),
        ({"directions": "other"}, "direction must be one of max, min, both, got 'other'"),
        ({"images": [PHOTO.path] * 3, "neurons": [3, 4]}, "2 neurons for 3 images"),
        ({"images": [PHOTO.path] * 3, "directions": ["max", "min"]}, "2 directions for 3 images"),
        ({"set": {"mask_edge": "x"}}, "mask_edge must be one of soften, tighten, got 'x'"),
    ],
}


@pytest.mark.parametrize(
    "task, changes, words", [(task, *case) for task, cases in ERRORS.items() for case in cases]
)
def test_errors_come_with_the_call(call, task, changes, words):
    """Not with the first record: a caller sees them where the mistake is."""
    with pytest.raises(fd.UserError, match=words):
        call(task, **changes)


OF = {
    fd.counterfactuals: fd.Counterfactuals,
    fd.disagreements: fd.Disagreements,
    fd.visualise_neurons: fd.NeuronVisualisations,
    fd.neuron_counterfactuals: fd.NeuronCounterfactuals,
}
RAISED = [RuntimeError("no cuDNN"), fd.UserError("the judge has gone"), KeyError("boot")]


@pytest.mark.parametrize(
    ("task", "error"), list(zip(THREE, [*RAISED, OSError("no disk")], strict=True)),
    ids=lambda x: getattr(x, "__name__", str(x)),
)  # fmt: skip
def test_what_cannot_be_explained_fails_alone(call, monkeypatch, task, error):
    """As where a judge of the user's raises for one of the finished images."""
    explained = []

    def explain(self, result):
        explained.append(result.id)
        if len(explained) == 2:
            raise error
        return original(self, result)

    kind = OF[task]
    original = kind.explain
    monkeypatch.setattr(kind, "explain", explain)
    found = {e.id: e for e in call(task, **THREE[task])}
    assert list(found) == explained and len(found) == 3
    for number, id in enumerate(explained, start=1):
        assert found[id].status == ("failed" if number == 2 else "done")
    assert str(error) in found[explained[1]].error
