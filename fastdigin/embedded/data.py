"""The embedded world's images: garments in named colours on textured backgrounds, 64x64 RGB.

Garments are Fashion-MNIST pictures (Xiao et al. 2017, MIT licence), textures the grass, brick
and gravel photographs of scikit-image (CC0). Both are split: garments by Fashion-MNIST's own
train/test split, textures by area, so that a held-out composite shares no pixel with training.

``compose`` is a pure function of its arguments. The garment and the background draw from
separate random streams of the same seed, so changing only the background of a composite leaves
the garment where and what it is.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from fastdigin.embedded import BACKGROUNDS
from fastdigin.errors import UserError
from fastdigin.models.missing import require

SIZE = 64
DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package ``dataset-fashion-mnist`` puts its files."""

_LABELS = {0: "tshirt", 1: "trousers", 2: "pullover", 3: "dress"}
_LABELS |= {5: "sandal", 7: "sneaker", 8: "bag", 9: "boot"}
# Fashion-MNIST's 4 (coat) and 6 (shirt) are left out: too like the pullover and the T-shirt.

_RGB = {
    "red": (0.94, 0.24, 0.21),
    "blue": (0.28, 0.43, 0.97),
    "yellow": (0.99, 0.87, 0.21),
    "purple": (0.70, 0.31, 0.87),
    "white": (1.00, 1.00, 1.00),
    "orange": (1.00, 0.58, 0.16),
}
# Grey texture value x in [0, 1] becomes gain * x + offset, per channel.
_TINTS = {
    "grass": ((0.75, 0.85, 0.37), (-0.06, 0.09, -0.02)),
    "brick": ((1.05, 0.78, 0.63), (0.06, -0.06, -0.06)),
    "gravel": ((0.82, 0.82, 0.82), (0.07, 0.07, 0.09)),
}
_TRAIN_ROWS = 352  # of 512: rows above are for training, the 160 below for testing
_CROP = (112, 153)  # side of a texture crop in pixels of the photograph, before shrinking to 64


@dataclass(frozen=True)
class World:
    """The raw material: per split, grey garments ``{name: (n, 28, 28)}`` and textures ``{name:
    (rows, 512)}``, all uint8."""

    garments: dict[str, dict[str, np.ndarray]]
    textures: dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Composite:
    """``image`` (64, 64, 3) and ``mask`` (64, 64), both uint8; the mask is the garment's alpha."""

    image: np.ndarray
    mask: np.ndarray


def load_world(folder: str | Path | None = None) -> World:
    """Reads Fashion-MNIST and the textures.

    ``folder`` holds Fashion-MNIST's four ``idx-ubyte`` files, with or without ``.gz``; without it
    the Debian package's folder is read.

    Raises:
        UserError: the folder lacks a file, or scikit-image is missing.
    """
    folder = DEFAULT_FOLDER if folder is None else Path(folder)
    garments = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _read_idx(folder, f"{prefix}-images-idx3-ubyte")
        labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte")
        garments[split] = {name: images[labels == label] for label, name in _LABELS.items()}
    textures = {"train": {}, "test": {}}
    for name, photo in _read_textures().items():
        textures["train"][name] = photo[:_TRAIN_ROWS]
        textures["test"][name] = photo[_TRAIN_ROWS:]
    return World(garments, textures)


def compose(
    world: World, garment: str, colour: str, background: str, seed: int, split: str = "train"
) -> Composite:
    """One composite. The same arguments give the same pixels.

    ``seed`` picks the garment's picture, its size and place, and the background's crop or light.
    """
    intensity, alpha = _place_garment(
        world.garments[split][garment], np.random.default_rng((seed, 0))
    )
    scene = _background(world.textures[split], background, np.random.default_rng((seed, 1)))

    shade = 0.22 + 0.78 * intensity[..., None]
    scene = scene * (1 - 0.35 * _shadow(alpha)[..., None])
    image = scene + alpha[..., None] * (shade * np.array(_RGB[colour]) - scene)
    return Composite(_to_uint8(image), _to_uint8(alpha))


def _place_garment(pictures: np.ndarray, rng: np.random.Generator):
    """Intensity and alpha on the 64x64 canvas, each float in [0, 1]."""
    picture = Image.fromarray(pictures[rng.integers(len(pictures))])
    side = int(rng.integers(44, 47))
    top, left = (SIZE - side) // 2 + rng.integers(-2, 3, size=2)
    picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    # The closing keeps dark seams opaque; handles and straps enclose more than its 3x3 square.
    closed = picture.filter(ImageFilter.MaxFilter(3)).filter(ImageFilter.MinFilter(3))
    canvas = np.zeros((2, SIZE, SIZE))
    canvas[:, top : top + side, left : left + side] = np.stack([picture, closed]) / 255.0
    intensity, closed = canvas
    alpha = np.clip((closed - 0.06) / 0.16, 0, 1)
    return intensity, alpha


def _shadow(alpha: np.ndarray) -> np.ndarray:
    blurred = Image.fromarray(_to_uint8(alpha)).filter(ImageFilter.GaussianBlur(1.5))
    shifted = np.zeros_like(alpha)
    shifted[2:, 1:] = np.asarray(blurred)[:-2, :-1] / 255.0
    return shifted


def _background(textures: dict[str, np.ndarray], name: str, rng: np.random.Generator):
    """(64, 64, 3) float; values may leave [0, 1] a little."""
    if name == "plain":
        return _studio(rng)
    photo = textures[name]
    side = int(rng.integers(*_CROP))
    top = int(rng.integers(photo.shape[0] - side + 1))
    left = int(rng.integers(photo.shape[1] - side + 1))
    crop = Image.fromarray(photo[top : top + side, left : left + side])
    grey = np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / 255.0
    gain, offset = (np.array(values) for values in _TINTS[name])
    return (gain * grey[..., None] + offset).clip(0, 1) * rng.uniform(0.92, 1.10)


def _studio(rng: np.random.Generator) -> np.ndarray:
    """A light grey gradient in a random direction, with a slight warm or cold cast."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1) - 0.5
    ramp = (x * np.cos(angle) + y * np.sin(angle)) / 1.42 + 0.5
    low, high = rng.uniform(0.60, 0.80), rng.uniform(0.84, 1.00)
    cast = rng.uniform(-0.02, 0.02) * np.array([1.0, 0.0, -1.0])
    return (low + (high - low) * ramp)[..., None] + cast


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """An IDX file of unsigned bytes: magic 00 00 08 rank, big-endian sizes, then the data."""
    packed, plain = folder / f"{name}.gz", folder / name
    if packed.is_file():
        raw = gzip.decompress(packed.read_bytes())
    elif plain.is_file():
        raw = plain.read_bytes()
    else:
        raise UserError(
            f"--data '{folder}' has no {name}.gz: install the Debian package "
            "dataset-fashion-mnist, or name a folder that holds the four files of Fashion-MNIST, "
            "like DIR/FashionMNIST/raw of torchvision.datasets.FashionMNIST(DIR, download=True)."
        )
    rank = raw[3]
    shape = np.frombuffer(raw, dtype=">u4", count=rank, offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)


def _read_textures() -> dict[str, np.ndarray]:
    data = require("skimage.data", "train", "the world's textures")
    return {name: getattr(data, name)() for name in BACKGROUNDS if name != "plain"}
