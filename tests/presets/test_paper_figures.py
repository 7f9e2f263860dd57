"""Presets of the paper's figures, end to end without network, on stand-in folders and models."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from cli_commands import records, run
from clip_vocabulary import clip_tokenizer
from families import save_family
from PIL import Image

from fastdigin import embedded
from fastdigin_bench import figure4

QUICK = ["--steps", "2", "--iterations", "1", "--slots", "2", "--compile", "off", "--no-cache"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Stable Diffusion 1 that reads phrases as the real one does."""
    folder = tmp_path_factory.mktemp("sd1")
    return save_family("sd1", folder, clip_tokenizer(folder / "clip"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of FFHQ's layout with two photos in it."""
    folder = tmp_path_factory.mktemp("ffhq") / "thumbnails128x128" / "00000"
    folder.mkdir(parents=True)
    for number, photo in enumerate(embedded.photos()[:2]):
        shutil.copy(photo.path, folder / f"{number:05}.png")
    return folder


def row(page):
    """(label, note) of the pictures of the page's first row of one photo."""
    shown = re.search(r'<div class="pictures row">(.*?)</div>', page, re.DOTALL).group(1)
    return re.findall(r"<figcaption>(\w+) <span>(.*?)</span>", shown)


def test_an_attribute_of_ffhq_is_swapped_by_phrase(
    model, photos, clip_folder, tmp_path, no_network, capsys
):
    arguments = [
        "counterfactual", f"ffhq:{photos.parents[1]}", "--preset", "paper-uvce-ffhq", "--model",
        model, "--classifier", f"open_clip:{clip_folder}", "--null-text-steps", "1",
    ]  # fmt: skip
    assert run(*arguments, *QUICK, "--out", tmp_path / "out") == 0
    assert "attention alone finds the foreground" in capsys.readouterr().err
    found = records(tmp_path / "out")
    assert [one["status"] for one in found] == ["done", "done"]
    assert found[0]["source"] == "person wearing glasses"
    assert found[0]["prompt"] == "a photograph of a person wearing glasses"
    assert found[0]["edited_prompt"] == "a photograph of a person without glasses"


def test_four_neurons_make_figure_3(model, photos, tmp_path, no_network, capsys):
    (tmp_path / "words.txt").write_text("boot\nbag\n")
    arguments = [
        "neurons", "--preset", "paper-neurons", "--model", model, "--classifier",
        "embedded:spurious", "--neurons", "3,17,30,41", "--images", photos, "--words",
        tmp_path / "words.txt", "--samples-per-word", "1",
    ]  # fmt: skip
    assert run(*arguments, *QUICK, "--out", tmp_path / "out") == 0
    for record in records(tmp_path / "out"):
        assert list(record["cross_activations"]) == ["3", "17", "30", "41"]
    page = (tmp_path / "out" / "report.html").read_text()
    cells = re.search(r'<table class="cross">.*?</table>', page, re.DOTALL).group().count("<td")
    assert cells == 16


def test_a_neuron_raised_and_lowered_makes_a_row_of_figure_4(
    model, photos, tmp_path, no_network, capsys
):
    arguments = [
        "neuron-counterfactual", photos, "--preset", "paper-neuron-counterfactual", "--model",
        model, "--classifier", "embedded:spurious", "--neuron", "3", "--null-text-steps", "1",
    ]  # fmt: skip
    assert run(*arguments, *QUICK, "--limit", "1", "--out", tmp_path / "out", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(line["direction"] for line in lines) == ["max", "min"]
    shown = row((tmp_path / "out" / "report.html").read_text())
    assert [label for label, _ in shown] == ["max", "photo", "min"]
    by_direction = {line["direction"]: line for line in lines}
    notes = [by_direction["max"]["activation"], lines[0]["activation_before"],
             by_direction["min"]["activation"]]  # fmt: skip
    assert [float(note) for _, note in shown] == pytest.approx(notes, rel=0.01)
    command = [str(tmp_path / "out"), "--classifier", "embedded:spurious"]
    assert figure4.main(command) == 0
    (told,) = json.loads(capsys.readouterr().out)
    ours = [told["activations"][column] for column in ("max", "photo", "min")]
    assert ours == pytest.approx(notes, rel=0.01) and told["neuron"] == 3
    high, low = (told["activations"][f"attack, {way}"] for way in ("max", "min"))
    assert low < notes[1] < high or low == notes[1] == 0 < high
    with Image.open(tmp_path / "out" / "figure4.png") as sheet:
        assert sheet.width > 5 * 144
    assert figure4.main([str(tmp_path), *command[1:]]) == 2
    assert "raised and lowered" in capsys.readouterr().err
