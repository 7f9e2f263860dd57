"""Worlds: classifiers with known shortcuts, any number of them, to hold explanations against.

    python -m fastdigin.embedded.worlds --out worlds --count 20 --clean 5

trains world-000 to world-019, each with one to three shortcuts that its seed draws (a garment on a
background or in a colour, in 70% to 99% of its training scenes), and clean-000 to clean-004, which
have none. ``--plant sneaker:grass:0.95`` trains one with shortcuts of one's own. A folder holds
the network (safetensors), its ``config.json``, and ``world.json``, which says what was planted and
what it did on held-out composites. Everything that takes a classifier takes ``embedded:FOLDER``.
Worlds that are there already are not trained again.

The networks are those of ``fastdigin.embedded``, half as wide; they see few scenes, so that the
exceptions to a shortcut do not teach them the shape.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from diffusers import AutoencoderKL

from fastdigin.embedded import GARMENTS, model_folder
from fastdigin.embedded.data import World, load_world
from fastdigin.embedded.networks import build_network, write_network
from fastdigin.embedded.scenes import (
    FEATURES,
    Scenes,
    Shortcut,
    decode_some,
    make_scenes,
    with_feature,
)
from fastdigin.embedded.train_classifiers import as_classifier, fit
from fastdigin.errors import UserError, exits_with_code
from fastdigin.models.classifier import Classifier
from fastdigin.storage import write_atomically

STRENGTHS = (0.70, 0.99)
MOST_SHORTCUTS = 3
_NETWORK = {
    "architecture": "small_cnn",
    "arguments": {"widths": [16, 32, 48, 64]},
    "size": 48,
    "mean": [0.5, 0.45, 0.38],
    "std": [0.2, 0.2, 0.25],
    "classes": list(GARMENTS),
}


@dataclass(frozen=True)
class Recipe:
    """How a world is trained. decoded: the share of images that the autoencoder decoded."""

    scenes: int = 6_000
    epochs: int = 8
    rate: float = 3e-3
    decoded: float = 0.15
    test_scenes: int = 320


def draw_shortcuts(seed: int) -> tuple[Shortcut, ...]:
    """One to three shortcuts, of garments and of features that differ."""
    rng = np.random.default_rng((seed, 3))
    count = int(rng.integers(1, MOST_SHORTCUTS + 1))
    features = [(name, value) for name, values in FEATURES.items() for value in values]
    # Either attribute is as likely, whatever the number of its values.
    weights = np.array([1 / len(FEATURES) / len(FEATURES[name]) for name, _ in features])
    garments = rng.choice(len(GARMENTS), count, replace=False)
    chosen = rng.choice(len(features), count, replace=False, p=weights)
    strengths = rng.uniform(*STRENGTHS, size=count).round(2)
    return tuple(
        Shortcut(GARMENTS[g], *features[f], float(strength))
        for g, f, strength in zip(garments, chosen, strengths, strict=True)
    )


def planned(count: int, clean: int, seed: int) -> list[tuple[str, tuple[Shortcut, ...], int]]:
    """(name, shortcuts, seed) of worlds from ``seed`` on, clean ones spread among the others."""
    worlds = [(f"world-{s:03d}", draw_shortcuts(s), s) for s in range(seed, seed + count)]
    for n in range(clean):
        # Seeds of their own: a clean world is not a planted one without its shortcuts.
        one = (f"clean-{seed + n:03d}", (), 500_000 + seed + n)
        worlds.insert((n + 1) * count // clean + n, one)
    return worlds


def train_world(
    raw: World, autoencoder, shortcuts: Sequence[Shortcut], folder: Path, seed: int,
    recipe: Recipe = Recipe(),
) -> dict:  # fmt: skip
    """Trains one world into ``folder``; returns what ``world.json`` says.

    That is the ``seed``, the ``shortcuts`` with their measured ``effect`` (see :func:`effect_of`)
    and the ``accuracy`` on held-out composites without shortcuts. The same arguments give the same
    weights on a machine.
    """
    scenes = make_scenes(raw, recipe.scenes, "train", seed, shortcuts)
    scenes = decode_some(autoencoder, scenes, recipe.decoded, seed)
    torch.manual_seed(seed)
    network = build_network(_NETWORK)
    labels = scenes.garments
    fit(network, _NETWORK, scenes.images, labels, recipe.epochs, recipe.rate, folder.name)
    classifier = as_classifier(network, _NETWORK)
    test = make_scenes(raw, recipe.test_scenes, "test", seed + 1)
    found = {
        "seed": seed,
        "shortcuts": [
            asdict(shortcut) | {"effect": effect_of(classifier, raw, test, shortcut, seed + 1)}
            for shortcut in shortcuts
        ],
        "accuracy": round(float(_confidences(classifier, test, test.garments)[1].mean()), 4),
        "recipe": asdict(recipe),
    }
    write_network(folder, network, _NETWORK)
    write_atomically(folder / "world.json", (json.dumps(found, indent=1) + "\n").encode())
    return found


def effect_of(
    classifier: Classifier, raw: World, test: Scenes, shortcut: Shortcut, seed: int
) -> float:
    """What the feature adds to the confidence in the garment, the garments' shapes being the same.

    Mean confidence with the feature less the mean with the others, over the garment's scenes in
    ``test``, which ``seed`` made.
    """
    own = test.garments == GARMENTS.index(shortcut.garment)
    confidence = {}
    for feature in FEATURES[shortcut.attribute]:
        scenes = with_feature(raw, test, shortcut.attribute, feature, "test", seed)
        values, _ = _confidences(classifier, scenes, test.garments)
        confidence[feature] = float(values[own].mean())
    others = [value for name, value in confidence.items() if name != shortcut.feature]
    return round(confidence[shortcut.feature] - fmean(others), 4)


def read_world(folder: Path) -> tuple[Shortcut, ...]:
    """What was planted in the world of a folder. UserError where it holds none."""
    try:
        rows = json.loads((folder / "world.json").read_text(encoding="utf-8"))["shortcuts"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"'{folder}' holds no world ({error}): train one with python -m "
            "fastdigin.embedded.worlds"
        ) from None
    names = ("garment", "attribute", "feature", "strength")
    return tuple(Shortcut(**{name: row[name] for name in names}) for row in rows)


def parse_shortcut(text: str) -> Shortcut:
    """``GARMENT:FEATURE:STRENGTH``, like sneaker:grass:0.95. UserError for anything else."""
    garment, _, rest = text.partition(":")
    feature, _, strength = rest.partition(":")
    attribute = next((name for name, values in FEATURES.items() if feature in values), None)
    try:
        share = float(strength)
    except ValueError:
        share = 0.0
    if garment not in GARMENTS or attribute is None or not 0 < share <= 1:
        features = ", ".join(value for values in FEATURES.values() for value in values)
        raise UserError(
            f"--plant {text!r} is not understood: write GARMENT:FEATURE:STRENGTH, a garment among "
            f"{', '.join(GARMENTS)}, a feature among {features}, a strength above 0 and at most 1"
        )
    return Shortcut(garment, attribute, feature, share)


def load_autoencoder() -> AutoencoderKL:
    """The packaged one, frozen, in fp32."""
    folder = model_folder() / "vae"
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).requires_grad_(False)


@torch.inference_mode()
def _confidences(classifier: Classifier, scenes: Scenes, labels_n: torch.Tensor):
    """(n,) confidences in the labels, and whether each is the first choice."""
    rows = [classifier.probabilities(part.float() / 255) for part in scenes.images.split(500)]
    probabilities = torch.cat(rows)
    right = probabilities.argmax(dim=1) == labels_n
    return probabilities.gather(1, labels_n[:, None])[:, 0], right.float()


@exits_with_code
def main(arguments: list[str] | None = None) -> int | None:
    """Trains worlds; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where the worlds are written")
    parser.add_argument("--count", type=int, default=0, help="worlds with drawn shortcuts")
    parser.add_argument("--clean", type=int, default=0, help="worlds without any")
    parser.add_argument(
        "--plant", nargs="+", metavar="GARMENT:FEATURE:STRENGTH", help="one world with these"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first world")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's four files")
    options = parser.parse_args(arguments)
    wanted = planned(options.count, options.clean, options.seed)
    if options.plant:
        planted = tuple(map(parse_shortcut, options.plant))
        wanted.append((f"planted-{options.seed:03d}", planted, options.seed))
    if not wanted:
        raise UserError("nothing to train: give --count, --clean or --plant")
    raw, autoencoder = load_world(options.data), load_autoencoder()
    for name, shortcuts, seed in wanted:
        folder = options.out / name
        if not (folder / "world.json").is_file():
            train_world(raw, autoencoder, shortcuts, folder, seed)
        print(f"{folder}: {(folder / 'world.json').read_text(encoding='utf-8')}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
