"""Real photos made ready for editing: inverted, their attention recorded, their masks found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from fastdigin.editing.attention_store import AttentionStore, store_attention
from fastdigin.editing.inversion import Inversion, InversionSettings, Method, invert
from fastdigin.editing.inversion_cache import InversionCache
from fastdigin.editing.masks import attention_mask, latent_mask, soften, tighten
from fastdigin.editing.prompts import phrase_tokens
from fastdigin.editing.segmentation import Segmentation
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Settings
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.tasks.captions import with_caption
from fastdigin.tasks.inputs import ImageInput, read_image, read_mask
from fastdigin.tasks.words import class_word, find_class

PROMPT = "a photo of a {}"
MaskEdge = Literal["soften", "tighten"]
EDGES = {"soften": soften, "tighten": tighten}


@dataclass(frozen=True)
class PhotoSettings:
    """What the tasks that start from a photo have in common.

    optimisation: of the engine; its steps and guidance serve inversion as well.
    """

    optimisation: Settings = dataclasses.field(default_factory=Settings)
    inversion_method: Method = "null-text"
    null_text_steps: int = 10

    def inversion(self) -> InversionSettings:
        return InversionSettings(
            steps=self.optimisation.steps,
            guidance_scale=self.optimisation.guidance_scale,
            null_text_steps=self.null_text_steps,
            method=self.inversion_method,
        )


@dataclass(frozen=True)
class SourcePhoto:
    """A user's photo and its words, checked. Its pixels are read again when its turn comes.

    source: the word of the prompt that names the object. fingerprint: of the input.
    """

    item: ImageInput
    prompt: str
    source: str
    fingerprint: str | None


@dataclass(frozen=True)
class PhotoTools:
    """What may help to prepare photos.

    inversions: keeps them between runs; None makes them anew. segmentation: finds the foreground
    where the user gives no mask; None takes the attention for it.
    """

    inversions: InversionCache | None = None
    segmentation: Segmentation | None = None

    def described(self) -> dict[str, Any]:
        """What of it decides results, as plain values for run.json."""
        if self.segmentation is None:
            return {"segmenter": None}
        return {"segmenter": f"{self.segmentation.segmenter.name} by {self.segmentation.prompt}"}


NO_TOOLS = PhotoTools()


@dataclass(frozen=True)
class Source:
    """A photo that can be edited, on the model's device.

    image: (3, H, W) in [0, 1] at the model's size; reconstruction: what the inversion makes of
    it. mask: (H, W), 1 on the object: the user's own, or an automatic one.
    """

    photo: SourcePhoto
    image: Tensor
    inversion: Inversion
    attention: AttentionStore
    reconstruction: Tensor
    mask: Tensor
    latent_mask: Tensor


def check_photo(
    model: LatentDiffusion, classifier: Classifier, item: ImageInput
) -> tuple[SourcePhoto, int]:
    """Checks one input: the photo and the class of its object.

    Without a source class it is what the classifier sees; without a prompt it is PROMPT; the word
    of the source goes where "{}" stands in it, and a caption after it. A source
    given as an index, or with all its synonyms, is called by its first synonym.
    Raises UserError for anything that would fail later.
    """
    image = read_image(item, model.image_size)
    source = find_class(classifier, image, item.source)
    given = (item.source or "").strip()
    word = class_word(classifier, source) if given.isdecimal() or "," in given else given
    word = word or class_word(classifier, source)
    prompt = with_caption(model, (item.prompt or PROMPT).replace("{}", word), item.caption)
    phrase_tokens(model, prompt, word)
    read_mask(item, model.image_size)
    return SourcePhoto(item, prompt, word, item.fingerprint()), source


def edited_start(model: LatentDiffusion, prompt: str, inversion: Inversion) -> dict[str, Any]:
    """The arguments of a Job that starts from an inverted photo, with another prompt."""
    pooled = model.encode_pooled([prompt])
    if pooled is not None:
        pooled = torch.stack([pooled[0], inversion.null_pooled.to(pooled)])
    return {
        "latents": inversion.trajectory[0],
        "conditioning": model.encode_prompts([prompt])[0],
        "null_text": inversion.null_text,
        "pooled": pooled,
        "noise": inversion.noise,
    }


def prepare(
    engine: Engine,
    photos: Sequence[SourcePhoto],
    settings: InversionSettings,
    injected_fraction: float,
    *,
    tools: PhotoTools,
    batch: int,
    mask_edge: MaskEdge = "soften",
    on_step: Callable[[float], None] | None = None,
) -> list[Source]:
    """Reads and inverts photos and records what injection and masks need, ``batch`` at a time.

    mask_edge: what becomes of an automatic mask. "soften" adds a soft margin (the paper's),
    "tighten" cuts to the object itself.
    """
    model = engine.model
    images = [read_image(p.item, model.image_size) for p in photos]
    prompts = [p.prompt for p in photos]
    run = tools.inversions.invert if tools.inversions else partial(invert, model)
    inversions = run(
        images, prompts, settings, batch=batch, functions=engine.functions, on_step=on_step
    )
    records = store_attention(model, inversions, (injected_fraction,), batch=batch)
    masks = _masks(model, photos, images, records, tools.segmentation, EDGES[mask_edge])
    return [
        _source(model, *parts)
        for parts in zip(photos, images, inversions, records, masks, strict=True)
    ]


def _masks(model, photos, images, records, segmentation, edge) -> list[Tensor]:
    """The user's masks; where there is none, an automatic one."""
    masks = [read_mask(photo.item, model.image_size) for photo in photos]
    missing = [n for n, mask in enumerate(masks) if mask is None]
    found = []
    for n in missing:
        tokens = phrase_tokens(model, photos[n].prompt, photos[n].source)
        found.append(attention_mask(records[n].maps, tokens, model.image_size))
    if segmentation is not None:
        found = segmentation.foregrounds([images[n] for n in missing], found)
    for n, mask in zip(missing, found, strict=True):
        masks[n] = edge(mask)
    return masks


def _source(
    model,
    photo: SourcePhoto,
    image: Tensor,
    inversion: Inversion,
    record: AttentionStore,
    mask: Tensor,
) -> Source:
    mask = mask.to(inversion.encoded)
    reconstruction = model.decode(inversion.trajectory[-1:])[0].detach().to(mask)
    small = latent_mask(mask, model.latent_shape[-1])
    return Source(photo, image.to(mask), inversion, record, reconstruction, mask, small)
