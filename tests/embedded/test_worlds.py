"""Worlds: what is drawn, trained, written, and loaded again by name."""

from __future__ import annotations

import json

import pytest
import torch

from fastdigin.embedded import GARMENTS, worlds
from fastdigin.embedded.scenes import FEATURES, Shortcut
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier

TINY = worlds.Recipe(scenes=128, epochs=1, decoded=0.02, test_scenes=16)


def test_shortcuts_are_drawn_by_the_seed():
    drawn = [worlds.draw_shortcuts(seed) for seed in range(200)]
    assert drawn == [worlds.draw_shortcuts(seed) for seed in range(200)]
    assert {len(shortcuts) for shortcuts in drawn} == {1, 2, 3}
    for shortcuts in drawn:
        assert len({s.garment for s in shortcuts}) == len({s.feature for s in shortcuts})
        assert len({s.garment for s in shortcuts}) == len(shortcuts)
        for s in shortcuts:
            assert s.garment in GARMENTS and s.feature in FEATURES[s.attribute]
            assert 0.70 <= s.strength <= 0.99
    attributes = [s.attribute for shortcuts in drawn for s in shortcuts]
    assert 0.4 < attributes.count("background") / len(attributes) < 0.6


def test_a_world_is_trained_written_and_loaded(world, tmp_path):
    shortcuts = (Shortcut("bag", "colour", "red", 0.9),)
    autoencoder = worlds.load_autoencoder()
    for name in ("one", "two"):
        worlds.train_world(world, autoencoder, shortcuts, tmp_path / name, 7, TINY)
    told = json.loads((tmp_path / "one" / "world.json").read_text())
    assert told["seed"] == 7 and told["shortcuts"][0]["feature"] == "red"
    assert -1 <= told["shortcuts"][0]["effect"] <= 1
    assert worlds.read_world(tmp_path / "one") == shortcuts
    one, two = (Classifier.load(f"embedded:{tmp_path / name}") for name in ("one", "two"))
    assert one.classes == GARMENTS
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(one.logits(images), two.logits(images))


def test_shortcuts_are_parsed_or_refused(tmp_path, capsys):
    assert worlds.parse_shortcut("boot:red:0.8") == Shortcut("boot", "colour", "red", 0.8)
    for text in ("boot", "boot:red:x", "boot:red:1.2", "boot:pink:0.9", "hat:red:0.9"):
        with pytest.raises(UserError, match="GARMENT:FEATURE:STRENGTH"):
            worlds.parse_shortcut(text)
    assert worlds.main(["--out", str(tmp_path)]) == 2
    assert "--count" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds no world"):
        worlds.read_world(tmp_path)


def test_a_name_that_is_no_folder_lists_the_names(tmp_path):
    with pytest.raises(UserError, match="The names: background"):
        Classifier.load(f"embedded:{tmp_path}")
