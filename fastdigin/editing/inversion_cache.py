"""Inversions kept on disk: the same photo, prompt, model and settings are inverted once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from fastdigin.caching import LIMIT, TensorCache, arithmetic, cache_key, weights_fingerprint
from fastdigin.editing.inversion import Inversion, InversionSettings, invert
from fastdigin.engine.batch import padded
from fastdigin.engine.sampler import StepFunctions
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin_kernels.choices import cache_folder

FORMAT = 1  # to be raised when the same inputs shall give another inversion


class InversionCache:
    """Inversions made by ``model``, in ``folder`` (default: inversions/ of the user's cache).

    A kept inversion equals a fresh one bit for bit: the key holds the pixels, the prompt, all
    weights, the noise schedule, the settings, and what the last bits depend on (the width of the
    batch, the device, the threads, the version of torch).
    """

    def __init__(
        self, model: LatentDiffusion, folder: str | Path | None = None, limit: int = LIMIT
    ):
        self.model = model
        folder = cache_folder() / "inversions" if folder is None else Path(folder).expanduser()
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
        place = len(padded([None], batch)), arithmetic(self.model.device), type(functions).__name__
        keys = [
            cache_key(FORMAT, self._fingerprint, image, prompt, settings, place)
            for image, prompt in zip(images, prompts, strict=True)
        ]
        found = {
            n: inversion
            for n, (key, prompt) in enumerate(zip(keys, prompts, strict=True))
            if (inversion := self._read(key, prompt)) is not None
        }
        if found and on_step is not None:
            on_step(len(found))
        missing = [n for n in range(len(images)) if n not in found]
        fresh = invert(
            self.model, [images[n] for n in missing], [prompts[n] for n in missing], settings,
            batch=batch, functions=functions, on_step=on_step,
        )  # fmt: skip
        for n, inversion in zip(missing, fresh, strict=True):
            values = {f.name: getattr(inversion, f.name) for f in dataclasses.fields(inversion)}
            self._files.put(keys[n], {k: v for k, v in values.items() if isinstance(v, Tensor)})
            found[n] = inversion
        return [found[n] for n in range(len(images))]

    def _read(self, key: str, prompt: str) -> Inversion | None:
        tensors = self._files.get(key)
        if tensors is None:
            return None
        place = {name: tensor.to(self.model.device) for name, tensor in tensors.items()}
        return Inversion(**({"null_text": None} | place | {"prompt": prompt}))

    @cached_property
    def _fingerprint(self) -> str:
        parts = vars(self.model)
        networks = [parts[name] for name in sorted(parts) if isinstance(parts[name], nn.Module)]
        scheduler = self.model.scheduler
        schedule = type(scheduler).__name__, sorted(scheduler.config.items())
        return cache_key(self.model.name, weights_fingerprint(networks), schedule)
