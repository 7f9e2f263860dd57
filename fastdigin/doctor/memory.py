"""How much memory a diffusion model takes, counted from its configuration without its weights."""

import inspect
import json
from typing import Any

import torch

from fastdigin.engine.architectures import SD_1_4, SD_2_1, SDXL, Architecture
from fastdigin.engine.footprint import footprint
from fastdigin.engine.memory import SHARE_OF_FREE, SHARE_OF_GPU
from fastdigin.errors import UserError
from fastdigin.models.missing import kept_offline
from fastdigin.models.model_files import NETWORKS, ModelFiles, find_model
from fastdigin.models.precision import choose_dtype

PUBLISHED = {
    "CompVis/stable-diffusion-v1-4": (SD_1_4, 512),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (SD_1_4, 512),
    "stabilityai/stable-diffusion-2-1-base": (SD_2_1, 512),
    "stabilityai/stable-diffusion-2-1": (SD_2_1, 768),
    "stabilityai/sd-turbo": (SD_2_1, 512),
    "stabilityai/stable-diffusion-xl-base-1.0": (SDXL, 1024),
    "stabilityai/sdxl-turbo": (SDXL, 512),
}
"""Hub id -> architecture and the side of its images in pixels: known before anything is fetched."""


def estimate(model: str, device: dict[str, Any]) -> dict[str, Any] | None:
    """Bytes of the model and of a slot, and how many slots are free; None where unknown.

    device: one of ``machine.devices``; the model has the dtype that is usual there. A slot is an
    image that is being optimised with guidance and 20 steps. Classifiers, and what edited photos
    carry, come on top.
    """
    architecture, side = _architecture(model)
    if architecture is None:
        return None
    dtype = choose_dtype("auto", torch.device(device["kind"]))
    needed = footprint(architecture, side, dtype=dtype)
    # The engine's "auto" plans with a share of what is free once the weights are loaded.
    share = SHARE_OF_GPU if device["kind"] == "cuda" else SHARE_OF_FREE
    room = needed.weights + share * (device["free"] - needed.weights)
    return {
        "model": model,
        "side": side,
        "dtype": str(dtype).removeprefix("torch."),
        "weights": needed.weights,
        "step": needed.step,
        "slot": needed.slot,
        "decoder": needed.decoder,
        "least": needed.least,
        "device": device["name"],
        "slots": needed.slots_in(int(room)),
    }


def _architecture(model: str) -> tuple[Architecture | None, int]:
    try:
        with kept_offline():
            files = find_model(model)
    except UserError:
        return PUBLISHED.get(model, (None, 0))
    unet, vae = (
        json.loads((files.folder / n / "config.json").read_text()) for n in ("unet", "vae")
    )
    from diffusers import AutoencoderKL, UNet2DConditionModel

    pooled = None
    if "text_encoder_2" in files.variants:
        sizes = 6 * unet["addition_time_embed_dim"]
        pooled = unet["projection_class_embeddings_input_dim"] - sizes
    architecture = Architecture(
        name=model,
        unet=_known(unet, UNet2DConditionModel),
        vae=_known(vae, AutoencoderKL),
        text_parameters=_text_parameters(files),
        pooled=pooled,
        upcast=bool(vae.get("force_upcast")),
    )
    return architecture, unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)


def _known(config: dict[str, Any], kind: type) -> dict[str, Any]:
    """What the network's class takes, as diffusers reads it: lists stay lists."""
    names = inspect.signature(kind.__init__).parameters
    return {key: value for key, value in config.items() if key in names}


def _text_parameters(files: ModelFiles) -> int:
    """Numbers in the weights of the text encoders; networks on "meta" have no weights to read."""
    import transformers

    count = 0
    for name in files.variants:
        if name.startswith("text_encoder"):
            kind = getattr(transformers, NETWORKS[name][1])
            with torch.device("meta"):
                network = kind(kind.config_class.from_pretrained(files.folder / name))
            count += sum(p.numel() for p in network.parameters())
    return count
