"""From a model's files, or from a pipeline of diffusers, to the parts of a LatentDiffusion."""

import copy
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import diffusers
import torch
from diffusers.utils import is_accelerate_available
from torch import nn
from transformers import CLIPTokenizer

from fastdigin.errors import UserError
from fastdigin.models.frozen import freeze_aware
from fastdigin.models.lora import add_lora
from fastdigin.models.missing import loading, without_bars
from fastdigin.models.model_files import NETWORKS, ModelFiles, components, find_model
from fastdigin.models.precision import choose_device, choose_dtype
from fastdigin.models.weights import check_weights

log = logging.getLogger(__name__)


def load_parts(
    source: str,
    device: str | torch.device | None,
    dtype: str | torch.dtype,
    loras: Sequence[str] = (),
) -> dict[str, Any]:
    """LatentDiffusion's arguments, from files.

    Raises UserError if anything is missing, broken or of a kind that is not supported.
    """
    owner, device = f"model {source!r}", choose_device(device)
    dtype = choose_dtype(dtype, device)
    files = find_model(source, half=dtype in (torch.float16, torch.bfloat16))
    wanted = "the files of a Stable Diffusion, whole, with safetensors weights"
    with loading(owner, wanted), without_bars(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        parts = _read(files, dtype, owner)
    for lora in loras:
        add_lora(parts, lora)
    for name in files.variants:
        parts[name].to(device)
    return _finished(owner, parts, files.index)


def pipeline_parts(pipe: Any) -> dict[str, Any]:
    """LatentDiffusion's arguments, from a pipeline of diffusers, which is left as it is.

    Raises UserError for a pipeline, or a component of one, that is not supported.
    """
    owner = "pipe"
    parts = {name: getattr(pipe, name, None) for name in components(owner, type(pipe).__name__)}
    for name, network in parts.items():
        if name in NETWORKS:
            parts[name] = _own_modules(owner, name, network)
    return _finished(owner, parts, pipe.config)


def prepare(unet: nn.Module, vae: nn.Module, *text_encoders: nn.Module | None) -> None:
    """Makes networks, in place, what the engine takes: frozen, and frugal in their backward."""
    for network in filter(None, (unet, vae, *text_encoders)):
        network.eval().requires_grad_(False)
    for network in (unet, vae):
        # Convolutions on CPU and on tensor cores are faster with channels last.
        network.to(memory_format=torch.channels_last)
        freeze_aware(network)


def _read(files: ModelFiles, dtype: torch.dtype, owner: str) -> dict[str, Any]:
    """Networks, tokenizers and the solver, as they are on disk but for the dtype."""
    parts: dict[str, Any] = {}
    for name, variant in files.variants.items():
        library, kind, _ = NETWORKS[name]
        # Said, because diffusers warns where it would like to and cannot.
        lean = {"low_cpu_mem_usage": is_accelerate_available()} if library == "diffusers" else {}
        parts[name], info = getattr(import_module(library), kind).from_pretrained(
            files.folder,
            subfolder=name,
            variant=variant,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **lean,
        )
        check_weights(
            f"the {name} of {owner}", parts[name], info["missing_keys"], info["unexpected_keys"]
        )
    for name in components(owner, files.index["_class_name"]):
        if name.startswith("tokenizer"):
            parts[name] = CLIPTokenizer.from_pretrained(
                files.folder, subfolder=name, local_files_only=True
            )
            if len(parts[name]) < 3:  # transformers makes an empty one up where there is none
                raise ValueError(f"its {name} has no vocabulary.")
    config = json.loads((files.folder / "scheduler" / "scheduler_config.json").read_text())
    parts["scheduler"] = getattr(diffusers, config["_class_name"]).from_config(config)
    return parts


def _own_modules(owner: str, name: str, network: nn.Module) -> nn.Module:
    """Modules of our own on a network's weights, so that its own can stay as they are."""
    library, kind, _ = NETWORKS[name]
    if not isinstance(network, getattr(import_module(library), kind)):
        raise UserError(
            f"{owner} is not supported: its {name} is a {type(network).__name__}, and only {kind} "
            "can be used (before it is compiled)"
        )
    if any(hasattr(module, "_hf_hook") for module in network.modules()):
        raise UserError(
            f"{owner} moves its {name} between devices: call pipe.remove_all_hooks() and "
            "pipe.to(DEVICE) first"
        )
    ours = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
    return copy.deepcopy(network, ours | {id(buffer): buffer for buffer in network.buffers()})


def _finished(owner: str, parts: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """config: model_index.json's entries, or the pipeline's own."""
    _check_kind(owner, parts)
    choose_dtype(parts["unet"].dtype, choose_device(parts["unet"].device))
    if "text_encoder_2" in parts:
        parts["zero_empty_prompt"] = bool(config.get("force_zeros_for_empty_prompt", True))
    vae = parts["vae"]
    # SDXL's says itself that it overflows in half precision; all of them would by its default.
    upcast = "text_encoder_2" in parts and vae.config.force_upcast
    if vae.dtype is torch.float16 and (upcast or _overflows(vae)):
        log.info("%s: its VAE overflows in fp16 and runs in fp32", owner)
        vae.float()
    return parts


@torch.no_grad()
def _overflows(vae: nn.Module) -> bool:
    """Whether a picture of noise has values that are not finite, or its latent has."""
    shape, generator = (1, vae.config.latent_channels, 16, 16), torch.Generator().manual_seed(0)
    latents = torch.randn(shape, generator=generator)
    latents = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
    image = vae.decode(latents).sample
    return not (image.isfinite().all() and vae.encode(image).latent_dist.mean.isfinite().all())


def _check_kind(owner: str, parts: Mapping[str, Any]) -> None:
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
                f"{owner} is not supported: its {name} is {found[name]!r}, and only models with "
                f"{value!r} are (text to image, no inpainting, depth or refiner)"
            )
