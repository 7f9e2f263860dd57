"""A frozen latent diffusion model: text encoder, U-Net, VAE and noise schedule."""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.models.attention import AttentionControl, install_processors
from fastdigin.models.ddim import DDIMTable, ddim_table

EMBEDDED = "embedded"


class LatentDiffusion:
    """Stable Diffusion 1.x or 2.x, or anything of the same component classes.

    The networks are used as they are: frozen, in evaluation mode. ``load`` prepares them; whoever
    passes networks of their own prepares them (the engine refuses trainable weights).

    attention: the U-Net's implementation of attention (fastdigin_kernels.dispatch): "auto" times
    those there are, once per shape; a name ("sdpa", "triton", "cpp", "xformers", "reference") pins
    one, and raises UserError where it cannot run.
    """

    def __init__(
        self,
        unet,
        vae,
        text_encoder,
        tokenizer,
        scheduler,
        *,
        name: str = "model",
        attention: str = "auto",
    ):
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.tokenizer, self.scheduler, self.name = tokenizer, scheduler, name
        self.attention = attention
        install_processors(unet, attention)

    @classmethod
    def load(
        cls,
        source: str = EMBEDDED,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        attention: str = "auto",
    ) -> LatentDiffusion:
        """Loads ``"embedded"``, a local diffusers folder or a hub id (safetensors only).

        device: default is CUDA where there is one. Raises UserError if nothing can be loaded.
        """
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        from fastdigin.models.frozen import freeze_aware

        folder = _resolve(source)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                pipe = StableDiffusionPipeline.from_pretrained(
                    folder,
                    torch_dtype=dtype,
                    use_safetensors=True,
                    safety_checker=None,
                    feature_extractor=None,
                    requires_safety_checker=False,
                )
            if len(pipe.tokenizer) < 3:  # transformers makes an empty one up where there is none
                raise ValueError("its tokenizer has no vocabulary.")
        except (
            OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError
        ) as error:  # fmt: skip
            raise UserError(
                f"model {source!r} cannot be loaded: {_first_sentence(error)} Use 'embedded', a "
                "local diffusers folder of Stable Diffusion 1.x or 2.x with safetensors weights, "
                "or a hub id (which needs a connection the first time)."
            ) from error
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        for network in (pipe.unet, pipe.vae, pipe.text_encoder):
            network.to(device).eval().requires_grad_(False)
        # Convolutions on CPU and on tensor cores are faster with channels last.
        for network in (pipe.unet, pipe.vae):
            network.to(memory_format=torch.channels_last)
            freeze_aware(network)
        return cls(
            pipe.unet,
            pipe.vae,
            pipe.text_encoder,
            pipe.tokenizer,
            DDIMScheduler.from_config(pipe.scheduler.config),
            name=source,
            attention=attention,
        )

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
        size = self.unet.config.sample_size
        return (self.unet.config.in_channels, size, size)

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def text_length(self) -> int:
        """Tokens per prompt, special tokens and padding included."""
        return self.tokenizer.model_max_length

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        return (self.unet, self.vae, self.text_encoder)

    @lru_cache(maxsize=16)  # noqa: B019 - a model lives as long as its process
    def ddim_table(self, steps: int) -> DDIMTable:
        """The sampler's coefficients for ``steps`` steps (models/ddim.py)."""
        return ddim_table(self.scheduler, steps)

    @lru_cache(maxsize=1)  # noqa: B019
    @torch.no_grad()
    def cross_attention_shapes(self) -> dict[str, tuple[int, int]]:
        """Cross-attention layer -> (heads, queries N), found by one U-Net call."""
        record: dict[str, tuple[Tensor, Tensor]] = {}
        place = {"device": self.device, "dtype": self.dtype}
        text = torch.zeros(1, 1, self.unet.config.cross_attention_dim, **place)
        timestep = torch.zeros(1, dtype=torch.long, device=self.device)
        latents = torch.zeros(1, *self.latent_shape, **place)
        self.predict(latents, timestep, text, AttentionControl(record=record))
        return {layer: tuple(queries.shape[1:3]) for layer, (queries, _) in record.items()}

    def tokenize(self, prompt: str) -> list[int]:
        """Token ids, padded to ``text_length``. UserError if the prompt is too long."""
        ids = self.tokenizer(prompt, padding="max_length", max_length=self.text_length).input_ids
        if len(ids) > self.text_length:
            raise UserError(
                f"prompt {prompt!r} takes {len(ids)} tokens, the text encoder reads "
                f"{self.text_length}: shorten it"
            )
        return ids

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """(B, L, D) embeddings. One prompt at a time, so that neighbours cannot change a bit."""
        rows = [
            self.text_encoder(torch.tensor([self.tokenize(p)], device=self.device))[0]
            for p in prompts
        ]
        return torch.cat(rows)

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
    ) -> Tensor:
        """The U-Net's output (noise or velocity), in the latents' dtype."""
        output = self.unet(
            latents_bchw.to(self.dtype),
            timesteps_b,
            context_bld.to(self.dtype),
            cross_attention_kwargs=None if control is None else {"control": control},
            return_dict=False,
        )[0]
        return output.to(latents_bchw.dtype)


def _resolve(source: str) -> str:
    if source == EMBEDDED:
        from fastdigin.embedded import model_folder

        return str(model_folder())
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise UserError(
                f"model folder {source!r} has no model_index.json: it must be a diffusers folder "
                "as written by pipeline.save_pretrained()"
            )
        try:
            name = json.loads((path / "model_index.json").read_text())["_class_name"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"model folder {source!r}: model_index.json is not an index of a diffusers pipeline"
            ) from error
        if name != "StableDiffusionPipeline":
            raise UserError(
                f"model folder {source!r} holds a {name}; only StableDiffusionPipeline (Stable "
                "Diffusion 1.x and 2.x) is supported"
            )
        return str(path)
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        similar = difflib.get_close_matches(source, [EMBEDDED])
        hint = " (did you mean 'embedded'?)" if similar else ""
        raise UserError(
            f"model {source!r} is neither 'embedded', nor an existing folder, nor a hub id of the "
            f"form owner/name{hint}"
        )
    return source


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(".") + "."
