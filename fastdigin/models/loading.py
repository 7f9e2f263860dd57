"""From a model's files to its frozen networks."""

from __future__ import annotations

import json
import warnings
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import is_accelerate_available
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fastdigin.errors import UserError
from fastdigin.models.ddim import choose_solver
from fastdigin.models.frozen import freeze_aware
from fastdigin.models.missing import first_sentence
from fastdigin.models.model_files import ModelFiles, find_model

_CLASSES = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}


def load_parts(
    source: str, device: str | torch.device | None, dtype: torch.dtype
) -> dict[str, Any]:
    """LatentDiffusion's arguments, the networks frozen and on the device.

    Raises UserError if anything is missing, broken or of a kind that is not supported.
    """
    files = find_model(source, half=dtype in (torch.float16, torch.bfloat16))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            parts = _read(files, dtype)
    except (
        OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError
    ) as error:  # fmt: skip
        raise UserError(
            f"model {source!r} cannot be loaded: {first_sentence(error)}. Its files are broken, or "
            "not those of a Stable Diffusion with safetensors weights: fetch or save it again"
        ) from error
    _check_kind(source, parts)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    for name in files.variants:
        parts[name].to(device).eval().requires_grad_(False)
    # Convolutions on CPU and on tensor cores are faster with channels last.
    for name in ("unet", "vae"):
        parts[name].to(memory_format=torch.channels_last)
        freeze_aware(parts[name])
    if files.is_xl:
        parts["zero_empty_prompt"] = bool(files.index.get("force_zeros_for_empty_prompt", True))
        if dtype is torch.float16 and parts["vae"].config.force_upcast:
            parts["vae"].float()  # SDXL's own VAE overflows in half precision
    return parts


def _read(files: ModelFiles, dtype: torch.dtype) -> dict[str, Any]:
    """Networks, tokenizers and the solver, as they are on disk but for the dtype."""
    parts: dict[str, Any] = {}
    for name, variant in files.variants.items():
        # Said, because diffusers warns where it would like to and cannot.
        lean = {"low_cpu_mem_usage": is_accelerate_available()} if name in ("unet", "vae") else {}
        parts[name] = _CLASSES[name].from_pretrained(
            files.folder,
            subfolder=name,
            variant=variant,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            **lean,
        )
    for name in ("tokenizer", "tokenizer_2") if files.is_xl else ("tokenizer",):
        parts[name] = CLIPTokenizer.from_pretrained(files.folder, subfolder=name)
        if len(parts[name]) < 3:  # transformers makes an empty one up where there is none
            raise ValueError(f"its {name} has no vocabulary.")
    config = json.loads((files.folder / "scheduler" / "scheduler_config.json").read_text())
    parts["scheduler"] = choose_solver(config)
    return parts


def _check_kind(source: str, parts: dict[str, Any]) -> None:
    """Raises UserError for relatives of Stable Diffusion that need inputs of another kind."""
    unet, vae = parts["unet"].config, parts["vae"].config
    wanted = {
        "in_channels": vae.latent_channels,  # more: inpainting, depth and upscaling models
        "addition_embed_type": "text_time" if "text_encoder_2" in parts else None,
        "class_embed_type": None,
        "encoder_hid_dim_type": None,
    }
    found = {name: getattr(unet, name, None) for name in wanted}
    # AutoencoderKL fills its latents by one factor here, not by a shift or statistics per channel.
    for name in ("shift_factor", "latents_mean", "latents_std"):
        wanted[name], found[name] = None, getattr(vae, name, None)
    for name, value in wanted.items():
        if found[name] != value:
            raise UserError(
                f"model {source!r} is not supported: its {name} is {found[name]!r}, and only "
                f"models with {value!r} are (text to image, no inpainting, depth or refiner)"
            )
