"""The images of a method, made once: a folder a method and its settings, a PNG a photo."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from fastdigin.engine.engine import Engine
from fastdigin.models.classifier import Classifier
from fastdigin.results.pictures import png, read_picture, to_pil
from fastdigin.storage import fingerprint, write_atomically
from fastdigin_bench.methods.asked import Asked, AskedNeuron, Method
from fastdigin_bench.output import make_folder, read_json, write_json

BATCH = 8


def folder_of(out: Path, method: Method, engine: Engine) -> Path:
    """Other settings of the same method make other images, in another folder."""
    settings = method.settings(engine) if hasattr(method, "settings") else method
    name = "".join(letter if letter.isalnum() else "-" for letter in method.name)
    return make_folder(out / f"{name}-{fingerprint(str(settings))[:8]}", "--out")


def made(
    out: Path, method: Method, engine: Engine, classifier: Classifier,
    asked: Sequence[Asked | AskedNeuron],
) -> tuple[list[Tensor], list[float]]:  # fmt: skip
    """The images (3, H, W) as written, and seconds of processor time each; those found are kept.

    Photos are made BATCH at a time, and one's seconds are its share of the batch.
    """
    folder = folder_of(out, method, engine)
    clock = folder / "seconds.json"
    paths = {one.id: folder / f"{one.id}.png" for one in asked}
    missing = [one for one in asked if not paths[one.id].exists()]
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        began = time.process_time()
        images = method(engine, classifier, batch)
        each = (time.process_time() - began) / len(batch)
        write_json(clock, read_json(clock) | {one.id: round(each, 4) for one in batch})
        for one, image in zip(batch, images, strict=True):
            write_atomically(paths[one.id], png(to_pil(image)))
    seconds = read_json(clock)
    return [read_picture(path) for path in paths.values()], [seconds[one.id] for one in asked]
