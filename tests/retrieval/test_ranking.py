"""Searching photos: against cosines computed by hand, and resumed from the cache."""

import json
import os

import pytest
import torch
from photos import as_tensor, photo

import fastdigin as fd
from fastdigin.cli import main
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.retrieval import features, find_similar, load_embedding, photo_files
from fastdigin.storage import TensorCache
from fastdigin.tasks.inputs import ImageInput


@pytest.fixture(scope="module")
def judge():
    return load_embedding("embedded:judge")


@pytest.fixture(scope="module")
def clean():
    return Classifier.load("embedded:clean")


@pytest.fixture
def folder(tmp_path):
    """Twelve photos of several shapes, some in subfolders."""
    root = tmp_path / "photos"
    for number in range(12):
        file = root / f"class-{number % 3}" / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        photo(60 + number, 70, seed=number).save(file)
    return root


@pytest.fixture
def counted(judge, monkeypatch):
    """How many photos went through the network; the query is not one of them."""
    seen = []
    whole = features.embed

    def embed(network, prepared):
        seen.append(len(prepared))
        return whole(network, prepared)

    monkeypatch.setattr(features, "embed", embed)
    return seen


def query(seed=4):
    return ImageInput("query", as_tensor(photo(64, 64, seed=seed))[0])


@torch.no_grad()
def unit_features(judge, image_b3hw):
    return torch.nn.functional.normalize(judge.activations(image_b3hw), dim=1)[0]


def test_ranks_by_cosine(folder, judge, clean):
    photos = photo_files([str(folder)])
    assert [p.id for p in photos][:2] == ["class-0/00.png", "class-0/03.png"]
    found = find_similar(query(), photos, judge, [clean], top=5)
    target = unit_features(judge, as_tensor(photo(64, 64, seed=4)))
    cosines = {
        f"class-{n % 3}/{n:02d}.png":
            float(unit_features(judge, as_tensor(photo(60 + n, 70, seed=n))) @ target)
        for n in range(12)
    }  # fmt: skip
    expected = sorted(cosines, key=cosines.get, reverse=True)[:5]
    assert [m.photo.id for m in found.matches] == expected
    for match in found.matches:
        assert match.similarity == pytest.approx(cosines[match.photo.id], abs=1e-5)
    assert found.compared == 12 and not found.unreadable


def test_labels(folder, judge, clean):
    found = find_similar(query(), photo_files([str(folder)]), judge, [clean], top=3)
    with torch.no_grad():
        p = clean.probabilities(as_tensor(photo(64, 64, seed=4)))[0]
    assert found.asked == clean.classes[int(p.argmax())]
    assert found.query[clean.name].confidence == pytest.approx(float(p.max()))
    labels = [match.labels[clean.name] for match in found.matches]
    assert sum(share for _, share in found.shares(clean.name)) == pytest.approx(1)
    mean = sum(label.asked for label in labels) / 3
    assert found.mean_asked(clean.name) == pytest.approx(mean)
    backgrounds = Classifier.load("embedded:background")  # knows other classes
    found = find_similar(query(), photo_files([str(folder)]), judge, [clean, backgrounds], top=2,
                         asked="boot")  # fmt: skip
    assert found.asked == "boot" and found.mean_asked(backgrounds.name) is None
    assert found.matches[0].labels[clean.name].asked is not None
    with pytest.raises(UserError, match="'bot' is not a class of .*did you mean 'boot"):
        find_similar(query(), photo_files([str(folder)]), judge, [clean, backgrounds], asked="bot")


def test_cached_embeddings_are_not_made_again(folder, tmp_path, judge, counted):
    cache, photos = TensorCache(tmp_path / "cache"), photo_files([str(folder)])
    first = find_similar(query(), photos, judge, cache=cache)
    assert sum(counted) == 12
    counted.clear()
    again = find_similar(query(), photos, judge, cache=cache)
    assert sum(counted) == 0
    assert [(m.photo, m.similarity) for m in again.matches] == [
        (m.photo, m.similarity) for m in first.matches
    ]
    counted.clear()
    find_similar(query(), photos, load_embedding("embedded:robust"), cache=cache)
    assert sum(counted) == 12  # another network


def test_a_broken_search_goes_on(folder, tmp_path, judge, counted, monkeypatch):
    monkeypatch.setattr(features, "LARGEST_BLOCK", 4)
    cache, photos = TensorCache(tmp_path / "cache"), photo_files([str(folder)])
    done = 0

    def stop(count):
        nonlocal done
        done += count
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_similar(query(), photos, judge, cache=cache, on_progress=stop)
    counted.clear()
    found = find_similar(query(), photos, judge, cache=cache)
    assert sum(counted) == 4 and found.compared == 12


def test_changed_and_added_photos_are_embedded_anew(folder, tmp_path, judge, counted, monkeypatch):
    monkeypatch.setattr(features, "LARGEST_BLOCK", 4)
    cache = TensorCache(tmp_path / "cache")
    find_similar(query(), photo_files([str(folder)]), judge, cache=cache)
    changed = folder / "class-2" / "11.png"
    photo(64, 64, seed=4).save(changed)
    os.utime(changed, (1, 1))
    counted.clear()
    found = find_similar(query(), photo_files([str(folder)]), judge, cache=cache, top=1)
    assert sum(counted) == 4  # its block
    assert found.matches[0].photo.image == changed
    assert found.matches[0].similarity == pytest.approx(1, abs=1e-5)


def test_unreadable_photos_are_named_also_from_the_cache(folder, tmp_path, judge):
    (folder / "class-2" / "05.png").write_text("no image")
    cache = TensorCache(tmp_path / "cache")
    for _ in range(2):
        found = find_similar(query(), photo_files([str(folder)]), judge, cache=cache)
        assert list(found.unreadable) == ["class-2/05.png"]
        assert found.compared == len(found.matches) == 11
        assert "read" in found.unreadable["class-2/05.png"]


def test_errors(folder, tmp_path, judge):
    with pytest.raises(UserError, match="top must be at least 1"):
        find_similar(query(), photo_files([str(folder)]), judge, top=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="and its subfolders hold no images"):
        photo_files([str(tmp_path / "empty")])
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    with pytest.raises(UserError, match="none of the 1 photos can be read"):
        find_similar(query(), photo_files([str(bad)]), judge)
    with pytest.raises(UserError, match="bad.png' cannot be read"):
        find_similar(ImageInput("q", bad), photo_files([str(folder)]), judge)


def test_command_line(folder, tmp_path, capsys):
    image = tmp_path / "<b>query.png"
    photo(64, 64, seed=4).save(image)
    common = ["search", str(image), str(folder), "--embedding", "embedded:judge",
              "--classifier", "embedded:clean", "--classifier", "embedded:robust",
              "--top", "3", "--class", "bag", "--cache", str(tmp_path / "cache")]  # fmt: skip
    assert main([*common, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "class-1/04.png" in printed.out and "12 photos compared" in printed.out
    assert "12/12" in printed.err  # progress
    page = (tmp_path / "out" / "search.html").read_text()
    assert "&lt;b&gt;query.png" in page and "<b>query" not in page
    assert page.count("<img src=") >= 4 and "mean confidence in bag" in page
    (folder / "broken.png").write_text("no image")
    assert main([*common, "--out", str(tmp_path / "out"), "--json"]) == 1
    printed = capsys.readouterr()
    head, *matches = [json.loads(line) for line in printed.out.splitlines()]
    assert head["compared"] == 12 and list(head["unreadable"]) == ["broken.png"]
    assert "broken.png" in printed.err
    assert [m["rank"] for m in matches] == [1, 2, 3] and matches[0]["photo"] == "class-1/04.png"
    assert set(head["classifiers"]) == {"embedded:clean", "embedded:robust"}
    assert (tmp_path / "out" / "search.jsonl").read_text() == printed.out


def test_is_in_the_library():
    assert fd.find_similar is find_similar and fd.load_embedding is load_embedding
