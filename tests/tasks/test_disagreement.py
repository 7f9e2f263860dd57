"""Disagreements through the library, zero-shot classifiers included."""

import json
from copy import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
from cli_commands import run

import fastdigin as fd
from fastdigin.embedded import GARMENTS
from fastdigin.objectives import ClassConfidence
from fastdigin.tasks.disagreement import Disagreements
from fastdigin.tasks.generated import seed_of


def test_an_image_ends_once_f_and_g_have_parted(call, quick):
    """By their confidences in the plain image, three times in a row; never by default."""
    longer = replace(quick, iterations=4)

    def history(stop_at):
        changes = {"optimisation": longer, "stop_at": stop_at}
        (e,) = call(fd.disagreements, classes="sneaker", set=changes)
        return e.history

    whole = history(fd.DisagreementSettings().stop_at)
    parted = [min(row["f_confidence"], 1 - row["g_confidence"]) for row in whole]
    assert len(whole) == 5 and min(parted) > 0.01
    assert history(min(parted) - 0.001) == whole[:3]
    assert history(0.999999) == whole


def test_seeds_and_classes(call, tmp_path):
    explanations = list(call(fd.disagreements, classes=["bag", 5, "BAG"], seeds=2, seed=5))
    assert [e.id for e in explanations] == [
        "bag-000", "bag-001", "sneaker-000", "sneaker-001",
    ]  # fmt: skip
    assert explanations[0].seed == explanations[2].seed
    assert explanations[0].seed != explanations[1].seed
    for e in explanations:
        e.save(tmp_path)
    (again,) = call(fd.disagreements, seeds=2, seed=5, skip={"bag-000"})
    assert again.id == "bag-001"


@pytest.mark.parametrize("names", [("crane", "crane"), ("a b", "a_b"), ("x", "x, y")])
def test_classes_of_one_word_each_have_their_own_results(engine, clean, spurious, names):
    f, g = (copy(network) for network in (clean, spurious))
    for own in (f, g):
        own.classes = (*names, *own.classes[2:])
    task = Disagreements(engine=engine, f=f, g=g, classes=[0, 1], seeds=2)
    assert len({request.id for request in task.requests}) == 4
    assert [request.f_class for request in task.requests] == [0, 0, 1, 1]
    # Asked for one at a time, or the other way round, they have the same ids.
    alone = [Disagreements(engine=engine, f=f, g=g, classes=[n], seeds=2).requests for n in (0, 1)]
    assert [r.id for rs in alone for r in rs] == [r.id for r in task.requests]


def test_the_best_draw_is_the_start(call, engine, clean, spurious, quick):
    """Of three draws, each told by its seed; f's loss counts twice."""
    changes = {"f_weight": 2.0, "draws": 3}
    chosen = {e.seed: e.history[0] for e in call(fd.disagreements, seeds=2, set=changes)}
    alone = fd.DisagreementSettings(optimisation=replace(quick, iterations=0), **changes)
    task = Disagreements(
        engine=engine, f=clean, g=spurious, classes=["bag"], seeds=2, settings=alone
    )
    f, g = (ClassConfidence(c, "bag", "conf", m) for c, m in ((clean, True), (spurious, False)))
    for number, (seed, row) in enumerate(chosen.items()):
        seeds = [seed_of(0, number, draw) for draw in range(3)]
        totals = {}
        candidates = task.candidates(task.requests[number])
        for draw, result in zip(seeds, engine.evaluate(candidates), strict=True):
            candidate = SimpleNamespace(image=result.image, latents=None, key=None)
            totals[draw] = float(2 * f(candidate) + g(candidate))
        assert seed == min(totals, key=totals.get)
        assert row["total"] == pytest.approx(totals[seed], abs=1e-5)


def test_zero_shot_classifier(call, clip_folder, tmp_path):
    clip = fd.Classifier.load(f"open_clip:{clip_folder}", classes=["sneaker", "anything else"])
    weights = clip.network.head.weight
    assert not weights[0].allclose(weights[1])  # the prompts are told apart
    common = {"classes": "sneaker", "set": {"objective": "log_conf"}}
    (e,) = call(fd.disagreements, g=clip, **common)
    assert e.status == "done" and e.g_prediction in clip.classes
    first, best = (e.history[i] for i in (0, e.best_iteration))
    assert best["g_confidence"] != first["g_confidence"] == e.g_confidence_before
    assert e.f_confidence == best["f_confidence"]
    e.save(tmp_path)
    # Other words make another classifier, of the same name.
    other = fd.Classifier.load(f"open_clip:{clip_folder}", classes=["sneaker", "boot"])
    (e,) = call(fd.disagreements, g=other, **common)
    with pytest.raises(fd.UserError, match="other settings"):
        e.save(tmp_path)


def test_zero_shot_classifier_on_the_command_line(clip_folder, tmp_path, capsys):
    common = ["disagree", "--f", "embedded:clean", "--g", f"open_clip:{clip_folder}", "--steps", 2,
              "--iterations", 1, "--classes", "bag", "--json", "--out"]  # fmt: skip
    # It tells the classes of the other one apart, unless a file names others.
    assert run(*common, tmp_path / "a") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["class"] == "bag" and record["g_prediction"] in GARMENTS
    names, templates = tmp_path / "names.txt", tmp_path / "templates.txt"
    names.write_text("bag\n\nbird\n")
    templates.write_text("a drawing of a {}\n")
    named = ["--class-names", names, "--templates", templates]
    assert run(*common, tmp_path / "b", *named) == 0
    assert json.loads(capsys.readouterr().out)["g_prediction"] in ("bag", "bird")
    names.write_text("")
    assert run(*common, tmp_path / "c", *named) == 2
    assert "--class-names" in capsys.readouterr().err and not (tmp_path / "c").exists()


def class_pair(engine, f, g, name):
    (request,) = Disagreements(engine=engine, f=f, g=g, classes=[name]).requests
    return request.f_class, request.g_class


def test_classes_that_libraries_spell_differently_are_matched_by_index(engine, clean, spurious):
    """ImageNet has two classes called "crane"; torchvision calls one "crane bird"."""
    names = list(clean.classes)
    mine = names[:6] + ["crane", "crane, lifting crane"]
    theirs = names[:6] + ["crane bird", "crane"]
    f, g = clean.with_classes(mine), spurious.with_classes(theirs)
    assert class_pair(engine, f, g, 6) == (6, 6) and class_pair(engine, f, g, 7) == (7, 7)
    assert class_pair(engine, f, spurious.with_classes(names[::-1]), names[0]) == (0, 7)


def test_a_class_that_g_does_not_know(call, own_classifier):
    with pytest.raises(fd.UserError, match="'dress' is not a class of <i>mine"):
        call(fd.disagreements, g=own_classifier, classes="dress")


def test_a_class_whose_name_is_too_long_has_another_word(engine, clean, spurious):
    """The packaged text encoder has no room for "a photo of a running shoe"."""
    f = clean.with_classes([*clean.classes[:5], "running shoe", *clean.classes[6:]])
    (request,) = Disagreements(engine=engine, f=f, g=spurious, classes=["running shoe"]).requests
    assert (request.word, request.f_class, request.g_class) == ("sneaker", 5, 5)
