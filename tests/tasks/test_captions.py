"""Captions before inversion, and the table that may replace them."""

import csv
import json
from dataclasses import replace

import pytest
from captioners import save_captioner
from cli_commands import run
from PIL import Image

from fastdigin import datasets, embedded
from fastdigin.models.captioner import Captioner
from fastdigin.photos import ImageInput, collect, read_any_image
from fastdigin.storage import TensorCache
from fastdigin.tasks.captions import captioned, with_caption
from fastdigin.tasks.sources import read_photo

PHOTO = embedded.photos()[5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("git")
    save_captioner("git", folder)
    return folder


@pytest.fixture(scope="module")
def captioner(folder):
    return Captioner.load(str(folder))


def photos():
    """Four, of which the second has a prompt and the third a caption of its own."""
    inputs = [ImageInput(p.id, p.path, source=p.garment) for p in embedded.photos()[:4]]
    inputs[0] = replace(inputs[0], prompt=datasets.PROMPT)
    inputs[1] = replace(inputs[1], prompt="a photo of a {} on grass")
    inputs[2] = replace(inputs[2], caption="a table's own")
    return inputs


def test_photos_without_a_prompt_are_captioned(captioner):
    before, done = photos(), []
    after = captioned(before, captioner, on_progress=done.append)
    assert after[1:3] == before[1:3] and sum(done) == 4
    for n in (0, 3):
        (expected,) = captioner.captions([read_any_image(before[n])])
        assert after[n] == replace(before[n], caption=expected) and expected


def test_the_table_keeps_all_columns_and_the_middle_of_a_photo(
    folder, tmp_path, capsys, monkeypatch
):
    wide = tmp_path / "wide.png"
    with Image.open(PHOTO.path) as image:
        Image.new("RGB", (128, 64)).save(wide)
        image.save(tmp_path / "square.png")
    table = tmp_path / "t.csv"
    known = "a,square.png,boot,shoe,cowboy boot,bag"
    table.write_text(f"id,image,source,source_word,target_word,target\n{known}\n")
    assert run("caption", table, "--captions", folder, "--out", table, "--no-cache") == 0
    (row,) = csv.DictReader(table.open())
    assert (row["source_word"], row["target_word"]) == ("shoe", "cowboy boot")
    (item,) = collect([table])
    assert item.target_word == "cowboy boot" and item.source_word == "shoe"
    out, looked = tmp_path / "out.csv", []

    def look(self, images):
        looked.extend(tuple(image.shape) for image in images)
        return ["a shoe"] * len(images)

    monkeypatch.setattr(Captioner, "captions", look)
    assert run("caption", wide, "--crop", "--captions", folder, "--out", out, "--no-cache") == 0
    assert looked == [(3, 64, 64)], "its middle"
    bad = tmp_path / "caf\udce9.png"
    bad.write_bytes((tmp_path / "square.png").read_bytes())
    assert run("caption", bad, "--captions", folder, "--out", out, "--no-cache") == 2
    assert "no text: remove it" in capsys.readouterr().err


def test_captions_are_kept(captioner, tmp_path, monkeypatch):
    cache = TensorCache(tmp_path)
    first = captioned(photos(), captioner, cache=cache)
    monkeypatch.setattr(Captioner, "captions", lambda *_: pytest.fail("captioned again"))
    assert captioned(photos(), captioner, cache=cache) == first
    again = replace(photos()[3], source="bag")  # the same picture
    assert captioned([again], captioner, cache=cache)[0].caption == first[3].caption
    with pytest.raises(pytest.fail.Exception):
        captioned([replace(photos()[1], prompt=None)], captioner, cache=cache)


def test_what_cannot_be_read_or_said_stays_as_it_is(captioner, tmp_path, monkeypatch):
    (tmp_path / "bad.png").write_text("no image")
    bad = [ImageInput("bad", tmp_path / "bad.png"), ImageInput("none", tmp_path / "none.png")]
    assert captioned(bad, captioner, cache=TensorCache(tmp_path / "cache")) == bad
    monkeypatch.setattr(Captioner, "captions", lambda *_: [""])
    assert captioned(photos()[:1], captioner) == photos()[:1]


def test_as_much_of_a_caption_as_there_is_room_for(embedded):
    assert with_caption(embedded, "a boot", "on {} grass.") == "a boot, on grass"
    assert with_caption(embedded, "a boot", None) == with_caption(embedded, "a boot", " . ")
    long = with_caption(embedded, "a photo of a boot", ", ".join(["grass"] * 40))
    tokens = len(embedded.tokenizer(long).input_ids)
    assert embedded.text_length - 4 <= tokens <= embedded.text_length - 2
    assert long.startswith("a photo of a boot, grass") and not long.endswith(",")


def test_a_caption_follows_the_prompt(embedded, clean):
    item = ImageInput("x", PHOTO.path, source=PHOTO.garment, caption=f"my {PHOTO.garment}")
    photo = read_photo(embedded, clean, item)
    assert photo.prompt == f"a photo of a {PHOTO.garment}, my {PHOTO.garment}"
    assert item.fingerprint() != replace(item, caption="another").fingerprint()
    named = read_photo(embedded, clean, replace(item, prompt="one {}"))
    assert named.prompt.startswith(f"one {PHOTO.garment}, my")


def test_command_lines(folder, tmp_path, capsys):
    """A run with --captions, and one with the table that fastdigin caption writes: the same."""
    photo = next(p for p in embedded.photos() if p.garment != "bag")
    cache = ["--cache", tmp_path / "cache"]
    table = tmp_path / "photos.csv"
    assert run("caption", photo.path, "--captions", folder, "--out", table, *cache) == 0
    (row,) = csv.DictReader(table.open(encoding="utf-8"))
    assert row["id"] == photo.id and row["caption"] and "prompt" not in row
    assert collect([str(table)])[0].caption == row["caption"]
    quick = ["--classifier", "embedded:clean", "--target", "bag", "--source", photo.garment,
             "--steps", 2, "--iterations", 0, "--json", *cache]  # fmt: skip
    capsys.readouterr()
    prompts = []
    for images, options in ((photo.path, ["--captions", folder]), (table, [])):
        out = tmp_path / f"out-{len(prompts)}"
        assert run("counterfactual", images, *options, *quick, "--out", out) == 0
        prompts.append(json.loads(capsys.readouterr().out)["prompt"])
    assert prompts[0] == prompts[1]
    assert prompts[0].startswith(f"a photo of a {photo.garment}, {row['caption'].split()[0]}")
    assert run("counterfactual", photo.path, "--captions", tmp_path, *quick) == 2
    assert "captioner" in capsys.readouterr().err
    assert run("caption", photo.path, "--captions", folder, "--out", tmp_path / "x.txt") == 2
    assert "x.txt' must end in .csv" in capsys.readouterr().err
