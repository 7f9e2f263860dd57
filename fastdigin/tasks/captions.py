"""Captions of photos, which tell the diffusion model more than the name of a class."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fastdigin.datasets import PROMPT as DATASET_PROMPT
from fastdigin.errors import UserError
from fastdigin.models.captioner import Captioner
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.photos import ImageInput, read_any_image
from fastdigin.photos.collect import TABLE_COLUMNS
from fastdigin.storage import TensorCache, cache_key, cached

FORMAT = 1  # to be raised when the same photo shall get another caption
ROOM = 8
"""This part of the text encoder's tokens stays free: a target may take more than its source."""


def needs_caption(item: ImageInput) -> bool:
    """Whether nobody has said what the photo shows, beyond its class."""
    return item.caption is None and item.prompt in (None, DATASET_PROMPT)


def captioned(
    inputs: Iterable[ImageInput],
    captioner: Captioner,
    *,
    cache: TensorCache | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[ImageInput]:
    """The inputs, with captions where :func:`needs_caption` finds none.

    cache: keeps captions between runs. on_progress: called with the number of photos just done.
    A photo that cannot be read stays as it is: its own job will fail.
    """
    done = []
    for item in inputs:
        done.append(_captioned(item, captioner, cache) if needs_caption(item) else item)
        if on_progress:
            on_progress(1)
    return done


def with_caption(model: LatentDiffusion, prompt: str, caption: str | None) -> str:
    """ "PROMPT, CAPTION", with as many of the caption's words as the text encoder has room for."""
    words = (caption or "").replace("{}", "").rstrip(" .").split()
    room = model.text_length - model.text_length // ROOM
    while words:
        whole = f"{prompt}, {' '.join(words).rstrip(',')}"
        if len(model.tokenizer(whole).input_ids) <= room:
            return whole
        words.pop()
    return prompt


def _captioned(item: ImageInput, captioner: Captioner, cache: TensorCache | None) -> ImageInput:
    photo = ImageInput(item.id, item.image, crop=item.crop).fingerprint()
    key = photo and cache and cache_key(FORMAT, captioner.name, captioner.fingerprint, photo)

    def compute() -> dict[str, Tensor]:
        (caption,) = captioner.captions([read_any_image(item)])
        return {"caption": torch.tensor(list(caption.encode()), dtype=torch.uint8)}

    try:
        kept = cached(cache, key, compute)
    except UserError:
        return item
    caption = bytes(kept["caption"].tolist()).decode()
    return replace(item, caption=caption) if caption else item


def caption_table(inputs: Sequence[ImageInput], folder: Path) -> list[dict[str, str]]:
    """Rows of a table in ``folder`` that ``collect`` reads: what is known of each photo."""
    columns = [name for name in TABLE_COLUMNS if name not in ("image", "mask")]
    rows = []
    for item in inputs:
        row = {"image": item.image, "mask": item.mask}
        # As in any table: relative paths start at its folder.
        row = {k: v if v.is_absolute() else os.path.relpath(v, folder) for k, v in row.items() if v}
        row |= {name: value for name in columns if (value := getattr(item, name)) is not None}
        rows.append({name: str(value) for name, value in row.items()})
    return rows
