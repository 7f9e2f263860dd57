"""Classifiers of other people in the tasks: their words, their answers, their gradients."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cli_commands import SNEAKER as PHOTO
from torch import nn

import fastdigin as fd
from fastdigin.cli import main
from fastdigin.embedded import GARMENTS
from fastdigin.tasks.words import same_class

IMAGENETS = (
    "jersey, T-shirt, tee shirt", "jean, blue jean, denim", "sweatshirt", "gown", "sandal",
    "running shoe", "purse", "cowboy boot",
)  # fmt: skip


@pytest.fixture
def spelled(clean):
    """The packaged classifier with ImageNet's names for its classes."""
    return clean.with_classes(IMAGENETS)


@pytest.mark.parametrize("target", ["boot", "cowboy boot", "7", 7])
def test_prompts_take_the_users_words(call, spelled, target):
    item = replace(fd.collect(["embedded:pairs"], 1)[0], target=None)
    (e,) = call(fd.counterfactuals, images=item, classifier=spelled, targets=target)
    word = "boot" if target == "boot" else "cowboy boot"
    assert (e.source, e.target) == ("running shoe", "cowboy boot")
    assert e.prompt.split()[-3:] == ["sneaker", "on", "grass"]
    assert e.edited_prompt == e.prompt.replace("sneaker", word)


@pytest.mark.parametrize("by", ["item", "argument"])
def test_prompts_take_words_that_are_no_classes(engine, spelled, by):
    item = fd.ImageInput("x", PHOTO.path, source="running shoe", source_word="sneaker", target=7)
    more = {"target_word": "boot"}
    if by == "item":
        item, more = replace(item, **more), {}
    task = fd.Counterfactuals(engine=engine, photos=[item], classifier=spelled, **more)
    checked = task.check(task.requests[0])
    assert checked.photo.prompt == "a photo of a sneaker"
    assert task._edited(task.requests[0], checked.photo) == "a photo of a boot"


def test_a_word_that_the_text_encoder_has_no_room_for(engine, spelled, clean):
    """Another word for the class is taken; where there is none the error says how to give one."""
    item = fd.ImageInput("x", PHOTO.path, source="5", target="7")
    task = fd.Counterfactuals(engine=engine, photos=[item], classifier=spelled)
    photo = task.check(task.requests[0]).photo
    assert (photo.prompt, photo.source) == ("a photo of a sneaker", "sneaker")
    unknown = clean.with_classes([*GARMENTS[:5], "thing of many long words", *GARMENTS[6:]])
    for given, word in ((item, "source"), (replace(item, source="boot", target="5"), "target")):
        task = fd.Counterfactuals(engine=engine, photos=[given], classifier=unknown)
        with pytest.raises(fd.UserError, match=f"reads 16.*given as --{word}-word"):
            list(task.run())


def test_packaged_photos_go_with_any_classifier(engine, spelled):
    photos = fd.collect(["embedded:photos"])[:16]
    task = fd.Counterfactuals(engine=engine, photos=photos, classifier=spelled, target="bag")
    for request in task.requests:
        if request.item.source != "bag":
            found = task.check(request).photo
            assert GARMENTS[found.source_class] == found.source == request.item.source


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        (("boot", "bag"), ("boot, cowboy boot", "bag"), True),
        (("boot", "bag"), ("bag", "cowboy boot", "shoe"), True),
        (("boot", "bag"), ("shoe", "bag", "sandal"), False),
        (("crane", "crane, lifting crane"), ("crane bird, crane", "crane"), True),
    ],
)
def test_which_classes_are_the_same(ours, theirs, same):
    f, g = (SimpleNamespace(classes=classes) for classes in (ours, theirs))
    matches = [n for n in range(len(theirs)) if same_class(f, 0, g, n)]
    assert bool(matches) == same
    assert len(matches) <= 1


class Constant(nn.Module):
    """Sees one class in every image."""

    def __init__(self, index: int, count: int):
        super().__init__()
        self.head = nn.Linear(1, count)
        nn.init.zeros_(self.head.weight)
        self.head.bias.data = 10.0 * nn.functional.one_hot(torch.tensor(index), count)

    def forward(self, x):
        return self.head(x.mean((1, 2, 3))[:, None])


def sees_always(index: int, classes) -> fd.Classifier:
    network = Constant(index, len(classes))
    return fd.Classifier(network, size=8, mean=(0,) * 3, std=(1,) * 3, classes=classes)


@pytest.mark.parametrize(
    ("index", "classes", "agrees"),
    [
        (1, ("bag", "sandals"), True),  # another word for the same
        (0, ("bag", "sandals"), False),
        (4, GARMENTS, True),
        (5, GARMENTS, False),
    ],
)
def test_the_judge_agrees_whatever_it_calls_the_target(call, spelled, index, classes, agrees):
    judge = sees_always(index, classes)
    (e,) = call(fd.counterfactuals, classifier=spelled, judge=judge, targets="sandal")
    assert e.judge_prediction == classes[index] and e.judge_agrees is agrees


def test_a_photo_that_shows_the_target_already_is_no_flip(call, clean, tmp_path):
    """It is counted apart, neither as a flip nor as none."""
    images = [fd.ImageInput(source, PHOTO.path, source=source) for source in ("sneaker", "boot")]
    wrong, right = call(
        fd.counterfactuals, images=images, targets=["boot", "sneaker"],
        set={"injection_fractions": (1.0,)},
    )  # fmt: skip
    assert (wrong.already_target, wrong.flipped) == (False, False)
    assert right.prediction == "sneaker" and (right.already_target, right.flipped) == (True, None)
    for e in (wrong, right):
        e.save(tmp_path)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["flipped"] for line in lines] == [False, None]


@pytest.mark.parametrize("wrap", [torch.no_grad(), torch.inference_mode()])
def test_a_classifier_without_gradient_is_refused_before_inversion(call, clean, wrap):
    blind = fd.Classifier.load("embedded:clean")
    blind.network.forward = wrap(blind.network.forward)
    with pytest.raises(fd.UserError, match="no gradient of the logits of embedded:clean"):
        call(fd.counterfactuals, classifier=blind)
    with pytest.raises(fd.UserError, match="no gradient of the activations of embedded:clean"):
        call(fd.neuron_counterfactuals, classifier=blind)
    (e,) = call(fd.counterfactuals, judge=blind)  # a judge is only asked
    assert e.status == "done"


@pytest.fixture
def nearly_on():
    """The packaged classifier whose neuron 76 is just off for the photo."""
    classifier = fd.Classifier.load("embedded:spurious")
    norm = [m for m in classifier.network.modules() if isinstance(m, nn.BatchNorm2d)][-1]
    seen = []
    handle = norm.register_forward_hook(lambda m, i, o: seen.append(o[0, 76].max()))
    (photo,) = fd.collect([str(PHOTO.path)])
    with torch.no_grad():
        classifier.logits(fd.photos.read_any_image(photo)[None])
    handle.remove()
    norm.bias.data[76] -= seen[0] + 0.3
    return classifier


def test_a_neuron_that_is_off_is_switched_on_and_said(call, nearly_on, quick):
    settings = {"optimisation": replace(quick, iterations=6), "regularisers": ()}
    common = {"classifier": nearly_on, "dataset": [torch.rand(3, 64, 64)], "set": settings}
    (e,) = call(fd.neuron_counterfactuals, directions="max", **common)
    assert e.history[0]["activation"] == 0 < e.activation
    assert "It was off, where its gradient is zero: at first its ReLU was passed over" in e.caption
    (e,) = call(fd.neuron_counterfactuals, directions="min", **common)
    assert e.activation == 0 and "off already, where its gradient is zero" in e.caption


@pytest.mark.parametrize("count", [8, 3])
def test_class_names_are_the_users(count, tmp_path, capsys, caplog):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"thing {n}" for n in range(count)))
    command = ["activating", str(PHOTO.path), "--neurons", "3", "--json", "--out", str(tmp_path)]
    command += ["--class-names", str(names), "--classifier"]
    assert main([*command, "embedded:clean"]) == 0
    kept = "--class-names has 3 names: embedded:clean keeps its own"
    assert (kept in caplog.text) == (count == 3)
    capsys.readouterr()
    search = ["search", str(PHOTO.path), str(PHOTO.path), "--embedding", "embedded:judge", "--json"]
    search += ["--class-names", str(names), "--classifier", "embedded:clean"]
    assert main([*search, "--out", str(tmp_path)]) == 0
    seen = json.loads(capsys.readouterr().out.splitlines()[0])["asked"]
    assert seen == ("thing 5" if count == 8 else "sneaker")
