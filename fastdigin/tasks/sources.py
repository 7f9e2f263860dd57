"""Real photos made ready for editing: inverted, their attention recorded, their masks found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastdigin.editing.attention_store import AttentionStore, store_attention
from fastdigin.editing.inversion import Inversion, InversionSettings, invert
from fastdigin.editing.inversion_cache import InversionCache
from fastdigin.editing.masks import attention_mask, latent_mask, soften, tighten
from fastdigin.editing.prompts import phrase_tokens
from fastdigin.editing.schedules import Schedule
from fastdigin.editing.segmentation import Segmentation
from fastdigin.engine.engine import Engine
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.photos import ImageInput, read_image, read_mask
from fastdigin.tasks.captions import with_caption
from fastdigin.tasks.words import check_text, find_class, first_that_fits, words_for

PROMPT = "a photo of a {}"
MaskEdge = Literal["soften", "tighten"]
EDGES = {"soften": soften, "tighten": tighten}


@dataclass(frozen=True)
class SourcePhoto:
    """A user's photo, read and checked, and its words.

    image: (3, H, W) in [0, 1] at the model's size. mask: the user's own, (H, W), or None. source:
    the word of the prompt that names the object; source_class: its class.
    """

    item: ImageInput
    image: Tensor
    mask: Tensor | None
    prompt: str
    source: str
    source_class: int

    @property
    def content(self) -> tuple:
        """Equal for questions about one photo in the same words: they share its inversion."""
        image = self.item.image
        which = id(image) if isinstance(image, Tensor) else str(image)
        return which, self.item.crop, self.prompt


@dataclass(frozen=True)
class PhotoTools:
    """What may help to prepare photos.

    Args:
        inversions: keeps them between runs; None makes them anew.
        segmentation: finds the foreground where the user gives no mask; None takes the attention
            for it.

    Example:
        >>> segmenter = fd.Segmenter.load("hq-sam:vit_h")
        >>> tools = fd.PhotoTools(fd.InversionCache(model), fd.Segmentation(segmenter))
        >>> fd.counterfactuals(engine, photos, robust, "boot", tools=tools)
    """

    inversions: InversionCache | None = None
    segmentation: Segmentation | None = None

    def described(self) -> dict[str, Any]:
        """What of it affects results, as JSON values for run.json."""
        if self.segmentation is None:
            return {"segmenter": None}
        return {"segmenter": f"{self.segmentation.segmenter.name} by {self.segmentation.prompt}"}


NO_TOOLS = PhotoTools()


@dataclass(frozen=True)
class Source:
    """A photo that can be edited, on the model's device.

    image: (3, H, W) in [0, 1]; reconstruction: what the inversion makes of it. mask: (H, W), 1 on
    the object: the user's own, or an automatic one. latent_mask: the same at latent size.
    """

    photo: SourcePhoto
    image: Tensor
    inversion: Inversion
    attention: AttentionStore
    reconstruction: Tensor
    mask: Tensor
    latent_mask: Tensor


def read_photo(model: LatentDiffusion, classifier: Classifier, item: ImageInput) -> SourcePhoto:
    """Reads and checks one input: the photo, its mask, the class of its object, its prompt.

    Without a source class it is what the classifier sees; without a prompt it is PROMPT; the word
    of the source goes where "{}" stands in it, and a caption after it. That word is source_word, or
    what source says, or the first name of the class that the text encoder has room for.
    Raises UserError for anything that would fail later.
    """
    for name in ("prompt", "source", "source_word", "target_word", "background", "caption"):
        check_text(f"{name} of image {item.id!r}", getattr(item, name))
    for name in ("image", "mask"):
        _check_pixels(name, item)
    image = read_image(item, model.image_size)
    source = find_class(classifier, image, item.source)
    words = [item.source_word] if item.source_word else words_for(classifier, source, item.source)

    def use(word: str) -> tuple[str, str]:
        prompt = with_caption(model, (item.prompt or PROMPT).replace("{}", word), item.caption)
        phrase_tokens(model, prompt, word)
        return prompt, word

    prompt, word = first_that_fits(words, use, "source_word")
    return SourcePhoto(item, image, read_mask(item, model.image_size), prompt, word, source)


def _check_pixels(name: str, item: ImageInput) -> None:
    pixels = getattr(item, name)
    kinds = (str, Path, Tensor, type(None)) if name == "mask" else (str, Path, Tensor)
    if not isinstance(pixels, kinds) or (isinstance(pixels, Tensor) and pixels.is_meta):
        raise UserError(f"{name} of {item.id!r} is {pixels!r:.80}, wanted a file or a tensor")


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
        "offsets": inversion.offsets,
    }


def make_sources(
    engine: Engine,
    photos: Sequence[SourcePhoto],
    settings: InversionSettings,
    injected: Sequence[Schedule],
    self_injected: Sequence[Schedule] = (),
    *,
    tools: PhotoTools,
    batch: int,
    mask_edge: MaskEdge,
    on_step: Callable[[float], None] | None = None,
) -> list[Source]:
    """Inverts photos and records what injection and masks need, ``batch`` at a time.

    A photo that comes several times is inverted once. mask_edge: what becomes of an automatic
    mask. "soften" adds a soft margin (the paper's), "tighten" cuts to the object itself. on_step:
    called with the number of photos' worth of inversion just done.
    """
    model = engine.model
    run = tools.inversions.invert if tools.inversions else partial(invert, model)
    distinct = list({photo.content: photo for photo in photos}.values())
    share = len(photos) / len(distinct)
    inversions = run(
        [photo.image for photo in distinct], [photo.prompt for photo in distinct], settings,
        batch=batch, functions=engine.functions,
        on_step=None if on_step is None else lambda done: on_step(share * done),
    )  # fmt: skip
    attention = store_attention(model, inversions, injected, self_injected, batch=batch)
    made = {
        photo.content: parts for photo, *parts in zip(distinct, inversions, attention, strict=True)
    }
    inversions, attention = zip(*(made[photo.content] for photo in photos), strict=True)
    masks = _masks(model, photos, attention, tools.segmentation, EDGES[mask_edge])
    return [
        _source(model, *parts) for parts in zip(photos, inversions, attention, masks, strict=True)
    ]


def _masks(model, photos, attention, segmentation, edge) -> list[Tensor]:
    """The users' masks; where there is none, an automatic one."""
    masks = [photo.mask for photo in photos]
    missing = [n for n, mask in enumerate(masks) if mask is None]
    found = []
    for n in missing:
        tokens = phrase_tokens(model, photos[n].prompt, photos[n].source)
        found.append(attention_mask(attention[n].maps, tokens, model.image_size))
    if segmentation is not None:
        found = segmentation.foregrounds([photos[n].image for n in missing], found)
    for n, mask in zip(missing, found, strict=True):
        masks[n] = edge(mask)
    return masks


def _source(
    model: LatentDiffusion,
    photo: SourcePhoto,
    inversion: Inversion,
    attention: AttentionStore,
    mask: Tensor,
) -> Source:
    mask = mask.to(inversion.encoded)
    reconstruction = model.decode(inversion.trajectory[-1:])[0].detach().to(mask)
    small = latent_mask(mask, model.latent_shape[-1])
    return Source(photo, photo.image.to(mask), inversion, attention, reconstruction, mask, small)
