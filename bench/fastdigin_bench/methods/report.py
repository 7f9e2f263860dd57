"""The comparison of methods: table, winners, fronts, plot and sheet of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor

from fastdigin.metrics.figures import Figure, figure
from fastdigin.metrics.truth import Shortcut
from fastdigin_bench.methods import discovery
from fastdigin_bench.methods.scores import Figures, Rows, plain
from fastdigin_bench.pictures import contact_sheet
from fastdigin_bench.plots import Panel, plot

EQUAL_FLIPS = 0.95
"""Methods that flip at least so many are compared in the other scores."""
COSTS = {"background_l1": "background L1", "seconds": "seconds an image"}
SHEET = 8
Scores = Mapping[str, tuple[str, bool]]


def compared(
    found: Mapping[str, Figures], rows: Mapping[str, Rows], named: Mapping[str, Sequence[Shortcut]],
    planted: Sequence[Shortcut] | None, reference: str, engine: str,
) -> dict[str, Any]:  # fmt: skip
    """What the results' file holds. reference: changes nothing, and is no competitor.

    named: what each method's images name; planted: what there is to name (discovery.py).
    """
    rivals = {name: f for name, f in found.items() if name != reference}
    fronts = {
        cost: front({n: (f["judge"].value, f[cost].value) for n, f in rivals.items()})
        for cost in COSTS
    }
    return {
        "methods": [
            plain(name, f)
            | discovery.plain(named[name], planted)
            | {f"on_front_{cost}": name in names for cost, names in fronts.items()}
            | {"judge_engine_minus_this": paired(rows.get(engine), rows[name], "judge")}
            for name, f in rivals.items()
        ],
        "reference": plain(reference, found[reference]),
    }


def winners(methods: Mapping[str, Figures], scores: Scores) -> dict[str, set[str]]:
    """Score -> the methods with the best value, of those that flip EQUAL_FLIPS and more.

    Where none does, and where flips are no score, all are compared.
    """
    equal = {
        name for name, found in methods.items()
        if "flip_rate" not in found or found["flip_rate"].value >= EQUAL_FLIPS
    } or set(methods)  # fmt: skip
    best = {}
    for key, (_, more) in scores.items():
        values = {name: round(methods[name][key].value, 4) for name in equal}
        wanted = (max if more else min)(values.values())
        best[key] = {name for name, value in values.items() if value == wanted}
    return best


def front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """The names of those (gain, cost) than which no other is better in one and as good in both."""

    def beaten(name: str) -> bool:
        gain, cost = points[name]
        return any(g >= gain and c <= cost and (g, c) != (gain, cost) for g, c in points.values())

    return {name for name in points if not beaten(name)}


def paired(ours: Rows | None, theirs: Rows, key: str) -> dict[str, Any] | None:
    """The mean difference, photo by photo, with the bootstrap's interval."""
    if ours is None:
        return None
    pairs = zip(ours, theirs, strict=False)  # a slow method was asked about the first ones alone
    found = figure(key, [float(a[key]) - float(b[key]) for a, b in pairs]).plain()
    return {"value": found["value"], "interval": found["interval"]}


def text(
    found: Mapping[str, Figures], scores: Scores, reference: str = "", engine: str = ""
) -> str:
    """A table in Markdown, winners in bold, and where the engine does not lead."""
    rivals = {name: f for name, f in found.items() if name != reference}
    best = winners(rivals, scores)
    lines = [["method", *(title for title, _ in scores.values())], ["---"] * (1 + len(scores))]
    for name, f in found.items():
        cells = [cell(f[key], name in best[key]) for key in scores]
        lines.append([name, *cells])
    parts = ["\n".join(f"| {' | '.join(line)} |" for line in lines)]
    counts = [next(iter(f.values())).n for f in found.values()]
    n = max(counts)
    parts += [
        f"{name}: the first {its} alone."
        for name, its in zip(found, counts, strict=True)
        if its < n
    ]
    parts.append(
        f"n = {n}; 95% intervals in brackets; the best of those that flip at least "
        f"{EQUAL_FLIPS:.0%} in bold."
        if reference
        else f"n = {n}; 95% intervals."
    )
    if engine in rivals:
        parts += [
            f"{engine} does not lead in {title}: {', '.join(sorted(best[key]))}"
            for key, (title, _) in scores.items()
            if engine not in best[key]
        ]
        for cost, title in COSTS.items():
            points = {n: (f["judge"].value, f[cost].value) for n, f in rivals.items()}
            names = front(points)
            told = "is on" if engine in names else "is not on"
            parts.append(
                f"{engine} {told} the front of judge agreement and {title}: "
                f"{', '.join(n for n in rivals if n in names)}"
            )
    return parts[0] + "\n\n" + "\n".join(parts[1:]) + "\n"


def cell(found: Figure, is_best: bool) -> str:
    """A value with its interval, both to three digits or as percentages."""

    def number(value: float) -> str:
        return f"{value:.0%}" if found.unit == "share" else f"{value:.3g}"

    value = f"**{number(found.value)}**" if is_best else number(found.value)
    ends = "" if found.interval is None else " ({} to {})".format(*map(number, found.interval))
    return value + ends


def draw(rows: Sequence[Mapping[str, Any]], path: Path, key: str, label: str) -> None:
    """A score, called ``label``, against what it costs, a point a row."""
    panels = [
        Panel(
            f"{label} and {title}", title, label,
            {one["name"]: [(one[cost], one[key])] for one in rows},
            legend="lower right",
        )
        for cost, title in COSTS.items()
    ]  # fmt: skip
    plot(path, panels)


def sheet(images: Mapping[str, Sequence[Tensor]]) -> Image:
    """A row a method, the first SHEET photos side by side."""
    rows = [list(found[:SHEET]) for found in images.values()]
    return contact_sheet(rows, list(images), side=96)
