"""What users type by habit or by mistake is understood, or refused by name."""

import json
import os

import numpy as np
import pytest
import torch
from cli_commands import (
    CF,
    DISAGREE,
    NCF,
    NEURONS,
    PHOTO,
    QUICK,
    TARGET,
    records,
    run,
    save_copy,
    start_process,
)

import fastdigin as fd
from fastdigin.commands.options import list_of

TO_TARGET = ["--target", TARGET]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([*CF, PHOTO.path, *TO_TARGET, "--out", ""], "--out: must name something, got ''"),
        ([*CF, PHOTO.path, *TO_TARGET, "--cache", " "], "--cache: must name something"),
        ([*CF, "", *TO_TARGET], "IMAGES: must name something, got ''"),
        ([*CF, PHOTO.path, "", *TO_TARGET], "IMAGES: must name something"),
        (["status", ""], "DIR: must name something"),
        (["activating", "", "--classifier", "embedded:clean", "--neurons", 3], "PHOTOS: must name"),
        ([*CF, PHOTO.path, *TO_TARGET, "--seed", 2**32], "below 4294967296, got '4294967296'"),
        ([*CF, PHOTO.path, *TO_TARGET, "--stop-at", 1], "above 0 and below 1, got '1'"),
        ([*CF, PHOTO.path, *TO_TARGET, "--blending-fractions", "0.5,2"], "from 0 to 1, got 2.0"),
        ([*DISAGREE, "--classes", "bag", "--g", "embedded:clean"], "f and g are both embedded:cle"),
    ],
)
def test_what_is_refused(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["1,,1, 1", "1", " 1 ,1,", "01,1"])
def test_neurons_that_are_named_twice(text, tmp_path, words):
    assert run(*NEURONS, "--neurons", text, "--words", words, "--out", tmp_path, *QUICK) == 0
    assert [r["neuron"] for r in records(tmp_path)] == [1]
    assert list_of(int)(text)[0] == 1


def test_more_photos_than_there_are(tmp_path, capsys):
    for name in "abc":
        save_copy(tmp_path / f"{name}.png")
    out = ["--out", tmp_path / "out", "--no-cache", "--json"]
    common = [tmp_path, "--classifier", "embedded:clean", "--neurons", "3"]
    assert run("activating", *common, "--top", 10**9, *out) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    search = ["search", PHOTO.path, tmp_path, "--embedding", "embedded:judge"]
    assert run(*search, "--top", 10**12, *out) == 0


@pytest.mark.slow
def test_an_environment_of_nonsense(tmp_path, monkeypatch):
    """Threads that are no number and no home: the packaged model works all the same."""
    environment = {
        "PATH": "/usr/bin", "OMP_NUM_THREADS": "garbage", "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "FASTDIGIN_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    process = start_process(
        *CF, PHOTO.path, *TO_TARGET, *QUICK, "--out", tmp_path / "out", "--attention", "sdpa",
        "--compile", "off", env=environment,
    )  # fmt: skip
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said


@pytest.mark.parametrize(
    "line, text",
    [
        (2, '{"image": "a.png", "goal": 3}'),
        (3, "[1, 2]"),
        (4, "{"),
        (5, "[" * 100_000 + "]" * 100_000),
        (6, '{"image": "a.png", "id": NaN, "mask": []'),
    ],
)
def test_an_error_in_a_jsonl_names_the_line_of_the_file(line, text, tmp_path, capsys):
    table = tmp_path / "table.jsonl"
    good = json.dumps({"image": str(PHOTO.path)})
    table.write_text("\n".join([good, *[""] * (line - 2), text, good]))
    assert run(*CF, table, *TO_TARGET, "--out", tmp_path / "out") == 2
    assert f"line {line}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "row",
    [
        {"image": "a\0b.png"},
        {"image": "\ud800.png"},
        {"prompt": "a photo of a {} \udcff"},
        {"prompt": "a photo\0 of a {}"},
        {"caption": "on \ud83d grass"},
        {"source": "bo\0ot"},
        {"target": "ba\udc00g"},
        {"mask": "no\0mask.png"},
        {"id": "\0"},
    ],
    ids=lambda row: next(iter(row)),
)
def test_characters_that_are_no_text_fail_alone(row, tmp_path, capsys):
    """In the middle of a table; an id may be any text."""
    table, out = tmp_path / "table.jsonl", tmp_path / "out"
    good = {"image": str(PHOTO.path), "source": PHOTO.garment, "target": TARGET}
    rows = [good | {"id": "one"}, good | row, good | {"id": "two"}]
    table.write_text("\n".join(map(json.dumps, rows)))
    refused = "target" in row
    code = run(*CF, table, "--out", out, *QUICK, "--json")
    if refused:  # no class of the classifier: a mistake in the table, before any work
        assert code == 2 and "is not a class" in capsys.readouterr().err
        return
    assert code == ("id" not in row)
    status = {r["id"].split("-to-")[0]: r["status"] for r in records(out)}
    assert status["one"] == status["two"] == "done" and len(status) == 3


@pytest.mark.parametrize("index", [True, 7.9, float("nan"), 5.0, None, [5]])
def test_what_is_no_class_index(clean_classifier, index):
    with pytest.raises(fd.UserError, match="neither a name nor a whole number"):
        clean_classifier.class_index(index)


def test_class_indices(clean_classifier):
    for index in (5, np.int64(5), torch.tensor(5), "5", "sneaker"):
        assert clean_classifier.class_index(index) == 5


@pytest.fixture(scope="module")
def clean_classifier():
    return fd.Classifier.load("embedded:clean")


@pytest.mark.parametrize("model", ["./nowhere/model", "nowhere", "~/model", "/nowhere/model"])
def test_no_hint_to_download_what_is_a_path(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*NCF, PHOTO.path, "--neuron", 3, "--direction", "max", "--model", model) == 2
    said = capsys.readouterr().err
    assert model in said and "hf download" not in said
