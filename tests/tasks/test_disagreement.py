"""Disagreements through the library, zero-shot classifiers included."""

import json

import pytest

import fastdigin as fd


@pytest.fixture(scope="module")
def clip_folder(embedded, tmp_path_factory):
    """A random CLIP model of the smallest size, with the packaged tokenizer."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    folder, tokenizer = tmp_path_factory.mktemp("clip"), embedded.tokenizer
    tokenizer.save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    small["num_attention_heads"] = 2
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {**small, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    CLIPModel(config).eval().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("objective", ["conf", "log_conf", "logits"])
def test_objectives(engine, clean, spurious, quick, objective):
    settings = fd.DisagreementSettings(optimisation=quick, objective=objective)
    (e,) = fd.disagreements(engine, clean, spurious, "sneaker", settings=settings)
    first, best = (e.record["history"][i] for i in (0, e.record["best_iteration"]))
    assert e.status == "done" and best["total"] <= first["total"]
    assert e.record["f_confidence"] == best["f_confidence"]
    assert e.record["g_confidence_before"] == first["g_confidence"]


def test_seeds_and_classes(engine, clean, spurious, quick, tmp_path):
    settings = fd.DisagreementSettings(optimisation=quick)
    call = {"settings": settings, "seeds": 2, "seed": 5}
    explanations = list(fd.disagreements(engine, clean, spurious, ["bag", 5, "BAG"], **call))
    assert [e.id for e in explanations] == [
        "bag-000", "bag-001", "sneaker-000", "sneaker-001",
    ]  # fmt: skip
    assert explanations[0].record["seed"] == explanations[2].record["seed"]
    assert explanations[0].record["seed"] != explanations[1].record["seed"]
    for e in explanations:
        e.save(tmp_path)
    call["skip"] = {"bag-000", "sneaker-000", "sneaker-001"}
    (again,) = fd.disagreements(engine, clean, spurious, "bag", **call)
    assert again.id == "bag-001"


def test_zero_shot_classifier(engine, clean, clip_folder, quick, tmp_path):
    clip = fd.Classifier.load(f"clip:{clip_folder}", classes=["sneaker", "anything else"])
    weights = clip.network.head.weight
    assert not weights[0].allclose(weights[1])  # the prompts are told apart
    settings = fd.DisagreementSettings(optimisation=quick, objective="log_conf")
    (e,) = fd.disagreements(engine, clean, clip, "sneaker", settings=settings)
    assert e.status == "done" and e.record["g_prediction"] in clip.classes
    first, best = (e.record["history"][i] for i in (0, e.record["best_iteration"]))
    assert best["g_confidence"] != first["g_confidence"]
    e.save(tmp_path)
    # Other words make another classifier, of the same name.
    other = fd.Classifier.load(f"clip:{clip_folder}", classes=["sneaker", "boot"])
    (e,) = fd.disagreements(engine, clean, other, "sneaker", settings=settings)
    with pytest.raises(fd.UserError, match="other settings"):
        e.save(tmp_path)


def test_zero_shot_classifier_on_the_command_line(clip_folder, tmp_path, capsys):
    from fastdigin.cli import main

    out = tmp_path / "out"
    common = ["disagree", "--f", "embedded:clean", "--g", f"clip:{clip_folder}", "--steps", "2",
              "--iterations", "1", "--out", str(out)]  # fmt: skip
    assert main([*common, "--classes", "bag"]) == 2
    assert "name at least two" in capsys.readouterr().err and not out.exists()
    assert main([*common, "--classes", "bag,boot", "--limit", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["class"] == "bag"


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
