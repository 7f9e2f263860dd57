"""Segmentation of what a point or a box marks: HQ-SAM (Ke et al. 2023, arXiv 2306.01567)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdigin.errors import UserError
from fastdigin.models.missing import loading, require
from fastdigin.models.weights import FrozenNetwork, check_weights, read_weights

KINDS = ("vit_tiny", "vit_b", "vit_l", "vit_h")
HUB = "lkeab/hq-sam"

# TinyViT's own classification head, which segmentation never runs; checkpoints may lack it.
_UNUSED = ("image_encoder.norm_head.", "image_encoder.head.")


@dataclass(frozen=True)
class Prompt:
    """What marks the object: points (N, 2) on it, or a box (4,), in pixels of the image.

    A point is (x, y), a box (left, top, right, bottom).
    """

    points: Tensor | None = None
    box: Tensor | None = None


class Segmenter(FrozenNetwork):
    """A frozen ``segment_anything_hq`` Sam. It masks with the high-quality token alone.

    Args:
        network: is frozen and put in evaluation mode, in place.
        name: in results.

    Example:
        >>> segmenter = fd.Segmenter.load("hq-sam:vit_h")
    """

    def __init__(self, network: nn.Module, name: str = "hq-sam"):
        super().__init__(network, name)

    @classmethod
    def load(cls, spec: str, checkpoint: str | Path | None = None) -> Segmenter:
        """ "hq-sam:vit_tiny", vit_b, vit_l or vit_h, on the CPU in float32.

        checkpoint: its .pth (tensors only are unpickled) or .safetensors; by default
        sam_hq_KIND.pth of the hub's lkeab/hq-sam, which is fetched once.
        Raises MissingFiles if there are no weights, UserError for anything else that is wrong.
        """
        build, path = find_segmenter(spec, checkpoint)
        network = build(checkpoint=None)
        _load_weights(network, path, spec)
        return cls(network, spec)

    def masks(self, images: Sequence[Tensor], prompts: Sequence[Prompt]) -> list[Tensor]:
        """One boolean mask (H, W) per image (3, H, W) in [0, 1]."""
        from segment_anything_hq import SamPredictor

        predictor, found = SamPredictor(self.network), []
        for image, prompt in zip(images, prompts, strict=True):
            # SAM was trained on 8-bit images.
            predictor.set_image((255 * image).round().byte().permute(1, 2, 0).cpu().numpy())
            given: dict[str, Any] = {"multimask_output": False, "hq_token_only": True}
            if prompt.points is not None:
                given["point_coords"] = prompt.points.cpu().numpy()
                given["point_labels"] = [1] * len(prompt.points)
            if prompt.box is not None:
                given["box"] = prompt.box.cpu().numpy()
            masks, _, _ = predictor.predict(**given)
            found.append(torch.from_numpy(masks[0]))
        return found


def find_segmenter(spec: str, checkpoint: str | Path | None = None) -> tuple[Callable, Path]:
    """What ``Segmenter.load`` loads, and raises: the network's builder and its weights."""
    family, _, kind = spec.partition(":")
    if family != "hq-sam" or kind not in KINDS:
        raise UserError(
            f"segmenter {spec!r} is not understood: write hq-sam:KIND, where KIND is one of "
            f"{', '.join(KINDS)}"
        )
    build = _registry()[kind]
    return build, _download(kind) if checkpoint is None else Path(os.path.expanduser(checkpoint))


def _registry() -> dict:
    """The builders of ``segment_anything_hq``.

    Its import registers networks of its own under names of timm's; timm gets its own back.
    """
    for package in ("timm", "torchvision"):
        require(package, "segment", "HQ-SAM")
    from timm.models import register_model, tiny_vit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = require("segment_anything_hq", "segment", "HQ-SAM")
        for name in dir(tiny_vit):
            if name.startswith("tiny_vit_"):
                register_model(getattr(tiny_vit, name))
    return library.sam_model_registry


def _download(kind: str) -> Path:
    from huggingface_hub import hf_hub_download

    name = f"sam_hq_{kind}.pth"
    files = f"{name} of {HUB}, or any file given by --segmenter-weights (checkpoint=)"
    with loading(f"segmenter 'hq-sam:{kind}'", files, f"hf download {HUB} {name}"):
        return Path(hf_hub_download(HUB, name))


def _load_weights(network: nn.Module, path: Path, spec: str) -> None:
    state = read_weights(path, "segmenter weights")
    owner = f"segmenter {spec!r} with weights '{path}'"
    with loading(owner, f"the weights of {spec}"):
        found = network.load_state_dict(state, strict=False)
    missing = [name for name in found.missing_keys if not name.startswith(_UNUSED)]
    check_weights(owner, network, missing, found.unexpected_keys)
