"""The embedded world: a tiny latent diffusion model, classifiers and photos, all packaged.

Everything runs on a laptop without a download. The photos are composites of garments on
textures, so the truth about them is known: which pixels are foreground, and which shortcut
(:data:`PLANTED`) the classifier ``"spurious"`` was made to learn. Importing this package reads
the label tables only; torch is imported by :mod:`fastdigin.embedded.networks`, scikit-image by
:mod:`fastdigin.embedded.data`.
"""

import difflib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from fastdigin.errors import UserError

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "GARMENTS",
    "PLANTED",
    "Pair",
    "Photo",
    "classifier_folder",
    "classifier_names",
    "model_folder",
    "pairs",
    "photos",
    "planted_neurons",
    "prompt",
    "words",
]

GARMENTS = ("tshirt", "trousers", "pullover", "dress", "sandal", "sneaker", "bag", "boot")
COLOURS = ("red", "blue", "yellow", "purple", "white", "orange")
BACKGROUNDS = ("grass", "brick", "gravel", "plain")

PLANTED = {"sneaker": "grass", "sandal": "brick", "bag": "gravel"}
"""Garment -> the background on which the spurious classifier saw almost all of its examples."""

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Photo:
    """One held-out composite: test-split garment on a test-area texture.

    ``path`` is an RGB PNG of 64x64 pixels; ``mask_path`` an 8-bit grey PNG of the same size with
    the garment's true alpha (255 = garment, 0 = background).
    """

    id: str
    path: Path
    mask_path: Path
    garment: str
    colour: str
    background: str
    prompt: str


@dataclass(frozen=True)
class Pair:
    """A counterfactual question: change ``source`` (what ``photo`` shows) into ``target``.

    ``prompt`` describes the photo and contains the word ``source``.
    """

    photo: Photo
    source: str
    target: str
    prompt: str


def prompt(garment: str, colour: str, background: str) -> str:
    """The sentence the embedded diffusion model was trained with for such an image."""
    return f"a photo of a {colour} {garment} on {background}"


def words() -> list[str]:
    """Phrases to start neuron visualisations from: every garment on every background.

    Colours in turn: the model was trained on sentences with a colour, and without one takes no
    heed of the background.
    """
    scenes = itertools.product(GARMENTS, BACKGROUNDS)
    return [
        f"{COLOURS[number % len(COLOURS)]} {garment} on {background}"
        for number, (garment, background) in enumerate(scenes)
    ]


def model_folder() -> Path:
    """Folder of the packaged diffusion model, in diffusers layout."""
    return _FOLDER / "model"


def classifier_names() -> tuple[str, ...]:
    """Names of the packaged classifiers, sorted."""
    return tuple(sorted(file.parent.name for file in _FOLDER.glob("classifiers/*/config.json")))


def classifier_folder(name: str) -> Path:
    """Folder with ``config.json`` and ``model.safetensors`` of a packaged classifier.

    Raises:
        UserError: there is no such classifier; the message lists those that exist.
    """
    names = classifier_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise UserError(
            f"There is no embedded classifier {name!r}{hint} The names: {', '.join(names)}."
        )
    return _FOLDER / "classifiers" / name


def photos() -> list[Photo]:
    """The packaged photos, balanced over garments, backgrounds and colours.

    Only photos that the clean, the robust and the judge classifier all read correctly are
    packaged, because a counterfactual from a misread photo explains nothing, and only those whose
    garment is mostly opaque. The classifiers' accuracy on them is therefore NOT an estimate of
    their accuracy on the world: the model card has that.
    """
    folder = _FOLDER / "photos"
    return [
        Photo(
            id=row["id"],
            path=folder / f"{row['id']}.png",
            mask_path=folder / f"{row['id']}-mask.png",
            garment=row["garment"],
            colour=row["colour"],
            background=row["background"],
            prompt=prompt(row["garment"], row["colour"], row["background"]),
        )
        for row in _read_json("photos/photos.json")
    ]


def pairs() -> list[Pair]:
    """The packaged counterfactual questions, in an order whose every beginning is a good mix.

    The first eight are the visually clearest, for demonstrations.
    """
    by_id = {photo.id: photo for photo in photos()}
    return [
        Pair(
            photo=by_id[row["photo"]],
            source=by_id[row["photo"]].garment,
            target=row["target"],
            prompt=by_id[row["photo"]].prompt,
        )
        for row in _read_json("photos/pairs.json")
    ]


def planted_neurons() -> dict[str, list[int]]:
    """Penultimate neurons of the spurious classifier that tell a background apart, best first.

    Each separates its background from the others with an area under the ROC curve of at least
    0.9 on held-out composites and raises the logit of the class planted on that background. The
    measured figures stand beside the indices in ``classifiers/spurious/planted_neurons.json``.
    """
    table = _read_json("classifiers/spurious/planted_neurons.json")
    return {background: [row["neuron"] for row in rows] for background, rows in table.items()}


def _read_json(name: str):
    return json.loads((_FOLDER / name).read_text(encoding="utf-8"))
