"""The command line: what it prints and writes, its exit codes, bad input, resuming."""

import csv
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdigin import cli, embedded

QUICK = ["--steps", "2", "--iterations", "1"]
COMMON = {
    "task", "id", "status", "seed", "iterations", "seconds", "image", "initial_image",
}  # fmt: skip
KEYS = {
    "counterfactual": {
        "source", "target", "target_confidence_before", "target_confidence", "judge_prediction",
        "background_l1", "foreground_l1",
    },
    "disagreement": {
        "class", "f_confidence_before", "g_confidence_before", "f_confidence", "g_confidence",
    },
    "neurons": {
        "neuron", "word", "activation_before", "activation", "max_other_activation",
        "dataset_max_activation",
    },
    "neuron-counterfactual": {
        "neuron", "direction", "activation_before", "activation", "background_before",
        "background_after", "class_confidence_before", "class_confidence", "foreground_l1",
    },
}  # fmt: skip
PHOTO = embedded.photos()[5]  # whatever it shows, it is a good photo
TARGET = "bag" if PHOTO.garment != "bag" else "boot"
CF = ["counterfactual", "--classifier", "embedded:clean"]
NCF = ["neuron-counterfactual", "--classifier", "embedded:spurious"]
NEURONS = ["neurons", "--classifier", "embedded:spurious"]
DISAGREE = ["disagree", "--f", "embedded:clean", "--g", "embedded:spurious", "--draws", "2"]


def run(*arguments) -> int:
    """The exit code, also where argparse ends the process."""
    try:
        return cli.main([str(a) for a in arguments])
    except SystemExit as error:
        return error.code
    finally:
        logging.getLogger("fastdigin").setLevel(logging.NOTSET)


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def check_record(record: dict, out: Path) -> None:
    """What issue 2 promises of every line."""
    assert record.keys() >= COMMON | KEYS[record["task"]]
    assert record["status"] in ("done", "failed")
    assert (record["status"] == "failed") == ("error" in record)
    for key in ("image", "initial_image", "input_image", "difference", "mask"):
        if record[key] is not None:
            assert not Path(record[key]).is_absolute() and ".." not in Path(record[key]).parts
            with Image.open(out / record[key]) as picture:
                assert picture.size == (64, 64)
    if record["status"] == "done":
        assert record["image"] and record["initial_image"]


def save_copy(path: Path, size: int = 64, mode: str = "RGB") -> Path:
    with Image.open(PHOTO.path) as photo:
        photo.convert(mode).resize((size, size)).save(path)
    return path


def words_file(path: Path, *words: str) -> Path:
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer candidates and shorter inversions than the defaults, for which there is no option."""
    from fastdigin.tasks import counterfactual as cf
    from fastdigin.tasks import neuron_counterfactual as ncf
    from fastdigin.tasks import neurons as neu

    less = {"injection_fractions": (0.5,), "blending_fractions": (0.5,), "null_text_steps": 1}
    monkeypatch.setattr(cf, "EMBEDDED", replace(cf.EMBEDDED, **less))
    monkeypatch.setattr(ncf, "EMBEDDED", replace(ncf.EMBEDDED, null_text_steps=1))
    monkeypatch.setattr(neu, "EMBEDDED", replace(neu.EMBEDDED, samples_per_word=2))


def test_counterfactual_stops_when_the_target_is_seen(tmp_path):
    """Whatever the image, its confidence is above a hair three times at the third evaluation."""
    out = tmp_path / "out"
    assert run(*CF, "embedded:pairs", "--limit", 1, "--stop-at", "1e-9", "--out", out,
               "--memory", "2GiB", "--slots", 1, "--steps", 2, "--iterations", 5) == 0  # fmt: skip
    (record,) = records(out)
    assert record["iterations"] == 2
    settings = json.loads((out / "run.json").read_text())["counterfactual"]
    assert settings["optimisation"]["early_stop"]["above"] == 1e-9


@pytest.mark.parametrize(
    ("option", "value"),
    [("--stop-at", "1.5"), ("--stop-at", "x"), ("--memory", "lots"), ("--memory", "1KiB"),
     ("--compile", "maybe")],
)  # fmt: skip
def test_bad_budgets_and_bounds(tmp_path, capsys, option, value):
    assert run(*CF, "embedded:pairs", "--limit", 1, option, value, "--out", tmp_path / "out",
               *QUICK) == 2  # fmt: skip
    assert option.lstrip("-") in capsys.readouterr().err


@pytest.fixture
def words(tmp_path):
    return words_file(tmp_path / "words.txt", "sneaker on grass", "bag")


# ---- what each command gives


def test_counterfactual(tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*CF, "embedded:pairs", "--limit", 2, "--seed", 7, "--json", "--out", out,
               "--slots", 2, *QUICK) == 0  # fmt: skip
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    written = records(out)
    assert printed == written and len(written) == 2
    for record, pair in zip(written, embedded.pairs(), strict=False):
        check_record(record, out)
        assert (record["source"], record["target"]) == (pair.source, pair.target)
        assert record["judge_prediction"] in embedded.GARMENTS
        assert record["seed"] == 7 and record["iterations"] == 1
        assert 0 <= record["target_confidence_before"] <= 1
    assert (out / "report.html").stat().st_size > 10_000


def test_options_of_a_counterfactual(tmp_path, capsys):
    out = tmp_path / "out"
    prompt = f"photo of the {PHOTO.garment} on grass"
    target, source = (embedded.GARMENTS.index(name) for name in (TARGET, PHOTO.garment))
    assert run(*CF, PHOTO.path, "--target", target, "--source", source, "--prompt", prompt,
               "--judge", "embedded:robust", "--regulariser", "pixels-l1:all:0.5",
               "--out", out, *QUICK) == 0  # fmt: skip
    (record,) = records(out)
    assert record["target"] == TARGET and record["source"] == PHOTO.garment
    assert record["prompt"] == prompt
    assert record["edited_prompt"] == f"photo of the {TARGET} on grass"
    settings = json.loads((out / "run.json").read_text())["counterfactual"]
    assert settings["judge"] == "embedded:robust"
    assert [r["kind"] for r in settings["regularisers"]] == ["pixels-l1"]
    captured = capsys.readouterr()
    assert "report:" in captured.out and PHOTO.id in captured.out
    assert "image/s" in captured.err or "s/image" in captured.err
    assert "Loading" not in captured.err


def test_source_as_an_index_is_called_by_its_name(tmp_path):
    index = embedded.GARMENTS.index(PHOTO.garment)
    out = tmp_path / "out"
    assert run(*CF, PHOTO.path, "--target", TARGET, "--source", index, "--out", out, *QUICK) == 0
    assert records(out)[0]["prompt"] == f"a photo of a {PHOTO.garment}"


def test_disagree(tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*DISAGREE, "--classes", "sneaker, 6,bag", "--seeds", 2, "--objective", "conf",
               "--f-weight", 1.5, "--json", "--out", out, *QUICK) == 0  # fmt: skip
    written = records(out)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == written
    assert [r["class"] for r in written] == ["sneaker", "sneaker", "bag", "bag"]  # 6 is bag
    assert len({r["id"] for r in written}) == 4
    assert len({r["seed"] for r in written[:2]}) == 2
    for record in written:
        check_record(record, out)
    settings = json.loads((out / "run.json").read_text())["disagreement"]
    assert (settings["objective"], settings["f_weight"], settings["draws"]) == ("conf", 1.5, 2)
    assert (out / "report.html").exists()


def test_neurons(tmp_path, words, capsys):
    out = tmp_path / "out"
    assert run(*NEURONS, "--neurons", "76,3, 076,9", "--limit", 2, "--words", words, "--per-neuron",
               2, "--direction", "min", "--images", PHOTO.path, "--json", "--out", out,
               *QUICK) == 0  # fmt: skip
    written = records(out)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == written
    assert [r["neuron"] for r in written] == [76, 76, 3, 3]
    for record in written:
        check_record(record, out)
        assert record["word"] in ("sneaker on grass", "bag") and record["direction"] == "min"
        assert record["max_other_activation"] is None or record["max_other_activation"] >= 0


def test_a_neuron_alone_has_no_others(tmp_path, words):
    out = tmp_path / "out"
    assert run(*NEURONS, "--neurons", 76, "--words", words, "--out", out, *QUICK) == 0
    (record,) = records(out)
    assert record["max_other_activation"] is None and record["dataset_max_activation"] > 0


def test_neurons_of_another_layer(tmp_path, words):
    from fastdigin.models.classifier import Classifier

    network = Classifier.load("embedded:spurious").network
    layer = next(name for name, m in network.named_modules() if type(m).__name__ == "Conv2d")
    common = [*NEURONS, "--neurons", 0, "--words", words, "--out", tmp_path / "out", *QUICK]
    assert run(*common, "--layer", layer) == 0
    assert run(*common) == 2  # the same folder does not take another layer's neurons


def test_neuron_counterfactual(tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*NCF, "embedded:photos", "--neuron", 76, "--direction", "min", "--limit", 2,
               "--json", "--out", out, *QUICK) == 0  # fmt: skip
    written = records(out)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == written
    assert len(written) == 2
    for record in written:
        check_record(record, out)
        assert record["neuron"] == 76 and record["direction"] == "min"
        assert {record["background_before"], record["background_after"]} <= {*embedded.BACKGROUNDS}
        assert 0 <= record["class_confidence"] <= 1


def test_info(capsys):
    assert run("info", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"fastdigin", "python", "torch", "devices", "attention"} <= facts.keys()
    assert "embedded:clean" in facts["embedded classifiers"]
    assert run("info") == 0
    assert facts["torch"] in capsys.readouterr().out


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from fastdigin import cli\n"
        "try: cli.main(['counterfactual', '--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for option in ("--classifier", "--target", "--source", "--prompt", "--out", "--limit"):
        assert option in result.stdout


@pytest.mark.parametrize("arguments", [[], ["explain"], ["counterfactual"], CF, ["disagree"]])
def test_usage_errors(arguments, capsys):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "usage:" in captured.err


# ---- bad input


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command that must be refused before anything is written; returns its one message."""

    def refused(*arguments, out=None):
        out = tmp_path / "refused" if out is None else out
        assert run(*arguments, "--out", out, *QUICK) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and "Traceback" not in captured.err
        if isinstance(out, Path) and out.is_dir():
            assert not list(out.iterdir())
        return captured.err

    return refused


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
    process = _process(*arguments, "--out", tmp_path / "out", env=offline)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2 and out == "" and "Traceback" not in err
    assert "'nobody/nothing-at-all' cannot be loaded" in err and "connection" in err
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


# ---- batches


def test_one_bad_image_fails_alone(tmp_path, capsys):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    save_copy(folder / "a.png")
    (folder / "b.png").write_text("broken")
    save_copy(folder / "c.jpg", size=128)
    arguments = [*CF, folder, "--target", TARGET, "--source", PHOTO.garment, "--json"]
    assert run(*arguments, "--out", out, *QUICK) == 1
    captured = capsys.readouterr()
    written = records(out)
    assert [json.loads(line) for line in captured.out.splitlines()] == written
    by_id = {r["id"]: r for r in written}
    assert set(by_id) == {f"{name}-to-{TARGET}" for name in "abc"}
    for record in written:
        check_record(record, out)
    failed = by_id[f"b-to-{TARGET}"]
    assert failed["status"] == "failed" and "b.png" in failed["error"]
    assert failed["image"] is None and failed["iterations"] == 0
    assert f"failed: b-to-{TARGET}" in captured.err
    assert "b.png" in (out / "report.html").read_text()

    # Mended, the failed job is done, and only that one.
    pictures = {r["image"]: (out / r["image"]).stat().st_mtime_ns
                for r in written if r["image"]}  # fmt: skip
    save_copy(folder / "b.png")
    assert run(*arguments, "--out", out, *QUICK) == 0
    (again,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert again["id"] == f"b-to-{TARGET}" and again["status"] == "done"
    assert pictures == {name: (out / name).stat().st_mtime_ns for name in pictures}
    assert len(records(out)) == 4


def test_a_failure_stays_a_failure_until_it_is_mended(tmp_path, capsys):
    """The second run finds nothing but the bad image: that is still 1, not bad usage."""
    good, bad, out = save_copy(tmp_path / "good.png"), tmp_path / "bad.png", tmp_path / "out"
    arguments = [*CF, good, bad, "--target", TARGET, "--out", out, *QUICK]
    assert run(*arguments) == 1 and run(*arguments) == 1
    assert [r["status"] for r in records(out)].count("done") == 1
    # An old failure of another image is not a failure of this run.
    assert run(*CF, good, "--target", TARGET, "--out", out, *QUICK) == 0


def test_finished_photos_are_not_needed_again(tmp_path):
    photo, out = save_copy(tmp_path / "a.png"), tmp_path / "out"
    other = save_copy(tmp_path / "b.png")
    arguments = [*CF, photo, other, "--target", TARGET, "--out", out, *QUICK]
    assert run(*arguments, "--limit", 1) == 0
    photo.unlink()
    assert run(*arguments) == 0
    assert [r["status"] for r in records(out)] == ["done", "done"]


def test_neuron_counterfactual_of_a_folder_with_a_bad_image(tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    save_copy(folder / "a.png")
    Image.new("RGB", (64, 32)).save(folder / "b.png")
    assert run(*NCF, folder, "--neuron", 76, "--direction", "max", "--out", out, *QUICK) == 1
    by_id = {r["id"]: r for r in records(out)}
    assert {id: r["status"] for id, r in by_id.items()} == {
        "a-neuron-76-max": "done", "b-neuron-76-max": "failed",
    }  # fmt: skip
    for record in by_id.values():
        check_record(record, out)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_table(tmp_path, monkeypatch, kind):
    """Paths are relative to the table, columns describe each image, the user's mask wins."""
    folder = tmp_path / "data"
    (folder / "photos").mkdir(parents=True)
    save_copy(folder / "photos" / "a.png", size=128)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 8:24] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    prompt = f'a photo, "old", of a {PHOTO.garment} on grass'
    rows = [
        {"image": "photos/a.png", "id": "first", "prompt": prompt, "source": PHOTO.garment,
         "target": TARGET, "mask": "mask.png"},
        {"image": "photos/a.png", "id": "", "prompt": "", "source": "", "mask": "",
         "target": embedded.GARMENTS.index(TARGET)},
    ]  # fmt: skip
    table = folder / f"table.{kind}"
    if kind == "csv":
        with table.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        table.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    assert run(*CF, f"data/table.{kind}", "--out", "out", *QUICK) == 0
    first, second = records(out)
    assert first["id"] == f"first-to-{TARGET}" and second["id"] == f"a-to-{TARGET}"
    assert first["prompt"] == prompt and first["target"] == second["target"] == TARGET
    assert np.array_equal(np.asarray(Image.open(out / first["mask"])), mask)
    assert not np.array_equal(np.asarray(Image.open(out / second["mask"])), mask)


def test_same_names_in_two_folders(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_copy(tmp_path / name / "x.png")
    save_copy(tmp_path / "two" / "x-2.png")
    out = tmp_path / "out"
    arguments = [*CF, tmp_path / "one", tmp_path / "two", "--target", TARGET, "--out", out, *QUICK]
    assert run(*arguments) == 0
    written = records(out)
    assert len({r["id"] for r in written}) == len(written) == 3
    assert len({r["image"] for r in written}) == 3
    assert run(*arguments) == 0 and len(records(out)) == 3


def test_strange_names_survive_escaped(tmp_path, capsys):
    """HTML, spaces, quotes, other scripts and other bytes in file names, ids and prompts."""
    names = ["<b>ü &amp; 'é' \"x\" 猫"]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"not utf-8 \xff"))
    photos = [save_copy(tmp_path / f"{name}.png") for name in names]
    prompt = f"a {PHOTO.garment} <i>& ü"
    out = tmp_path / "ö <out>"
    assert run(*CF, *photos, "--target", TARGET, "--source", PHOTO.garment, "--prompt", prompt,
               "--json", "--out", out, *QUICK) == 0  # fmt: skip
    written = records(out)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == written
    for name, record in zip(names, written, strict=True):
        check_record(record, out)
        assert record["id"] == f"{name}-to-{TARGET}" and record["prompt"] == prompt
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;ü &amp;amp; &#x27;é&#x27;" in page and "<b>ü" not in page


# ---- resuming


def test_resume_does_the_rest_only(tmp_path, capsys):
    out = tmp_path / "out"
    common = [*CF, "embedded:pairs", "--out", out, *QUICK]
    assert run(*common, "--limit", 1) == 0
    (first,) = records(out)
    picture = (out / first["image"]).stat()
    capsys.readouterr()
    assert run(*common, "--limit", 3, "--json") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    written = records(out)
    assert written[0] == first and len({r["id"] for r in written}) == len(written) == 3
    assert (out / first["image"]).stat().st_mtime_ns == picture.st_mtime_ns
    before = (out / "results.jsonl").read_bytes()
    assert run(*common, "--limit", 3) == 0
    assert (out / "results.jsonl").read_bytes() == before


def test_finished_neurons_are_not_searched_again(tmp_path, words, monkeypatch):
    from fastdigin.engine.engine import Engine

    common = [*NEURONS, "--words", words, "--out", tmp_path / "out", *QUICK]
    assert run(*common, "--neurons", 76) == 0
    monkeypatch.setattr(Engine, "evaluate", lambda *_: pytest.fail("searched again"))
    assert run(*common, "--neurons", 76) == 0


@pytest.mark.parametrize(
    "change",
    [
        ["--seed", "1"], ["--steps", "3"], ["--iterations", "2"], ["--judge", "embedded:clean"],
        ["--classifier", "embedded:robust"], ["--regulariser", "pixels-l2:all:1"],
    ],
)  # fmt: skip
def test_other_settings_are_refused(tmp_path, capsys, change):
    out = tmp_path / "out"
    common = [*CF, PHOTO.path, "--target", TARGET, "--out", out, *QUICK]
    assert run(*common) == 0
    before = (out / "results.jsonl").read_bytes()
    assert run(*common, *change) == 2
    assert "with other settings" in capsys.readouterr().err
    assert (out / "results.jsonl").read_bytes() == before


def test_another_image_of_the_same_name_is_refused(tmp_path, capsys):
    """Not silently taken for the one that is done."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    out = tmp_path / "out"
    one, two = tmp_path / "one" / "x.png", tmp_path / "two" / "x.png"
    save_copy(one)
    Image.open(embedded.photos()[9].path).save(two)
    common = ["--target", TARGET, "--source", PHOTO.garment, "--out", out, *QUICK]
    assert run(*CF, one, *common) == 0
    assert run(*CF, one, *common) == 0
    assert run(*CF, two, *common) == 2
    assert f"holds 'x-to-{TARGET}' of another image" in capsys.readouterr().err
    assert run(*CF, one, *common, "--prompt", f"a {PHOTO.garment}") == 2
    ncf = ["--neuron", 3, "--direction", "max", "--out", out, *QUICK]
    assert run(*NCF, one, *ncf) == 0
    assert run(*NCF, two, *ncf) == 2


def test_other_words_are_refused(tmp_path, words, capsys):
    common = [*NEURONS, "--neurons", 76, "--out", tmp_path / "out", *QUICK]
    assert run(*common, "--words", words) == 0
    assert run(*common, "--words", words_file(tmp_path / "other.txt", "boot")) == 2
    assert "words" in capsys.readouterr().err


def test_bad_input_does_not_spoil_the_folder(tmp_path):
    """A typing error must not bind the folder to the settings of a run that never was."""
    out = tmp_path / "out"
    assert run(*CF, tmp_path / "typo.png", "--target", TARGET, "--out", out, "--seed", 1) == 2
    assert run(*CF, PHOTO.path, "--target", TARGET, "--out", out, *QUICK) == 0


def test_no_judge_with_another_model(tmp_path):
    out = tmp_path / "out"
    model = ["--model", embedded.model_folder(), "--out"]
    common = [*CF, PHOTO.path, "--target", TARGET, *QUICK, *model]
    assert run(*common, out) == 0
    assert records(out)[0]["judge_prediction"] is None
    out = tmp_path / "judged"
    assert run(*common, out, "--judge", "embedded:judge") == 0
    assert records(out)[0]["judge_prediction"] in embedded.GARMENTS


def _process(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "fastdigin.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_process_keeps_its_streams_apart(tmp_path):
    """Real exit code; stdout is JSON and nothing else, also on a terminal of plain ASCII."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = _process(*CF, PHOTO.path, tmp_path / "nowhere.png", "--target", TARGET, "--json",
                       "--out", tmp_path / "out", *QUICK, env=environment)  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["failed", "done"]
    assert "counterfactual" in err and "Traceback" not in err and "Warning" not in err


@pytest.mark.slow
def test_a_killed_run_continues(tmp_path):
    out = tmp_path / "out"
    arguments = [*CF, "embedded:pairs", "--limit", 5, "--slots", 1, "--steps", 3, "--iterations", 2,
                 "--out", out]  # fmt: skip
    process = _process(*arguments)
    deadline = time.monotonic() + 200
    results = out / "results.jsonl"
    while not (results.exists() and results.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = records(out)
    assert 2 <= len(before) < 5
    with results.open("ab") as file:  # a line torn by the kill
        file.write(b'{"task": "counterfactual", "id": "torn')
    process = _process(*arguments)
    assert process.communicate(timeout=300) and process.returncode == 0
    after = records(out)
    assert after[: len(before)] == before
    assert len(after) == len({r["id"] for r in after}) == 5
    assert re.search(r"report", (out / "report.html").read_text())
