"""A neuron's most activating photos: against all activations computed by hand."""

import json

import pytest

from fastdigin.cli import main
from fastdigin.errors import UserError
from fastdigin.retrieval import features, most_activating, photo_files


@pytest.mark.parametrize("layer", [None, "features.0"])
def test_equals_sorting_all_photos(folder, spurious, by_hand, layer, monkeypatch):
    monkeypatch.setattr(features, "LARGEST_BLOCK", 5)
    network = spurious.at_layer(layer) if layer else spurious
    expected, neurons = by_hand(network), [3, 26, 5]
    found = most_activating(network, neurons, photo_files([str(folder)]), top=4)
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
        (["--out", str(bad)], "cannot be written"),
    ):
        assert main([*common, *wrong]) == 2
        assert words in capsys.readouterr().err
