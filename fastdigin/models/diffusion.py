"""A frozen latent diffusion model: text encoders, U-Net, VAE and noise schedule."""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.models.attention import AttentionControl, install_processors
from fastdigin.models.ddim import (
    DDIMTable,
    Solver,
    choose_solver,
    ddim_table,
    is_few_step,
    starts_last,
)
from fastdigin.models.model_files import EMBEDDED
from fastdigin.models.text import embeddings, token_ids
from fastdigin.storage import fingerprint

__all__ = ["EMBEDDED", "LatentDiffusion"]

log = logging.getLogger(__name__)


class LatentDiffusion:
    """Stable Diffusion 1.x, 2.x or XL, their Turbo and LCM models, or anything of the same classes.

    Made by :meth:`from_pretrained` or :meth:`from_pipe`; the constructor takes networks, and
    prepares them in place: frozen, in evaluation mode, with layers that keep less for the backward,
    with channels last.

    Args:
        unet, vae, text_encoder, tokenizer, scheduler: The components of diffusers' pipelines.
        text_encoder_2, tokenizer_2: SDXL's, whose embeddings stand beside those of the first.
        size: Side of the images in pixels; None takes that of the U-Net's training.
        zero_empty_prompt: Whether the embeddings of the empty prompt are zeros (SDXL).
        name: What results and errors call the model.
        attention: The U-Net's implementation of attention (fastdigin_kernels.attention): "auto"
            times those there are, once per shape; the name of one pins it.

    Raises:
        UserError: ``size`` is none that the U-Net can halve, or ``attention`` cannot run.

    Example:
        >>> model = LatentDiffusion.from_pretrained("embedded")
    """

    def __init__(
        self, unet, vae, text_encoder, tokenizer, scheduler, *, text_encoder_2=None,
        tokenizer_2=None, size: int | None = None, zero_empty_prompt: bool = False,
        name: str = "model", attention: str = "auto",
    ):  # fmt: skip
        # Here, because diffusers and transformers take seconds to import.
        from fastdigin.models.loading import prepare

        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.tokenizer, self.name = tokenizer, name
        self.scheduler = scheduler
        self._own_scheduler = self.scheduler
        self.text_encoder_2, self.tokenizer_2 = text_encoder_2, tokenizer_2
        self.zero_empty_prompt = zero_empty_prompt
        self._trained_size = self._size_of_files()
        if size is None and self._trained_size is None:
            raise UserError(
                f"model {name!r} does not say at which square size it was trained "
                f"(sample_size is {unet.config.sample_size!r}): give size, in pixels"
            )
        self.image_size: int = self._trained_size if size is None else size
        """Side of the square images, in pixels."""
        smallest = self._scale * 2 ** (len(unet.config.block_out_channels) - 1)
        if self.image_size < smallest or self.image_size % smallest:
            raise UserError(
                f"size must be a multiple of {smallest} pixels for model {name!r}, got {size}"
            )
        self.attention = attention
        prepare(unet, vae, text_encoder, text_encoder_2)
        install_processors(unet, attention)

    @classmethod
    def from_pretrained(
        cls,
        source: str = EMBEDDED,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        size: int | None = None,
        attention: str = "auto",
        lora: str | Sequence[str] = (),
    ) -> LatentDiffusion:
        """Loads a model from its files (safetensors only; no code of others runs).

        What kind of model it is, its solver included, is read from the files (models/ddim.py tells
        which solvers are kept).

        Args:
            source: ``"embedded"``, a hub id like "CompVis/stable-diffusion-v1-4", or a local folder
                as diffusers' ``save_pretrained`` writes it.
            device: Default is CUDA where there is one.
            dtype: Of the networks: "auto", "bf16", "fp16", "fp32" or one of torch's; latents,
                embeddings and optimisers stay in single precision. "auto" is bf16 on GPUs that
                compute in it (sm_80 and newer), fp16 on older ones, fp32 on CPUs.
            size: Side of the images in pixels, for example 256 to run Stable Diffusion 1.4 on a
                small machine; models draw best at the size they were trained for.
            attention: As for the constructor.
            lora: PATH or PATH:SCALE of LoRA weights, or several, which are added to the model's:
                a safetensors file (of diffusers, PEFT or kohya), a folder or a hub id.

        Returns:
            The model, ready for ``Engine``.

        Raises:
            MissingFiles: Files are not here and cannot be fetched; it names the command.
            UserError: The model is of another kind, or its weights are not whole or not finite.

        Example:
            >>> model = LatentDiffusion.from_pretrained("embedded", device="cpu")
            >>> model.image_size
            64
        """
        from fastdigin.models.loading import load_parts

        loras = [lora] if isinstance(lora, str) else list(lora)
        parts = load_parts(source, device, dtype, loras)
        name = " + ".join([source, *loras])
        return cls(**parts, size=size, name=name, attention=attention)

    load = from_pretrained

    @classmethod
    def from_pipe(
        cls, pipe, *, size: int | None = None, name: str | None = None, attention: str = "auto"
    ) -> LatentDiffusion:
        """The model of a pipeline of diffusers, on its device and in its dtype.

        The pipeline stays as it is and can be used on. Its weights are shared, but for those of
        convolutions, which are copied in another order. What the pipeline does around its networks
        (safety checker, IP adapters) is left out.

        Args:
            pipe: A StableDiffusionPipeline (1.x, 2.x, SD-Turbo), StableDiffusionXLPipeline
                (SDXL, SDXL-Turbo) or LatentConsistencyModelPipeline.
            size: Side of the images in pixels; None takes that of the U-Net's training.
            name: What results and errors call the model; None takes the one it was loaded by.
            attention: As for the constructor.

        Returns:
            The same model as ``from_pretrained`` would load from ``pipe.save_pretrained(folder)``.

        Raises:
            UserError: The pipeline, or a component of it, is of another kind.

        Example:
            >>> pipe = StableDiffusionPipeline.from_pretrained("CompVis/stable-diffusion-v1-4")
            >>> engine = Engine(LatentDiffusion.from_pipe(pipe))
        """
        from fastdigin.models.loading import pipeline_parts

        parts = pipeline_parts(pipe)
        name = name or str(pipe.name_or_path or type(pipe).__name__)
        return cls(**parts, size=size, name=name, attention=attention)

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype  # diffusers' own property walks all modules

    @property
    def state_dtype(self) -> torch.dtype:
        """Of latents, embeddings and coefficients: fp32, or fp64 for an fp64 model."""
        return torch.float64 if self.dtype is torch.float64 else torch.float32

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        size = self.image_size // self._scale
        return (self.unet.config.in_channels, size, size)

    @property
    def _scale(self) -> int:
        """Pixels a latent, along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def _size_of_files(self) -> int | None:
        """In pixels; some configurations leave it to the VAE's, or have a height and a width."""
        unet, vae = self.unet.config.sample_size, self.vae.config.sample_size
        latents = unet if isinstance(unet, (list, tuple)) else [unet] if unet else []
        sides = {side * self._scale for side in latents}
        if not sides and isinstance(vae, int):
            sides = {vae}
        return sides.pop() if len(sides) == 1 else None

    @property
    def text_length(self) -> int:
        """Tokens per prompt, special tokens and padding included."""
        positions = self.text_encoder.config.max_position_embeddings
        # A tokenizer that was saved without its length says 10^30.
        return min(self.tokenizer.model_max_length, positions)

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        networks = (self.unet, self.vae, self.text_encoder, self.text_encoder_2)
        return tuple(network for network in networks if network is not None)

    @property
    def text_width(self) -> int:
        """D of the text embeddings (L, D)."""
        return self.unet.config.cross_attention_dim

    @property
    def pooled_width(self) -> int:
        """P of the pooled embeddings; 0 for models that take none."""
        return 0 if self.text_encoder_2 is None else self.text_encoder_2.config.projection_dim

    @property
    def embeds_guidance(self) -> bool:
        """Whether the U-Net takes the guidance scale as an input (LCM)."""
        return self.unet.config.time_cond_proj_dim is not None

    def unusual(self) -> dict[str, Any]:
        """What results depend on beside the name: the size and a solver that were chosen in Python.

        None stands for the model's own.
        """
        size = solver = None
        if self.image_size != self._trained_size:
            size = self.image_size
        if self.scheduler is not self._own_scheduler:
            config = sorted(map(str, self.scheduler.config.items()))
            solver = f"{type(self.scheduler).__name__} {fingerprint(*config)}"
        return {"image_size": size, "solver": solver}

    def has_null_branch(self, guidance_scale: float) -> bool:
        """Whether a step with this scale runs the U-Net on the null text as well."""
        return guidance_scale != 1.0 and not self.embeds_guidance

    @property
    def scheduler(self) -> Solver:
        """The solver; of another scheduler that is put here, the one that stands for it."""
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: SchedulerMixin) -> None:
        self._scheduler = choose_solver(scheduler, self._distilled)
        self._tables: dict[tuple[int, str], DDIMTable] = {}
        if starts_last(self._scheduler) and not self._distilled:
            log.warning(
                "%s starts from the last timestep, as distilled models do, but its name does not "
                "say that it is one (turbo, lightning, hyper): it takes 20 steps with guidance "
                "unless you give fewer and guidance 1", self.name,
            )  # fmt: skip

    @property
    def _distilled(self) -> bool:
        names = f"{self.name} {self.unet.config.get('_name_or_path')}"
        return re.search("turbo|lightning|hyper|distill", names, re.IGNORECASE) is not None

    @property
    def few_step(self) -> bool:
        """Whether the model was distilled to 1 to 4 steps."""
        return is_few_step(self.scheduler, self._distilled)

    @property
    def usual_steps(self) -> int:
        """Steps where nobody says otherwise: the paper's 20, or 4."""
        return 4 if self.few_step else 20

    @property
    def usual_guidance_scale(self) -> float:
        """The paper's 3; 1 (off) for Turbo models; for LCM what its own pipeline takes."""
        if self.embeds_guidance:
            return 8.5
        return 1.0 if self.few_step else 3.0

    def ddim_table(self, steps: int) -> DDIMTable:
        """The sampler's coefficients for ``steps`` steps (models/ddim.py)."""
        key = steps, repr(self.scheduler.config)
        if key not in self._tables:
            self._tables[key] = ddim_table(self.scheduler, steps)
        return self._tables[key]

    @lru_cache(maxsize=1)  # noqa: B019
    @torch.no_grad()
    def attention_shapes(self) -> dict[str, tuple[int, int]]:
        """Attention layer -> (heads, queries N), found by one U-Net call."""
        store: dict[str, tuple[Tensor, Tensor]] = {}
        options = {"device": self.device, "dtype": self.dtype}
        # Of the usual length: an attention that no run has need not be timed.
        text = torch.zeros(1, self.text_length, self.text_width, **options)
        pooled = torch.zeros(1, self.pooled_width, **options) if self.pooled_width else None
        timestep = torch.zeros(1, dtype=torch.long, device=self.device)
        latents = torch.zeros(1, *self.latent_shape, **options)
        vector = self.vector(pooled, torch.ones(1, **options))
        control = AttentionControl(store=store, stored_queries=sys.maxsize)
        self.predict(latents, timestep, text, control, vector)
        return {layer: tuple(queries.shape[1:3]) for layer, (queries, _) in store.items()}

    def tokenize(self, prompt: str) -> list[int]:
        """Token ids, padded to ``text_length``. UserError if the prompt is too long."""
        return token_ids(self.name, self.tokenizer, self.text_encoder, self.text_length, prompt)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """(B, L, D) embeddings. One prompt at a time, so that neighbours cannot change a bit."""
        return torch.stack([self._encode(prompt)[0] for prompt in prompts])

    def encode_pooled(self, prompts: Sequence[str]) -> Tensor | None:
        """(B, P) pooled embeddings; None for models that take none (all but SDXL)."""
        if not self.pooled_width:
            return None
        return torch.stack([self._encode(prompt)[1] for prompt in prompts])

    def _encode(self, prompt: str) -> tuple[Tensor, Tensor | None]:
        ids, ids_2 = self.tokenize(prompt), None
        if self.text_encoder_2 is not None:
            second = self.tokenizer_2, self.text_encoder_2
            ids_2 = token_ids(self.name, *second, self.text_length, prompt)
        text, pooled = embeddings(ids, self.text_encoder, ids_2, self.text_encoder_2)
        if pooled is not None and self.zero_empty_prompt and not prompt:
            return torch.zeros_like(text), torch.zeros_like(pooled)
        return text, pooled

    def vector(self, pooled_bp: Tensor | None, guidance_b: Tensor) -> Tensor | None:
        """What ``predict`` needs beside latents, timesteps and text: (B, E), or None.

        For models that take them, the pooled embeddings with the sizes that SDXL is told (Podell
        et al. 2023, section 2.2); for others or besides, the guidance scales, embedded like
        timesteps (LCM, Luo et al. 2023, section 4.1).
        """
        parts = []
        if pooled_bp is not None:
            side = self.image_size
            # Original size, top left corner of the crop, target size.
            sizes = torch.tensor((side, side, 0, 0, side, side)).to(guidance_b, non_blocking=True)
            parts += [pooled_bp.to(guidance_b), sizes.expand(len(pooled_bp), -1)]
        if self.embeds_guidance:
            half = self.unet.config.time_cond_proj_dim // 2
            exponents = torch.arange(half, device=guidance_b.device) / (half - 1)
            frequencies = torch.exp(-math.log(10000.0) * exponents).to(guidance_b)
            angles = (guidance_b[:, None] - 1) * 1000 * frequencies
            parts.append(torch.cat([angles.sin(), angles.cos()], dim=1))
        return torch.cat(parts, dim=1) if parts else None

    @torch.no_grad()
    def encode_image(self, image_3hw: Tensor) -> Tensor:
        """An image in [0, 1] to its latent (C, h, w): the mean of the posterior, scaled."""
        image = image_3hw.to(self.device, self.vae.dtype) * 2 - 1
        posterior = self.vae.encode(image[None]).latent_dist
        return posterior.mean[0] * self.vae.config.scaling_factor

    def decode(self, latents_bchw: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W) in [0, 1]; differentiable."""
        latents = latents_bchw.to(self.vae.dtype) / self.vae.config.scaling_factor
        return (self.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)

    def predict(
        self,
        latents_bchw: Tensor,
        timesteps_b: Tensor,
        context_bld: Tensor,
        control: AttentionControl | None = None,
        vector_be: Tensor | None = None,
    ) -> Tensor:
        """The U-Net's output (noise or velocity), in the latents' dtype.

        vector_be: what ``vector`` made, for models that take one.
        """
        added, guidance = self._split(vector_be)
        output = self.unet(
            latents_bchw.to(self.dtype),
            timesteps_b,
            context_bld.to(self.dtype),
            timestep_cond=guidance,
            added_cond_kwargs=added,
            cross_attention_kwargs=None if control is None else {"control": control},
            return_dict=False,
        )[0]
        return output.to(latents_bchw.dtype)

    def _split(self, vector_be: Tensor | None) -> tuple[dict[str, Tensor] | None, Tensor | None]:
        """A vector's parts for the U-Net: added_cond_kwargs and timestep_cond."""
        if vector_be is None:
            return None, None
        vector, width = vector_be.to(self.dtype), self.pooled_width
        if not width:
            return None, vector
        added = {"text_embeds": vector[:, :width], "time_ids": vector[:, width : width + 6]}
        return added, vector[:, width + 6 :] if self.embeds_guidance else None
