"""What searching and activating share: photos stream in blocks, through a cache."""

import os

import pytest
import torch
from photos import photo
from torch import nn

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.retrieval import features, photo_files
from fastdigin.storage import TensorCache


def test_what_was_cut_off_goes_on(folder, tmp_path, look, counted):
    cache, photos, done = TensorCache(tmp_path / "cache"), photo_files([str(folder)]), []

    def stop(count):
        done.append(count)
        if sum(done) >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(photos, cache=cache, on_progress=stop)
    counted.clear()
    resumed = look(photos, cache=cache)
    assert sum(counted) == 4, "two of the three blocks were kept"
    assert resumed == look(photos)
    counted.clear()
    assert look(photos, cache=cache) == resumed and counted == []
    look(photos, Classifier.load("embedded:robust"), cache=cache)
    assert sum(counted) == 12, "another network"


@pytest.mark.parametrize("change", ["mean", "activation function"])
def test_what_weights_do_not_tell_is_looked_at_anew(folder, tmp_path, look, counted, change):
    cache, photos = TensorCache(tmp_path / "cache"), photo_files([str(folder)])
    first, other = (Classifier.load("embedded:judge") for _ in range(2))
    before = look(photos, first, cache=cache)
    if change == "mean":
        options = {"size": other.size, "std": (0.25,) * 3, "classes": other.classes}
        other = Classifier(other.network, mean=(0.1, 0.5, 0.5), **options)
    else:
        name = next(n for n, m in other.network.named_modules() if isinstance(m, nn.GELU))
        other.network.set_submodule(name, nn.SiLU())
    assert look(photos, other, cache=cache) == look(photos, other) != before


def test_names_that_are_not_utf_8(folder, look):
    name = os.fsdecode(b"caf\xe9.png")
    photo(64, 64, seed=41).save(folder / name)
    _, count, _ = look(photo_files([str(folder)]))
    assert count == 13


def test_changed_photos_are_looked_at_anew(folder, tmp_path, look, counted):
    cache = TensorCache(tmp_path / "cache")
    before = look(photo_files([str(folder)]), cache=cache)
    changed = folder / "class-2" / "11.png"
    photo(64, 64, seed=40).save(changed)
    os.utime(changed, (1, 1))
    counted.clear()
    after = look(photo_files([str(folder)]), cache=cache)
    assert sum(counted) == 4, "its block"
    assert after != before and after == look(photo_files([str(folder)]))


def test_unreadable_photos_are_named_also_from_the_cache(folder, tmp_path, look):
    (folder / "class-2" / "05.png").write_text("no image")
    cache = TensorCache(tmp_path / "cache")
    for _ in range(2):
        _, seen, unreadable = look(photo_files([str(folder)]), cache=cache)
        assert list(unreadable) == ["class-2/05.png"] and seen == 11
        assert "read" in unreadable["class-2/05.png"]


def test_the_best_equal_sorting_all_with_the_earlier_of_equals_first():
    values = torch.randint(0, 20, (60,), generator=torch.Generator().manual_seed(0)).float()
    best = []
    for start in range(0, 60, 13):
        part = values[start : start + 13]
        best = features.best_of(7, best, range(start, start + len(part)), part)
    order = values.argsort(descending=True, stable=True)[:7]
    assert best == [(float(values[i]), int(i)) for i in order]


def test_errors(folder, tmp_path, look):
    with pytest.raises(UserError, match="top must be at least 1, got 0"):
        look(photo_files([str(folder)]), top=0)
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(UserError, match="none of the 1 photos can be read"):
        look(photo_files([str(tmp_path / "bad.png")]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="and its subfolders hold no images"):
        photo_files([str(tmp_path / "empty")])


def test_subfolders_that_may_not_be_read_are_named(tmp_path, monkeypatch):
    """As a reader without the right to: skipped photos would change what a neuron likes most."""
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (tmp_path / "deep" / "closed").mkdir(parents=True)
    (tmp_path / "a.png").write_bytes(b"not opened here")
    assert [photo.id for photo in photo_files([str(tmp_path)])] == ["a.png"]
    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=r"deep/closed' cannot be read \(Permission denied\)"):
        photo_files([str(tmp_path)])
