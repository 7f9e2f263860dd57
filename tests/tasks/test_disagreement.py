"""Disagreements through the library, zero-shot classifiers included."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

import fastdigin as fd
from fastdigin.embedded import GARMENTS
from fastdigin.objectives import ClassConfidence
from fastdigin.tasks.disagreement import Disagreements
from fastdigin.tasks.generated import seed_of


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random model of open_clip, of the smallest size."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 16, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return folder


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTDIGIN_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("objective", ["conf", "log_conf", "logits"])
def test_objectives(engine, clean, spurious, quick, objective):
    settings = fd.DisagreementSettings(optimisation=quick, objective=objective)
    (e,) = fd.disagreements(engine, clean, spurious, "sneaker", settings=settings)
    first, best = (e.history[i] for i in (0, e.best_iteration))
    # Not the total of the best image, which is the smallest whatever the optimisation does.
    losses = [row["f_loss"] + row["g_loss"] for row in e.history]
    assert e.status == "done" and min(losses[1:]) < losses[0]
    assert e.f_confidence == best["f_confidence"]
    assert e.g_confidence_before == first["g_confidence"]


def test_seeds_and_classes(engine, clean, spurious, quick, tmp_path):
    settings = fd.DisagreementSettings(optimisation=quick)
    call = {"settings": settings, "seeds": 2, "seed": 5}
    explanations = list(fd.disagreements(engine, clean, spurious, ["bag", 5, "BAG"], **call))
    assert [e.id for e in explanations] == [
        "bag-000", "bag-001", "sneaker-000", "sneaker-001",
    ]  # fmt: skip
    assert explanations[0].seed == explanations[2].seed
    assert explanations[0].seed != explanations[1].seed
    for e in explanations:
        e.save(tmp_path)
    call["skip"] = {"bag-000", "sneaker-000", "sneaker-001"}
    (again,) = fd.disagreements(engine, clean, spurious, "bag", **call)
    assert again.id == "bag-001"


def test_the_best_draw_is_the_start(engine, clean, spurious, quick):
    """Of three draws, each told by its seed; f's loss counts twice."""
    settings = fd.DisagreementSettings(optimisation=quick, f_weight=2.0, draws=3)
    alone = fd.DisagreementSettings(
        optimisation=replace(quick, iterations=0), f_weight=2.0, draws=3
    )
    chosen = {
        e.seed: e.history[0]
        for e in fd.disagreements(engine, clean, spurious, "bag", seeds=2, settings=settings)
    }
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


def test_zero_shot_classifier(engine, clean, clip_folder, quick, tmp_path):
    clip = fd.Classifier.load(f"open_clip:{clip_folder}", classes=["sneaker", "anything else"])
    weights = clip.network.head.weight
    assert not weights[0].allclose(weights[1])  # the prompts are told apart
    settings = fd.DisagreementSettings(optimisation=quick, objective="log_conf")
    (e,) = fd.disagreements(engine, clean, clip, "sneaker", settings=settings)
    assert e.status == "done" and e.g_prediction in clip.classes
    first, best = (e.history[i] for i in (0, e.best_iteration))
    assert best["g_confidence"] != first["g_confidence"]
    e.save(tmp_path)
    # Other words make another classifier, of the same name.
    other = fd.Classifier.load(f"open_clip:{clip_folder}", classes=["sneaker", "boot"])
    (e,) = fd.disagreements(engine, clean, other, "sneaker", settings=settings)
    with pytest.raises(fd.UserError, match="other settings"):
        e.save(tmp_path)


def test_zero_shot_classifier_on_the_command_line(clip_folder, tmp_path, capsys):
    from fastdigin.cli import main

    common = ["disagree", "--g", f"open_clip:{clip_folder}", "--steps", "2", "--iterations", "1",
              "--classes", "bag", "--json"]  # fmt: skip
    # It tells the classes of the other one apart, unless a file names others.
    assert main([*common, "--f", "embedded:clean", "--out", str(tmp_path / "a")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["class"] == "bag" and record["g_prediction"] in GARMENTS
    names = tmp_path / "names.txt"
    names.write_text("bag\n\nbird\n")
    templates = tmp_path / "templates.txt"
    templates.write_text("a drawing of a {}\n")
    common += ["--class-names", str(names), "--templates", str(templates)]
    assert main([*common, "--f", "embedded:clean", "--out", str(tmp_path / "b")]) == 0
    assert json.loads(capsys.readouterr().out)["g_prediction"] in ("bag", "bird")
    names.write_text("")
    assert main([*common, "--f", "embedded:clean", "--out", str(tmp_path / "c")]) == 2
    assert "--class-names" in capsys.readouterr().err and not (tmp_path / "c").exists()


def class_pair(engine, f, g, name):
    (request,) = Disagreements(engine=engine, f=f, g=g, classes=[name]).requests
    return request.f_class, request.g_class


def test_classes_that_libraries_spell_differently_are_matched_by_index(engine, clean):
    """ImageNet has two classes called "crane"; torchvision calls one "crane bird"."""
    names = list(clean.classes)
    mine = names[:6] + ["crane", "crane, lifting crane"]
    theirs = names[:6] + ["crane bird", "crane"]
    f, g = clean.with_classes(mine), clean.with_classes(theirs)
    assert class_pair(engine, f, g, 6) == (6, 6) and class_pair(engine, f, g, 7) == (7, 7)
    assert class_pair(engine, f, clean.with_classes(names[::-1]), names[0]) == (0, 7)


def test_errors_come_with_the_call(engine, clean, spurious, own_classifier, quick):
    settings = fd.DisagreementSettings(optimisation=quick)
    for classes, seeds, words in (
        ([], 1, "classes is empty"),
        (["sneker"], 1, "did you mean 'sneaker'"),
        ([8], 1, "0 to 7"),
        (["bag"], 0, "seeds must be at least 1"),
    ):
        with pytest.raises(fd.UserError, match=words):
            fd.disagreements(engine, clean, spurious, classes, seeds=seeds, settings=settings)
    with pytest.raises(fd.UserError, match="'dress' is not a class of <i>mine"):
        fd.disagreements(engine, clean, own_classifier, "dress", settings=settings)
    with pytest.raises(fd.UserError, match="objective must be one of"):
        fd.DisagreementSettings(objective="loss")
    with pytest.raises(fd.UserError, match="draws must be at least 1, got 0"):
        fd.DisagreementSettings(draws=0)
    with pytest.raises(fd.UserError, match="f_weight must be above 0, got nan"):
        fd.DisagreementSettings(f_weight=float("nan"))
    with pytest.raises(fd.UserError, match="must contain {}"):
        fd.DisagreementSettings(prompt="a photo")
    with pytest.raises(fd.UserError, match="tokens"):
        long = fd.DisagreementSettings(optimisation=quick, prompt="{} " + "a " * 30)
        fd.disagreements(engine, clean, spurious, "bag", settings=long)


def test_progress_adds_up(engine, clean, spurious, quick):
    settings, done = fd.DisagreementSettings(optimisation=quick), []
    call = {"settings": settings, "seeds": 3, "on_progress": done.append}
    assert len(list(fd.disagreements(engine, clean, spurious, "bag", **call))) == 3
    assert sum(done) == pytest.approx(3)
