"""Which shortcuts do the images of a method name, to someone who knows nothing of the classifier?

Images that are asked for one class show a feature more often than the photos they were made of:
that is what they say the class goes by. What was planted in the packaged classifiers is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdigin.embedded import PLANTED
from fastdigin.embedded.worlds import read_world
from fastdigin.errors import UserError
from fastdigin.metrics.figures import figure
from fastdigin.metrics.truth import Discovered, Shortcut, discovery
from fastdigin_bench.methods.asked import Asked

ATTRIBUTES = ("background", "colour")
LEAST = 0.25
"""A feature is named where it gains so much of a class's images, and the interval is above 0."""


def planted_in(classifier: str) -> list[Shortcut] | None:
    """What the packaged classifier of this name, or the one in a world's folder, goes by.

    None where nobody knows ("imagenet"). UserError for another name, and for another folder.
    """
    known = {"robust": {}, "clean": {}, "spurious": PLANTED, "imagenet": None}
    if classifier not in known:
        if not Path(classifier).is_dir():
            raise UserError(
                f"--classifier {classifier!r} is no folder of a world, and none of "
                f"{', '.join(known)}: name one of them"
            )
        return [(s.garment, s.attribute, s.feature) for s in read_world(Path(classifier))]
    planted = known[classifier]
    return None if planted is None else [(g, "background", b) for g, b in planted.items()]


def named(
    asked: Sequence[Asked], before: Sequence[Mapping[str, str]], after: Sequence[Mapping[str, str]]
) -> list[Shortcut]:
    """The (class, attribute, feature) that the images name.

    before, after: attribute -> feature, of each photo and of its image (metrics.truth.seen).
    """
    found = []
    for target in dict.fromkeys(one.item.target for one in asked):
        rows = [n for n, one in enumerate(asked) if one.item.target == target]
        for attribute in ATTRIBUTES:
            for feature in sorted({after[n][attribute] for n in rows}):
                gains = [
                    float(after[n][attribute] == feature) - float(before[n][attribute] == feature)
                    for n in rows
                ]
                gain = figure("gain", gains)
                if gain.value >= LEAST and gain.interval is not None and gain.interval[0] > 0:
                    found.append((target, attribute, feature))
    return found


def plain(names: Sequence[Shortcut], planted: Sequence[Shortcut] | None) -> dict[str, Any]:
    """JSON values: the share of what was planted that is named, and how many others are.

    None where nothing was planted, and where nobody knows.
    """
    found = Discovered(planted or (), names)
    return {
        "named": list(names),
        "discovery": discovery([found])[0].value if planted else None,
        "false_alarms": None if planted is None else len(found.extra),
    }


def text(named: Mapping[str, Sequence[Shortcut]], planted: Sequence[Shortcut] | None) -> str:
    """A line a method, planted shortcuts in bold."""

    def line(shortcut: Shortcut) -> str:
        words = f"{shortcut[0]}: {shortcut[2]}"
        return f"**{words}**" if shortcut in (planted or ()) else words

    return "".join(
        f"{name} names {', '.join(map(line, names)) or 'nothing'}\n"
        for name, names in named.items()
    )
