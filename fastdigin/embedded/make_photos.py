"""Makes the packaged photos and pairs (the stage ``photos`` of ``fastdigin.embedded.train``).

Photos are held-out composites, fifteen for every garment on every background, colours balanced.
A draw that one of the clean, robust and judge classifiers misreads, or whose background or
colour is misread, is thrown away and drawn again: a counterfactual from a misread photo explains
nothing. So are garments so dark that much of their alpha is half transparent, whose masks would
be no clear truth. The photos therefore say nothing about the classifiers' accuracy.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastdigin.embedded import BACKGROUNDS, COLOURS, GARMENTS
from fastdigin.embedded.data import Composite, World, compose
from fastdigin.embedded.networks import read_network
from fastdigin.embedded.train_classifiers import as_classifier

PHOTOS_PER_SCENE = 15
ROUNDS_OF_PAIRS = 6
# One direction of each kind first, sources and targets alternating, so that a short run over the
# first pairs already covers the world; the four groups of four end on different backgrounds.
KINDS = (
    ("sneaker", "boot"),
    ("boot", "sandal"),
    ("sandal", "sneaker"),
    ("tshirt", "dress"),
    ("pullover", "tshirt"),
    ("bag", "boot"),
    ("trousers", "dress"),
    ("dress", "pullover"),
    ("boot", "sneaker"),
    ("sneaker", "sandal"),
    ("sandal", "boot"),
    ("tshirt", "pullover"),
    ("dress", "tshirt"),
    ("boot", "bag"),
    ("dress", "trousers"),
    ("pullover", "dress"),
)


@dataclass(frozen=True)
class _Shot:
    row: dict[str, str]
    """What photos.json says: id, garment, colour, background."""
    composite: Composite
    clarity: float


def make_photos(world: World, classifiers: Path, out: Path) -> None:
    """Writes PNGs, masks, ``photos.json`` and ``pairs.json`` into ``out``.

    ``classifiers`` is the folder that the stage before wrote.
    """
    out.mkdir(parents=True, exist_ok=True)
    shots = take_shots(world, classifiers)
    for shot in shots:
        name = shot.row["id"]
        Image.fromarray(shot.composite.image).save(out / f"{name}.png", optimize=True)
        Image.fromarray(shot.composite.mask).save(out / f"{name}-mask.png", optimize=True)
    _write_rows(out / "photos.json", [shot.row for shot in shots])
    _write_rows(out / "pairs.json", choose_pairs(shots))


def take_shots(world: World, classifiers: Path) -> list[_Shot]:
    """The photos, drawn until the classifiers read them."""
    names = ("clean", "robust", "judge", "background", "colour")
    readers = {name: as_classifier(*read_network(classifiers / name)) for name in names}
    shots, seed = [], 0
    for copy in range(PHOTOS_PER_SCENE):
        for b, background in enumerate(BACKGROUNDS):
            for g, garment in enumerate(GARMENTS):
                colour = COLOURS[(3 * b + copy + g) % len(COLOURS)]
                row = {"garment": garment, "colour": colour, "background": background}
                truth = row | dict.fromkeys(("clean", "robust", "judge"), garment)
                while True:
                    composite = compose(world, garment, colour, background, seed, "test")
                    seed += 1
                    confidence = _confidence(readers, composite, truth)
                    if confidence is not None and _is_opaque(composite):
                        break
                name = f"{len(shots):03d}-{colour}-{garment}-{background}"
                clarity = confidence + _contrast(composite)
                shots.append(_Shot({"id": name} | row, composite, clarity))
    return shots


def choose_pairs(shots: list[_Shot]) -> list[dict]:
    """Every kind once in every round, on another background in each of the first four.

    In round r kind k takes background k + r + k // 4, so each block of four has all backgrounds
    and each kind meets all of them. A kind takes the clearest photo that has been used least.
    """
    used = dict.fromkeys((shot.row["id"] for shot in shots), 0)
    rows = []
    for r in range(ROUNDS_OF_PAIRS):
        for k, (source, target) in enumerate(KINDS):
            background = BACKGROUNDS[(k + r + k // 4) % len(BACKGROUNDS)]
            scene = {"garment": source, "background": background}.items()
            candidates = [s for s in shots if scene <= s.row.items()]
            shot = min(candidates, key=lambda s: (used[s.row["id"]], -s.clarity))
            used[shot.row["id"]] += 1
            rows.append({"photo": shot.row["id"], "target": target})
    return rows


@torch.inference_mode()
def _confidence(readers, composite: Composite, truth: dict) -> float | None:
    """Smallest probability of the truth over the readers; None when one of them misreads."""
    image = torch.from_numpy(composite.image).permute(2, 0, 1)[None].float() / 255
    smallest = 1.0
    for name, reader in readers.items():
        probabilities, index = reader.probabilities(image)[0], reader.class_index(truth[name])
        if int(probabilities.argmax()) != index:
            return None
        smallest = min(smallest, probabilities[index].item())
    return smallest


def _is_opaque(composite: Composite) -> bool:
    """Whether at most a quarter of the pixels that the garment touches are half transparent."""
    touched = composite.mask > 12
    half = touched & (composite.mask < 243)
    return half.sum() <= 0.25 * touched.sum()


def _contrast(composite: Composite) -> float:
    """Distance of the mean garment and background colours, less the garment's own deviation.

    Low for garments that blend in and for patterned ones, whose change is hard to see.
    """
    alpha = composite.mask[..., None] / 255
    image = composite.image / 255
    garment = (image * alpha).sum((0, 1)) / alpha.sum()
    background = (image * (1 - alpha)).sum((0, 1)) / (1 - alpha).sum()
    variance = ((image - garment) ** 2 * alpha).sum((0, 1)) / alpha.sum()
    return float(np.linalg.norm(garment - background) - np.sqrt(variance.sum()))


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")
