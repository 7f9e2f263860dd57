"""Searching photos: against cosines computed by hand."""

import json

import pytest
import torch
from photos import photo

from fastdigin.cli import main
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.photos import ImageInput
from fastdigin.retrieval import find_similar, photo_files


def test_ranks_by_cosine(folder, judge, spurious, query, by_hand):
    photos = photo_files([str(folder)])
    assert [p.id for p in photos][:2] == ["class-0/00.png", "class-0/03.png"]
    found = find_similar(query, photos, judge, [spurious], top=5)
    with torch.no_grad():
        target = judge.activations(query.image[None])[0]
    cosines = {
        id: float(torch.cosine_similarity(activations, target, dim=0))
        for id, activations in by_hand(judge).items()
    }
    expected = sorted(cosines, key=cosines.get, reverse=True)[:5]
    assert [m.photo.id for m in found.matches] == expected
    for match in found.matches:
        assert match.similarity == pytest.approx(cosines[match.photo.id], abs=1e-5)
    assert found.compared == 12 and not found.unreadable


def test_labels(folder, judge, spurious, query):
    found = find_similar(query, photo_files([str(folder)]), judge, [spurious], top=3)
    with torch.no_grad():
        p = spurious.probabilities(query.image[None])[0]
    assert found.asked == spurious.classes[int(p.argmax())]
    assert found.query[spurious.name].confidence == pytest.approx(float(p.max()))
    labels = [match.labels[spurious.name] for match in found.matches]
    assert sum(share for _, share in found.shares(spurious.name)) == pytest.approx(1)
    mean = sum(label.asked for label in labels) / 3
    assert found.mean_asked(spurious.name) == pytest.approx(mean)
    backgrounds = Classifier.load("embedded:background")  # knows other classes
    found = find_similar(query, photo_files([str(folder)]), judge, [spurious, backgrounds], top=2,
                         asked="boot")  # fmt: skip
    assert found.asked == "boot" and found.mean_asked(backgrounds.name) is None
    assert found.matches[0].labels[spurious.name].asked is not None
    with pytest.raises(UserError, match="'bot' is not a class of .*did you mean 'boot"):
        find_similar(query, photo_files([str(folder)]), judge, [spurious, backgrounds], asked="bot")


def test_a_query_that_cannot_be_read(folder, tmp_path, judge):
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(UserError, match="bad.png' cannot be read"):
        find_similar(ImageInput("q", tmp_path / "bad.png"), photo_files([str(folder)]), judge)


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
