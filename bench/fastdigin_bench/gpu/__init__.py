"""``fastdigin bench gpu``: every estimate about a GPU turned into a measurement, in one command.

Models have random weights of the true sizes, so nothing is fetched. The parts (parts.py) are sorted
by importance and each is kept as soon as it is done; the same command goes on with those that are
missing. A part that fails is kept with its error, and tried again.
"""

from __future__ import annotations

import time
import traceback
from argparse import Namespace
from typing import Any

import torch

from fastdigin import hardware
from fastdigin_bench.gpu.parts import PARTS
from fastdigin_bench.gpu.place import Place
from fastdigin_bench.output import conditions, finish, read_json, rows_table, say, write_json
from fastdigin_bench.plots import Panel, plot


def run(options: Namespace) -> int:
    """``fastdigin bench gpu``; 1 if a part failed."""
    device = torch.device(options.device) if options.device else hardware.default_device()
    place = Place(device, options.tiny)
    name = options.name or hardware.of(device).name.replace(" ", "-").lower()
    file = options.results / f"gpu-{name}.json"
    found = read_json(file) or {
        "conditions": conditions() | {"device": hardware.of(device).name, "tiny": options.tiny},
        "parts": {},
    }
    end = time.monotonic() + 60 * options.minutes
    for part, measure in PARTS.items():
        if options.only and part not in options.only:
            continue
        if found["parts"].get(part, {}).get("error", "missing") is None:
            say(f"{part}: done before")
        elif time.monotonic() > end:
            say(f"{part}: no time left; the same command goes on from here")
        else:
            found["parts"][part] = _measured(part, measure, place)
            write_json(file, found)
    columns = {"part": "part", "seconds": "seconds", "found": _told}
    print(rows_table([{"part": name, **part} for name, part in found["parts"].items()], columns))
    _plot(file.with_suffix(".png"), found["parts"])
    finish(file, found)
    return 1 if any(each["error"] for each in found["parts"].values()) else 0


def _measured(part: str, measure, place: Place) -> dict[str, Any]:
    say(f"{part}: ...")
    start, error, figures = time.monotonic(), None, {}
    try:
        figures = measure(place)
    except Exception as failure:  # one part must not cost the others their turn
        error = f"{type(failure).__name__}: {failure}"
        say(traceback.format_exc())
    hardware.of(place.device).release()
    seconds = round(time.monotonic() - start, 1)
    say(f"{part}: {error or figures} ({seconds} s)")
    return {"seconds": seconds, "error": error, **figures}


def _told(part: dict[str, Any]) -> str:
    return part["error"] or ", ".join(
        f"{key} {value}" for key, value in part.items()
        if key not in ("part", "seconds", "error") and isinstance(value, (int, float, str))
    )  # fmt: skip


def _plot(path, parts: dict[str, Any]) -> None:
    """Speed and memory by slots, where they were measured."""
    rows = parts.get("slots", {}).get("rows")
    if not rows:
        return
    speed = [(row["slots"], row["iterations_per_second"]) for row in rows]
    memory = {
        name: [(row["slots"], row[key] / 2**30) for row in rows if row[key] is not None]
        for name, key in (("predicted", "predicted_bytes"), ("measured", "peak_bytes"))
    }
    plot(path, [
        Panel("speed", "slots", "images' iterations a second", {"engine": speed}),
        Panel("memory", "slots", "GiB", memory),
    ])  # fmt: skip
