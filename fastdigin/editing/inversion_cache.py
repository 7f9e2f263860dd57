"""Inversions kept on disk: the same photo, prompt, model and settings are inverted once."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from fastdigin.editing.inversion import Inversion, InversionSettings, invert
from fastdigin.engine.sampler import StepFunctions
from fastdigin.engine.steps import whole_blocks
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.storage import (
    LIMIT,
    TensorCache,
    arithmetic,
    cache_key,
    cached_batch,
    weights_fingerprint,
)
from fastdigin_kernels.common.choices import cache_folder

FORMAT = 1  # to be raised when the same inputs shall give another inversion


class InversionCache:
    """Inversions made by a model, kept in a folder.

    A kept inversion equals a fresh one bit for bit: the key holds the pixels, the prompt, all
    weights, the noise schedule, the settings, and what the last bits depend on (the width of the
    batch, the device, the threads, the version of torch, the attention that was asked for; "auto"
    may choose another one on another day).

    Args:
        model: whose inversions are kept.
        folder: None takes inversions/ of the user's cache.
        limit: how many bytes the folder may hold; the inversions unused for longest go.

    Example:
        >>> tools = fd.PhotoTools(inversions=fd.InversionCache(model))
    """

    def __init__(
        self, model: LatentDiffusion, folder: str | Path | None = None, limit: int = LIMIT
    ):
        self.model = model
        folder = (
            cache_folder() / "inversions" if folder is None else Path(os.path.expanduser(folder))
        )
        self._files = TensorCache(folder, limit)

    def invert(
        self,
        images: Sequence[Tensor],
        prompts: Sequence[str],
        settings: InversionSettings,
        *,
        batch: int,
        functions: StepFunctions | None = None,
        on_step: Callable[[float], None] | None = None,
    ) -> list[Inversion]:
        """As ``fastdigin.editing.inversion.invert``; only what is not kept is computed."""
        functions = functions or StepFunctions(self.model)
        rows, steps = len(whole_blocks([None], batch)), type(functions).__name__
        last_bits = rows, arithmetic(self.model.device), steps
        keys = [
            cache_key(FORMAT, self._fingerprint, image, prompt, settings, last_bits)
            for image, prompt in zip(images, prompts, strict=True)
        ]
        made: list[int] = []

        def compute(missing: list[int]) -> Iterator[dict[str, Tensor]]:
            made.extend(missing)
            fresh = invert(
                self.model, [images[n] for n in missing], [prompts[n] for n in missing], settings,
                batch=batch, functions=functions, on_step=on_step,
            )  # fmt: skip
            for inversion in fresh:
                values = {f.name: getattr(inversion, f.name) for f in dataclasses.fields(inversion)}
                yield {name: x for name, x in values.items() if isinstance(x, Tensor)}

        kept = cached_batch(self._files, keys, compute)
        if len(made) < len(keys) and on_step is not None:
            on_step(len(keys) - len(made))
        return [
            self._inversion(tensors, prompt) for tensors, prompt in zip(kept, prompts, strict=True)
        ]

    def _inversion(self, tensors: Mapping[str, Tensor], prompt: str) -> Inversion:
        here = {name: tensor.to(self.model.device) for name, tensor in tensors.items()}
        return Inversion(**{"null_text": None, **here, "prompt": prompt})

    @cached_property
    def _fingerprint(self) -> str:
        parts = vars(self.model)
        networks = [parts[name] for name in sorted(parts) if isinstance(parts[name], nn.Module)]
        scheduler = self.model.scheduler
        schedule = type(scheduler).__name__, sorted(scheduler.config.items())
        model = self.model
        how = model.zero_empty_prompt, model.vae.config.scaling_factor, model.attention
        return cache_key(self.model.name, weights_fingerprint(networks), schedule, *how)
