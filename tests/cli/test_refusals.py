"""The command line: what is refused before any work, and in which words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cli_commands import (
    CF,
    DISAGREE,
    NCF,
    NEURONS,
    PHOTO,
    QUICK,
    TARGET,
    run,
    start_process,
    words_file,
)
from PIL import Image


@pytest.mark.parametrize(
    ("option", "value"),
    [("--stop-at", "1.5"), ("--stop-at", "x"), ("--memory", "lots"), ("--memory", "1KiB"),
     ("--compile", "maybe")],
)  # fmt: skip
def test_bad_budgets_and_bounds(tmp_path, capsys, option, value):
    assert run(*CF, "embedded:pairs", "--limit", 1, option, value, "--out", tmp_path / "out",
               *QUICK) == 2  # fmt: skip
    assert option.lstrip("-") in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["explain"], ["counterfactual"], CF, ["disagree"]])
def test_usage_errors(arguments, capsys):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "usage:" in captured.err


def test_regulariser_twice(refused):
    twice = ["--regulariser", "pixels-l2:all:1", "--regulariser", "pixels-l2:all:2"]
    assert "pixels_l2_all is given 2 times" in refused(*CF, PHOTO.path, "--target", TARGET, *twice)
    common = [*NCF, PHOTO.path, "--neuron", 3, "--direction", "max"]
    assert "given 2 times" in refused(*common, *twice)


def test_missing_image(refused, tmp_path):
    error = refused(*CF, tmp_path / "nowhere.png", "--target", "bag")
    assert "nowhere.png' does not exist" in error and error.count("\n") == 1
    assert "nowhere.png" in refused(
        *NCF, tmp_path / "nowhere.png", "--neuron", 3, "--direction", "max"
    )


def test_broken_images(refused, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("not an image")
    assert "text.png' cannot be read as an image" in refused(*CF, text, "--target", "bag")
    cut = tmp_path / "cut.png"
    cut.write_bytes(PHOTO.path.read_bytes()[:2000])
    assert "cut.png' cannot be read as an image" in refused(*CF, cut, "--target", "bag")
    (tmp_path / "nothing.jpg").touch()
    assert "nothing.jpg" in refused(*CF, tmp_path / "nothing.jpg", "--target", "bag")


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("--target", "snekaer", ["'snekaer' is not a class", "did you mean 'sneaker'"]),
        ("--target", "8", ["class 8 does not exist", "0 to 7"]),
        ("--target", PHOTO.garment, ["source and target are both", "another target"]),
        ("--source", "shoes", ["'shoes' is not a class of embedded:clean"]),
        ("--prompt", "a photo of grass", ["'a photo of grass'", repr(PHOTO.garment)]),
        ("--prompt", " ".join(["a"] * 40) + f" {PHOTO.garment}", ["tokens", "shorten it"]),
        ("--classifier", "embedded:claen", ["'claen'", "did you mean 'clean'"]),
        ("--classifier", "resnet50", ["'resnet50'", "timm:NAME"]),
        ("--classifier", "timm:resnet18x", ["timm:resnet18x", "did you mean"]),
        ("--judge", "embedded:juge", ["'juge'", "judge"]),
        ("--model", "embeded", ["'embeded'", "did you mean 'embedded'"]),
        ("--model", ".", ["model_index.json"]),
        ("--regulariser", "pixels", ["'pixels'", "KIND:REGION:WEIGHT"]),
        ("--regulariser", "pixels-l3:all:1", ["'pixels-l3'", "pixels-l2"]),
        ("--regulariser", "pixels-l2:all:-1", ["-1"]),
    ],
)
def test_wrong_values_of_a_counterfactual(refused, option, value, words):
    given = {"--target": TARGET, "--classifier": "embedded:clean", option: value}
    options = [part for pair in given.items() for part in pair]
    error = refused("counterfactual", PHOTO.path, *options)
    for word in words:
        assert word in error


def test_model_that_is_not_on_this_machine(tmp_path):
    arguments = [*CF, PHOTO.path, "--target", TARGET, "--model", "nobody/nothing-at-all"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = start_process(*arguments, "--out", tmp_path / "out", env=offline)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2 and out == "" and "Traceback" not in err
    assert "'nobody/nothing-at-all' are not on this machine" in err and "hf download" in err
    assert not (tmp_path / "out").exists()


def test_no_target(refused):
    assert "give --target" in refused(*CF, PHOTO.path)


def test_images_of_a_wrong_shape(refused, tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "wide.png")
    error = refused(*CF, tmp_path / "wide.png", "--target", "bag")
    assert "64 x 48" in error and "not square: crop it" in error
    Image.new("RGB", (8, 8)).save(tmp_path / "tiny.png")
    error = refused(*CF, tmp_path / "tiny.png", "--target", "bag")
    assert "8 x 8" in error and "at least 32 px" in error


def test_empty_folder(refused, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "notes.txt").touch()
    assert f"folder '{folder}' holds no images" in refused(*CF, folder, "--target", "bag")
    assert "embedded:pairs" in refused(*CF, "embedded:pair", "--target", "bag")


@pytest.mark.parametrize("neuron", ["128000", "-1", "x", "1.5", ""])
def test_wrong_neuron(refused, neuron):
    error = refused(*NCF, PHOTO.path, f"--neuron={neuron}", "--direction", "max")
    assert f"neuron {neuron}" in error and "neurons 0 to" in error
    if neuron:
        assert f"neuron {neuron}" in refused(*NEURONS, f"--neurons=3,{neuron}")


def test_wrong_layer(refused):
    common = [*NCF, PHOTO.path, "--neuron", 0, "--direction", "max"]
    assert "layer 'nolayer' is not a module" in refused(*common, "--layer", "nolayer")
    assert "layer 'nolayer'" in refused(*NEURONS, "--neurons", 0, "--layer", "nolayer")


def test_wrong_direction(refused):
    assert "'other'" in refused(*NCF, PHOTO.path, "--neuron", 0, "--direction", "other")
    assert "'other'" in refused(*NEURONS, "--neurons", 0, "--direction", "other")


@pytest.mark.parametrize(
    "option, value",
    [
        ("--limit", "0"), ("--limit", "-1"), ("--limit", "x"), ("--limit", "²"), ("--slots", "0"),
        ("--steps", "0"), ("--steps", "2000"), ("--steps", "x"), ("--steps", "1.5"),
        ("--iterations", "-1"), ("--iterations", "x"), ("--seeds", "x"), ("--seeds", "0"),
        ("--seed", "x"), ("--seed", "9" * 30), ("--objective", "loss"), ("--classes", ""),
        ("--classes", " , "),
    ],
)  # fmt: skip
def test_bad_counts(option, value, tmp_path, capsys):
    out = tmp_path / "out"
    quick = [] if option in QUICK else QUICK
    code = run(*DISAGREE, "--classes", "bag", "--out", out, *quick, f"{option}={value}")
    assert code == 2
    error = capsys.readouterr().err
    assert option.strip("-") in error and (value.strip() in error or "empty" in error)
    assert not (out / "results.jsonl").exists()


@pytest.mark.parametrize("command", ["counterfactual", "neurons", "neuron-counterfactual"])
def test_too_many_steps_are_found_before_work(command, tmp_path, capsys, words):
    arguments = {
        "counterfactual": [*CF, PHOTO.path, "--target", TARGET],
        "neurons": [*NEURONS, "--neurons", 3, "--words", words],
        "neuron-counterfactual": [*NCF, PHOTO.path, "--neuron", 3, "--direction", "max"],
    }[command]
    out = tmp_path / "out"
    assert run(*arguments, "--steps", 2000, "--out", out) == 2
    assert "1..1000, got 2000" in capsys.readouterr().err
    assert not (out / "run.json").exists()


def test_wrong_classes(refused):
    assert "did you mean 'sneaker'" in refused(*DISAGREE, "--classes", "bag,sneker")
    error = refused(
        "disagree", "--f", "embedded:clean", "--g", "embedded:background", "--classes", "bag"
    )
    assert "'bag' is not a class of embedded:background" in error and "grass" in error


def test_wrong_words(refused, tmp_path):
    common = [*NEURONS, "--neurons", 3, "--words"]
    assert "nowhere.txt' cannot be read" in refused(*common, tmp_path / "nowhere.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "empty.txt' is empty" in refused(*common, tmp_path / "empty.txt")
    assert "cannot be read" in refused(*common, PHOTO.path)
    assert "cannot be read" in refused(*common, tmp_path)
    long = words_file(tmp_path / "long.txt", "bag", " ".join(["bag"] * 30))
    assert "tokens" in refused(*common, long)


def test_words_are_needed_with_another_model(refused):
    error = refused(*NEURONS, "--neurons", 3, "--model", "owner/name")
    assert "--words is needed" in error


def test_bad_images_in_the_data_set_of_neurons(refused, tmp_path, words, capsys):
    """One among others is left out, and said."""
    bad, common = tmp_path / "nowhere.png", [*NEURONS, "--neurons", 3, "--images"]
    assert "none of the 1 photos can be read" in refused(*common, bad)
    assert run(*common, bad, PHOTO.path, "--words", words, "--out", tmp_path / "out", *QUICK) == 0
    assert "left out: image" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("t.csv", "", ["t.csv' has no rows"]),
        ("t.csv", "image,target\n", ["t.csv' has no rows"]),
        ("t.csv", "image,goal\nx.png,bag\n", ["row 1", "'goal'", "image, id, prompt"]),
        ("t.csv", "target\nbag\n", ["row 1", "no image"]),
        ("t.csv", "image,target\nx.png,bag,boot\n", ["row 1", "more cells"]),
        ("t.csv", "image;target\nx.png;bag\n", ["'image;target'"]),
        ("t.jsonl", "", ["has no rows"]),
        ("t.jsonl", '{"image": "x.png"\n', ["t.jsonl' cannot be read"]),
        ("t.jsonl", '["x.png"]\n', ["row 1", "object"]),
        ("t.jsonl", '{"image": "x.png", "goal": 3}\n', ["'goal'"]),
        ("t.jsonl", '{"image": "x.png", "target": "bagg"}\n', ["'bagg'", "bag"]),
        ("missing.csv", None, ["missing.csv' cannot be read"]),
    ],
)
def test_bad_tables(refused, tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    error = refused(*CF, tmp_path / name)
    for word in words:
        assert word in error


def test_out_that_cannot_be(refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    common = [*CF, PHOTO.path, "--target", TARGET]
    assert "is a file; name a folder" in refused(*common, out=file)
    assert "cannot be written" in refused(*common, out=file / "below")
    assert file.read_text() == "mine"


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may write anywhere")
def test_out_without_permission(refused, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    error = refused(*CF, PHOTO.path, "--target", TARGET, out=tmp_path / "locked" / "out")
    assert "name a folder that you may write to" in error


def test_out_on_a_read_only_file_system(refused):
    if not Path("/proc/self").is_dir():
        pytest.skip("needs /proc")
    error = refused(*CF, PHOTO.path, "--target", TARGET, out="/proc/fastdigin-out")
    assert "--out '/proc/fastdigin-out' cannot be written" in error
