"""A neuron's most activating photos: against all activations computed by hand."""

import json

import pytest
import torch

import fastdigin as fd
from fastdigin.cli import main
from fastdigin.errors import UserError
from fastdigin.retrieval import features, most_activating, photo_files

NEURONS = [3, 76, 5]


@pytest.mark.parametrize("neurons", [NEURONS, [0, 2]], ids=["penultimate", "convolution"])
def test_equals_sorting_all_photos(folder, spurious, by_hand, neurons, monkeypatch):
    monkeypatch.setattr(features, "LARGEST_BLOCK", 5)
    if neurons != NEURONS:
        convolution = next(
            name for name, m in spurious.network.named_modules() if isinstance(m, torch.nn.Conv2d)
        )
        spurious = spurious.at_layer(convolution)
    expected = by_hand(spurious)
    found = most_activating(spurious, neurons, photo_files([str(folder)]), top=4)
    assert found.seen == 12 and not found.unreadable and list(found.top) == neurons
    for neuron in neurons:
        order = sorted(expected, key=lambda id, n=neuron: expected[id][n], reverse=True)
        assert [p.id for _, p in found.top[neuron]] == order[:4]
        values = [float(expected[id][neuron]) for id in order]
        assert [v for v, _ in found.top[neuron]] == pytest.approx(values[:4], rel=1e-4)
        assert found.ranges[neuron] == pytest.approx((values[-1], values[0]), rel=1e-4)


def test_the_fingerprint_tells_data_sets_apart(folder, spurious):
    photos = photo_files([str(folder)])
    prints = {
        most_activating(spurious, [3], part).fingerprint
        for part in (photos, photos[:11], [photos[0]], photos)
    }
    assert len(prints) == 3


def test_planted_neurons_are_activated_by_their_background(spurious):
    """The packaged claim: grass activates the first of its neurons."""
    from fastdigin import embedded

    (neuron, *_) = embedded.planted_neurons()["grass"]
    found = most_activating(spurious, [neuron], photo_files(["embedded:photos"]), top=5)
    assert all("grass" in p.id for _, p in found.top[neuron])


def test_errors(folder, spurious):
    photos = photo_files([str(folder)])
    with pytest.raises(UserError, match="neuron 99999 does not exist: .* has neurons 0 to"):
        most_activating(spurious, [99999], photos)
    with pytest.raises(UserError, match="neurons is empty"):
        most_activating(spurious, [], photos)


def test_command_line(folder, tmp_path, capsys):
    bad = tmp_path / "<b>bad.png"
    bad.write_text("no image")
    common = ["activating", str(folder), "--classifier", "embedded:spurious", "--neurons", "76,3",
              "--top", "2", "--cache", str(tmp_path / "cache"), "--out",
              str(tmp_path / "out")]  # fmt: skip
    assert main(common) == 0
    printed = capsys.readouterr()
    assert "12 photos looked at" in printed.out and "12/12" in printed.err
    page = (tmp_path / "out" / "activating.html").read_text()
    assert page.count("<figure>") == 4 and "Neuron 76" in page
    assert main([*common[:2], str(bad), *common[2:], "--json"]) == 1
    printed = capsys.readouterr()
    records = [json.loads(line) for line in printed.out.splitlines()]
    assert [(r["neuron"], r["rank"]) for r in records] == [(76, 1), (76, 2), (3, 1), (3, 2)]
    assert records[0]["activation"] >= records[1]["activation"] and records[0]["seen"] == 12
    assert (tmp_path / "out" / "activating.jsonl").read_text() == printed.out
    assert "left out: image" in printed.err
    page = (tmp_path / "out" / "activating.html").read_text()
    assert "&lt;b&gt;bad" in page and "<b>bad" not in page
    for wrong, words in (
        (["--neurons", "x"], "neuron x does not exist"),
        (["--layer", "nolayer"], "layer 'nolayer'"),
        (["--top", "0"], "top must be at least 1"),
        (["--out", str(bad)], "cannot be written"),
    ):
        assert main([*common, *wrong]) == 2
        assert words in capsys.readouterr().err


def test_is_in_the_library():
    assert fd.most_activating is most_activating and fd.photo_files is photo_files
