"""The command line: what is refused before any work, and in which words."""

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

TO_TARGET = ["--target", TARGET]
OF_PHOTO = [*CF, PHOTO.path, *TO_TARGET]
RAISED = [*NCF, PHOTO.path, "--direction", "max"]


@pytest.mark.parametrize("arguments", [[], ["explain"], ["counterfactual"], CF, ["disagree"]])
def test_usage_errors(arguments, capsys):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "usage:" in captured.err


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([*OF_PHOTO, "--target", "snekaer"], ["'snekaer' is not a class", "did you mean 'snea"]),
        ([*OF_PHOTO, "--target", "8"], ["class 8 does not exist", "0 to 7"]),
        ([*OF_PHOTO, "--target", PHOTO.garment], ["source and target are both", "another target"]),
        ([*OF_PHOTO, "--source", "shoes"], ["'shoes' is not a class of embedded:clean"]),
        ([*OF_PHOTO, "--prompt", "a photo of grass"], ["'a photo of grass'", repr(PHOTO.garment)]),
        (
            [*OF_PHOTO, "--prompt", " ".join(["a"] * 40) + f" {PHOTO.garment}"],
            ["tokens", "shorten it"],
        ),
        ([*OF_PHOTO, "--classifier", "embedded:claen"], ["'claen'", "did you mean 'clean'"]),
        ([*OF_PHOTO, "--classifier", "resnet50"], ["'resnet50'", "timm:NAME"]),
        ([*OF_PHOTO, "--classifier", "timm:resnet18x"], ["timm:resnet18x", "did you mean"]),
        ([*OF_PHOTO, "--judge", "embedded:juge"], ["'juge'", "judge"]),
        ([*OF_PHOTO, "--model", "embeded"], ["'embeded'", "did you mean 'embedded'"]),
        ([*OF_PHOTO, "--model", "."], ["model_index.json"]),
        ([*OF_PHOTO, "--regulariser", "pixels"], ["'pixels'", "KIND:REGION:WEIGHT"]),
        ([*OF_PHOTO, "--regulariser", "pixels-l3:all:1"], ["'pixels-l3'", "pixels-l2"]),
        ([*OF_PHOTO, "--regulariser", "pixels-l2:all:-1"], ["-1"]),
        (
            [*OF_PHOTO, "--regulariser", "lpips:all:1", "--regulariser", "lpips:all:2"],
            ["lpips_all is given 2 times"],
        ),
        ([*OF_PHOTO, "--stop-at", "1.5"], ["stop-at"]),
        ([*OF_PHOTO, "--memory", "lots"], ["memory"]),
        ([*OF_PHOTO, "--memory", "1KiB"], ["memory"]),
        ([*OF_PHOTO, "--compile", "maybe"], ["compile"]),
        ([*OF_PHOTO, "--steps", "2000"], ["1..1000, got 2000"]),
        ([*CF, PHOTO.path], ["give --target"]),
        ([*CF, "embedded:pair", *TO_TARGET], ["embedded:pairs"]),
        ([*NCF, "nowhere.png", "--neuron", 3, "--direction", "max"], ["nowhere.png"]),
        ([*RAISED, "--neuron", 0, "--direction", "other"], ["'other'"]),
        ([*RAISED, "--neuron", 0, "--layer", "nolayer"], ["layer 'nolayer' is not a module"]),
        ([*RAISED, "--neuron", 3, "--steps", "2000"], ["1..1000, got 2000"]),
        ([*NEURONS, "--neurons", 0, "--direction", "other"], ["'other'"]),
        ([*NEURONS, "--neurons", 0, "--layer", "nolayer"], ["layer 'nolayer'"]),
        ([*NEURONS, "--neurons", 3, "--images", "nowhere.png"], ["none of the 1 photos"]),
        ([*NEURONS, "--neurons", 3, "--model", "owner/name"], ["--words is needed"]),
        ([*NEURONS, "--neurons", 3, "--steps", "2000"], ["1..1000, got 2000"]),
        ([*NEURONS, "--neurons", 3, "--words", "nowhere.txt"], ["nowhere.txt' cannot be read"]),
        ([*NEURONS, "--neurons", 3, "--words", PHOTO.path], ["cannot be read"]),
        ([*NEURONS, "--neurons", 3, "--words", "."], ["cannot be read"]),
        ([*DISAGREE, "--classes", "bag,sneker"], ["did you mean 'sneaker'"]),
        (
            [*DISAGREE, "--g", "embedded:background", "--classes", "bag"],
            ["'bag' is not a class of embedded:background", "grass"],
        ),
    ],
)  # fmt: skip
def test_wrong_values(refused, arguments, words):
    error = refused(*arguments)
    for word in words:
        assert word in error


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


@pytest.mark.parametrize("neuron", ["128000", "-1", "x", "1.5", ""])
def test_wrong_neuron(refused, neuron):
    error = refused(*RAISED, f"--neuron={neuron}")
    assert f"neuron {neuron}" in error and "neurons 0 to" in error
    if neuron:
        assert f"neuron {neuron}" in refused(*NEURONS, f"--neurons=3,{neuron}")


def test_pictures_that_are_none(refused, tmp_path):
    for name, content, words in (
        ("text.png", b"not an image", "cannot be read as an image"),
        ("cut.png", PHOTO.path.read_bytes()[:2000], "cannot be read as an image"),
        ("nothing.jpg", b"", "cannot be read as an image"),
        ("nowhere.png", None, "does not exist"),
        ("wide.png", Image.new("RGB", (64, 48)), "64 x 48 pixels, not square: crop it"),
        ("tiny.png", Image.new("RGB", (8, 8)), "at least 32 px"),
    ):
        if isinstance(content, Image.Image):
            content.save(tmp_path / name)
        elif content is not None:
            (tmp_path / name).write_bytes(content)
        error = refused(*CF, tmp_path / name, *TO_TARGET)
        assert name in error and words in error and error.count("\n") == 1


def test_empty_folder(refused, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "notes.txt").touch()
    assert f"folder '{folder}' holds no images" in refused(*CF, folder, *TO_TARGET)


def test_model_that_is_not_on_this_machine(tmp_path):
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = start_process(*OF_PHOTO, "--model", "nobody/nothing-at-all", "--out",
                            tmp_path / "out", env=offline)  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2 and out == "" and "Traceback" not in err
    assert "'nobody/nothing-at-all' are not on this machine" in err and "hf download" in err
    assert not (tmp_path / "out").exists()


def test_wrong_words(refused, tmp_path):
    common = [*NEURONS, "--neurons", 3, "--words"]
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "empty.txt' is empty" in refused(*common, tmp_path / "empty.txt")
    long = words_file(tmp_path / "long.txt", "bag", " ".join(["bag"] * 30))
    assert "tokens" in refused(*common, long)


def test_one_bad_image_in_the_data_set_of_neurons_is_left_out(tmp_path, words, capsys):
    bad, common = tmp_path / "nowhere.png", [*NEURONS, "--neurons", 3, "--images"]
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
        ("t.jsonl", '{"image": "x.png"\n', ["t.jsonl' cannot be read", "line 1"]),
        ("t.jsonl", '["x.png"]\n', ["line 1", "object"]),
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
    assert "is a file; name a folder" in refused(*OF_PHOTO, out=file)
    assert "cannot be written" in refused(*OF_PHOTO, out=file / "below")
    assert file.read_text() == "mine"
    if Path("/proc/self").is_dir():  # as a file system that is read-only
        error = refused(*OF_PHOTO, out="/proc/fastdigin-out")
        assert "--out '/proc/fastdigin-out' cannot be written" in error
    if os.name == "posix" and os.getuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        error = refused(*OF_PHOTO, out=tmp_path / "locked" / "out")
        assert "name a folder that you may write to" in error
