"""hf:ID, any image classifier of transformers, with the preprocessing of its image processor."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fastdigin.errors import UserError
from fastdigin.models.classifiers.loaded import LoadedNetwork, first_convolution, numbered, square
from fastdigin.models.classifiers.outputs import Activation, in_channels
from fastdigin.models.layers import find_head
from fastdigin.models.missing import fetching, loading, without_bars
from fastdigin.models.preprocessing import Resizing
from fastdigin.models.resampling import resample
from fastdigin.models.weights import check_weights

PROBES = ((330, 410), (250, 200))
"""Heights and widths of the images on which ours is compared with the image processor."""

_FILTERS = {
    0: ("nearest", "nearest-exact"),  # torchvision's and Pillow's
    1: ("lanczos",),
    2: ("bilinear",),
    3: ("bicubic",),
}


def load(source: str) -> LoadedNetwork:
    """A model for image classification and its image processor, from a hub id or a folder.

    Weights are read from safetensors where they exist, and otherwise as nothing but tensors.
    Raises UserError where they cannot be had, for a regression, and for an image processor that
    does something else than resize, crop the centre, and normalise.
    """
    loaded, headless = _load(source)
    if headless:
        raise UserError(
            f"classifier 'hf:{source}' has no head, which transformers makes up at random "
            f"({', '.join(headless)} are missing): choose weights that were trained to classify."
        )
    return loaded


def load_features(source: str) -> LoadedNetwork:
    """The same for what goes into the head, which may be missing."""
    return _load(source)[0]


def _load(source: str) -> tuple[LoadedNetwork, list[str]]:
    """The network, and the tensors of its head that its file lacks."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    owner = f"classifier 'hf:{source}'"
    files = "config.json, preprocessor_config.json and model.safetensors of "
    where = (f"a folder with {files}an image classifier", None)
    if command := fetching(source):
        where = (files + source, command)
    with loading(owner, *where), without_bars():
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        network, info = AutoModelForImageClassification.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    head = find_head(network)
    headless = sorted(name for name in info["missing_keys"] if name.startswith(f"{head}."))
    missing = set(info["missing_keys"]).difference(headless)
    check_weights(owner, network, missing, info["unexpected_keys"])
    return describe(network, processor, owner), headless


def describe(network: Any, processor: Any, owner: str) -> LoadedNetwork:
    """A model with what its image processor does to images, measured and compared.

    Raises UserError as :func:`load`.
    """
    classes, named = _classes(network.config)
    common = {"classes": classes, "named": named, "activation": _activation(network.config, owner)}
    gray = first_convolution(network) == 1
    if hasattr(processor, "max_num_patches"):
        network = FlexibleResolution(network, processor.patch_size, processor.max_num_patches)
    prepare = _Processor(processor, network, gray, owner)
    low, high, red = (
        prepare.middle(Image.new("RGB", (64, 64), c)) for c in ("black", "white", "red")
    )
    std = 1 / (high - low)
    mean = -low * std
    channels = "gray" if gray else "rgb" if (red - low)[0].abs() > 1e-3 else "bgr"
    size, resizing = _geometry(prepare, mean, std, channels)
    return LoadedNetwork(
        network, size, tuple(mean.tolist()), tuple(std.tolist()), resizing=resizing,
        channels=channels, **common,
    )  # fmt: skip


class FlexibleResolution(nn.Module):
    """A NaFlex model (SigLIP 2) on square images: their patches, all of them real.

    forward: normalised pixels (B,3,side,side) to what the model returns.
    """

    def __init__(self, network: nn.Module, patch: int, most: int):
        super().__init__()
        self.network, self.patch, self.rows = network, patch, math.isqrt(most)

    @property
    def side(self) -> int:
        return self.patch * self.rows

    def forward(self, pixels_b3hw: Tensor) -> Any:
        split = pixels_b3hw.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        patches_bnf = split.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return self.network(
            patches_bnf,
            pixel_attention_mask=patches_bnf.new_ones(patches_bnf.shape[:2], dtype=torch.int32),
            spatial_shapes=torch.full((len(patches_bnf), 2), self.rows, device=pixels_b3hw.device),
        )

    def pixels(self, patches_nf: Tensor) -> Tensor:
        """The image (3,side,side) whose patches these are."""
        grid = patches_nf[: self.rows**2].view(self.rows, self.rows, self.patch, self.patch, -1)
        return grid.permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)


class _Processor:
    """An image processor as a function of 8-bit images, to normalised pixels (C,H,W)."""

    def __init__(self, processor: Any, network: nn.Module, gray: bool, owner: str):
        self.processor, self.gray, self.owner = processor, gray, owner
        self.flexible = network if isinstance(network, FlexibleResolution) else None

    def __call__(self, image: Image.Image) -> Tensor:
        image = image.convert("L") if self.gray else image
        try:
            pixels = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        except (ValueError, TypeError, RuntimeError, KeyError) as error:
            raise self.not_understood() from error
        pixels = pixels if self.flexible is None else self.flexible.pixels(pixels)
        return pixels[:1] if self.gray else pixels

    def middle(self, image: Image.Image) -> Tensor:
        """The colour (C,) of the pixel in the middle, in float64."""
        pixels = self(image).double()
        if pixels.ndim != 3:
            raise self.not_understood()
        return pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2]

    def not_understood(self) -> UserError:
        return UserError(
            f"{self.owner}: its {type(self.processor).__name__} prepares images in a way that is "
            "not understood here; only resizing, cropping the centre and normalising are. If timm "
            "or torchvision has the model, use timm:NAME or torchvision:NAME."
        )


def _geometry(
    prepare: _Processor, mean: Tensor, std: Tensor, channels: str
) -> tuple[int, Resizing]:
    """The size and the Resizing that does what the processor does to images of several shapes.

    Every kind of processor has its own habits, so its settings are tried and not believed.
    """
    shapes = ((300, 300),) if prepare.flexible else PROBES
    images = [_noise(*shape) for shape in shapes]
    theirs = [
        prepare(image).double() * std.view(-1, 1, 1) + mean.view(-1, 1, 1) for image in images
    ]
    size = square(*theirs[0].shape[1:], prepare.owner)
    if any(pixels.shape[1:] != (size, size) for pixels in theirs):
        raise prepare.not_understood()
    ours = [torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8) for i in images]
    ours = [
        x.view(*shape, 3).permute(2, 0, 1)[None] / 255
        for x, shape in zip(ours, shapes, strict=True)
    ]
    for resizing in _candidates(prepare.processor, size, prepare.flexible is not None):
        pixels = [in_channels(resizing(x, size), channels)[0] for x in ours]
        errors = [float((a - b).abs().max()) for a, b in zip(pixels, theirs, strict=True)]
        # Twice the rounding of Pillow to 8 bits, once per axis.
        if max(errors) <= 2.5 / 255:
            return size, resizing
    raise prepare.not_understood()


def _candidates(processor: Any, size: int, square_only: bool) -> Iterator[Resizing]:
    """What the settings of a processor may mean, the plainest first."""
    timms = getattr(processor, "data_config", {})

    def setting(name: str) -> Any:
        return timms.get(name, getattr(processor, name, None))

    declared = [size]
    for name in ("size", "crop_size"):
        declared += [
            int(edge) for edge in dict(getattr(processor, name, None) or {}).values() if edge
        ]
    shares = (1, setting("crop_pct") or 1, 224 / 256)
    edges = dict.fromkeys(int(edge / share) for share in shares for edge in declared)
    filters = _FILTERS.get(int(setting("resample") or 0), ())
    filters = (timms["interpolation"],) if timms else filters
    fits = ("square",) if square_only else ("squash", "shortest", "longest")
    for name, fit, edge in itertools.product(filters, fits, edges):
        yield Resizing(fit, edge, name, odd="round" if timms else "floor")


def _noise(height: int, width: int) -> Image.Image:
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    pixels_hw3 = (resample(coarse, (height, width))[0].permute(1, 2, 0) * 255).round()
    return Image.fromarray(pixels_hw3.to(torch.uint8).numpy())


def _activation(config: Any, owner: str) -> Activation:
    """As transformers' own pipeline chooses it."""
    problem = getattr(config, "problem_type", None)
    if problem == "regression":
        raise UserError(
            f"{owner} was trained for a regression (problem_type in its config.json), so it tells "
            "no classes apart: choose weights that were trained to classify."
        )
    return "sigmoid" if problem == "multi_label_classification" else "softmax"


def _classes(config: Any) -> tuple[tuple[str, ...], str]:
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    unnamed = [f"LABEL_{index}" for index in range(config.num_labels)]
    if names == unnamed:
        return numbered(config.num_labels), "numbers"
    return tuple(names), "own"
