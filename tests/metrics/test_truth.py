"""Scores of truth, by hand."""

import pytest
import torch

from fastdigin.metrics.truth import Discovered, discovery, faithfulness, is_faithful, seen
from fastdigin.models.classifier import Classifier

GRASS = ("sneaker", "background", "grass")
RED = ("boot", "colour", "red")


@pytest.mark.parametrize(
    "before, after, more, expected",
    [
        ("brick red", "grass red", True, True),
        ("brick red", "grass blue", True, False),  # the colour changed as well
        ("brick red", "gravel red", True, False),
        ("brick red", "grass red", False, False),
        ("grass red", "gravel red", False, True),
        ("grass red", "gravel red", True, False),
        ("brick red", "gravel red", False, False),  # there was no grass to be taken away
        ("grass red", "grass red", True, False),
    ],
)
def test_faithful_is_the_planted_feature_and_only_it(before, after, more, expected):
    shown = [dict(zip(("background", "colour"), x.split(), strict=True)) for x in (before, after)]
    assert is_faithful(*shown, "background", "grass", more) == expected


def test_discovery_by_hand():
    worlds = [
        Discovered([GRASS, RED], [GRASS, ("bag", "colour", "blue")]),
        Discovered([RED], [RED]),
        Discovered([], []),
        Discovered([], [GRASS]),
    ]
    assert worlds[0].recovered == [True, False]
    assert worlds[0].extra == [("bag", "colour", "blue")]
    values = {f.name: (f.value, f.n) for f in discovery(worlds)}
    assert values == {
        "discovery": (pytest.approx(2 / 3), 3),
        "worlds recovered": (0.5, 2),
        "false alarms": (0.5, 2),
        "extra findings": (0.5, 2),
    }
    assert discovery([])[0].value is None
    assert faithfulness([True, True, False, True]).value == 0.75


def test_what_readers_see_of_packaged_photos():
    from fastdigin import embedded
    from fastdigin.results.pictures import read_picture

    photos = embedded.photos()[:3]
    readers = {n: Classifier.load(f"embedded:{n}") for n in ("background", "colour")}
    found = seen(readers, [read_picture(photo.path) for photo in photos])
    assert found == [{"background": p.background, "colour": p.colour} for p in photos]
    assert seen({}, [torch.zeros(3, 8, 8)]) == [{}]
