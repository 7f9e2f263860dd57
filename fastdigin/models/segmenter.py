"""Segmentation of what a point or a box marks: HQ-SAM (Ke et al. 2023, arXiv 2306.01567)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from fastdigin.errors import UserError
from fastdigin.models.missing import loading, require
from fastdigin.models.weights import check_weights, read_weights
from fastdigin.storage import weights_fingerprint

KINDS = ("vit_tiny", "vit_b", "vit_l", "vit_h")
HUB = "lkeab/hq-sam"
BATCH = 4  # images that are encoded together; at 1024 px a ViT-H takes some GB for each

# TinyViT's own classification head, which segmentation never runs; checkpoints may lack it.
_UNUSED = ("image_encoder.norm_head.", "image_encoder.head.")


@dataclass(frozen=True)
class Prompt:
    """What marks the object: points (N, 2) on it, or a box (4,), in pixels of the image.

    A point is (x, y), a box (left, top, right, bottom).
    """

    points: Tensor | None = None
    box: Tensor | None = None


class Segmenter:
    """A frozen ``segment_anything_hq`` Sam. It masks with the high-quality token alone.

    Args:
        network: is frozen and put in evaluation mode, in place.
        name: in results.

    Example:
        >>> segmenter = fd.Segmenter.load("hq-sam:vit_h")
    """

    def __init__(self, network: nn.Module, name: str = "hq-sam"):
        self.network = network.eval().requires_grad_(False)
        self.name = name

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

    @property
    def device(self) -> torch.device:
        return self.network.device

    def to(self, device: torch.device | str) -> Segmenter:
        """Moves the network, in place; returns self."""
        self.network.to(device)
        return self

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights."""
        return weights_fingerprint([self.network])

    @torch.no_grad()
    def masks(self, images: Sequence[Tensor], prompts: Sequence[Prompt]) -> list[Tensor]:
        """One boolean mask (H, W) per image (3, H, W) in [0, 1], as SamPredictor finds it.

        The images are encoded BATCH at a time; they must have one size.
        """
        found = []
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            found += self._mask_batch(images[part], prompts[part])
        return found

    def _mask_batch(self, images: Sequence[Tensor], prompts: Sequence[Prompt]) -> list[Tensor]:
        from segment_anything_hq.utils.transforms import ResizeLongestSide

        network, original = self.network, tuple(images[0].shape[-2:])
        transform = ResizeLongestSide(network.image_encoder.img_size)
        # SAM was trained on 8-bit images resized by Pillow.
        arrays = [(255 * x).round().byte().permute(1, 2, 0).cpu().numpy() for x in images]
        resized = [torch.from_numpy(transform.apply_image(a)).permute(2, 0, 1) for a in arrays]
        inputs = torch.stack(resized).to(self.device)
        features, early = network.image_encoder(network.preprocess(inputs))
        found = []
        for i, prompt in enumerate(prompts):
            points = boxes = None
            if prompt.points is not None:
                coordinates = transform.apply_coords_torch(prompt.points[None], original)
                labels = torch.ones(coordinates.shape[:2], dtype=torch.int)
                points = coordinates.to(self.device), labels.to(self.device)
            if prompt.box is not None:
                boxes = transform.apply_boxes_torch(prompt.box[None], original).to(self.device)
            sparse, dense = network.prompt_encoder(points=points, boxes=boxes, masks=None)
            logits, _ = network.mask_decoder(
                image_embeddings=features[i : i + 1],
                image_pe=network.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
                hq_token_only=True,
                interm_embeddings=[early[0][i : i + 1]],
            )
            logits = network.postprocess_masks(logits, tuple(inputs.shape[-2:]), original)
            found.append(logits[0, 0] > network.mask_threshold)
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
    return build, _download(kind) if checkpoint is None else Path(checkpoint).expanduser()


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
