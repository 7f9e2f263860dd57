"""LoRA weights, added to the weights they were trained beside (Hu et al. 2021, section 4.1)."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import state_dict_utils as names
from torch import Tensor, nn

from fastdigin.errors import UserError
from fastdigin.models.missing import loading

_PARTS = ("unet", "text_encoder", "text_encoder_2")


@torch.no_grad()
def add_lora(networks: Mapping[str, Any], lora: str) -> None:
    """Adds scale * alpha / rank * B A to each weight that a file has a pair A, B for, in place.

    Args:
        networks: "unet", "text_encoder" and, for SDXL, "text_encoder_2".
        lora: PATH or PATH:SCALE, of a safetensors file in the format of diffusers, PEFT or kohya,
            a folder with one, or a hub id. Scale 1 is what was trained.

    Raises:
        UserError: It cannot be read, or a tensor of it has no place in the networks.
    """
    path, scale = _parse(lora)
    owner = f"lora {path!r}"
    with loading(owner, "a safetensors file of LoRA weights for Stable Diffusion"):
        state, alphas, settings = StableDiffusionLoraLoaderMixin.lora_state_dict(
            path, unet_config=networks["unet"].config, use_safetensors=True,
            return_lora_metadata=True,
        )  # fmt: skip
        if not any(name.split(".")[0] in _PARTS for name in state):  # of unet.save_attn_procs()
            state = {f"unet.{name}": tensor for name, tensor in state.items()}
        left = _with_alphas(state, alphas or {}, settings or {})
        found = {part: _pairs(part, state) for part in _PARTS}
    rest = {name for name in state if name.split(".")[0] not in _PARTS} | left
    for part, pairs in found.items():
        modules = dict(networks[part].named_modules()) if part in networks else {}
        for name in [n for n in pairs if n.endswith(".lora_A.weight")]:
            name = name.removesuffix(".lora_A.weight")
            a, b = pairs[f"{name}.lora_A.weight"], pairs.get(f"{name}.lora_B.weight")
            module = modules.get(name) or modules.get(name.removeprefix("text_model."))
            if module is None or b is None or not _fits(module, a, b):
                continue
            delta = (b.flatten(1) @ a.flatten(1)).reshape(module.weight.shape)
            module.weight.copy_(module.weight.float() + scale * delta.to(module.weight.device))
            del pairs[f"{name}.lora_A.weight"], pairs[f"{name}.lora_B.weight"]
        rest |= {f"{part}.{name}" for name in pairs}
    if rest:
        shown = ", ".join(sorted(rest)[:3])
        raise UserError(
            f"{owner} cannot be added: {len(rest)} of its tensors have no place in this model or "
            f"are no LoRA's, like {shown}. Name the model that it was trained for."
        )


def _parse(lora: str) -> tuple[str, float]:
    path, _, scale = lora.rpartition(":")
    try:
        return (path, float(scale)) if path else (lora, 1.0)
    except ValueError:
        return lora, 1.0


def _with_alphas(
    state: dict[str, Tensor], alphas: Mapping[str, float], settings: Mapping[str, Any]
) -> set[str]:
    """Multiplies every A with alpha / rank, in place; returns the alphas without an A.

    alphas: kohya's, tensor by tensor. settings: PEFT's, a network each.
    """
    for name, tensor in state.items():
        state[name] = tensor.float()
    left = set()
    for key, alpha in alphas.items():
        name = key.removesuffix(".alpha")
        name = name if name in state else f"{name}.lora.down.weight"
        if name in state:
            state[name] *= float(alpha) / len(state[name])
        else:
            left.add(key)
    for part in _PARTS:
        unusual = ("alpha_pattern", "use_rslora", "use_dora")
        left |= {f"{part}.{name}" for name in unusual if settings.get(f"{part}.{name}")}
        for name in state if f"{part}.lora_alpha" in settings else ():
            if name.startswith(f"{part}.") and ".lora_A" in name:
                state[name] *= settings[f"{part}.lora_alpha"] / len(state[name])
    return left


def _pairs(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one network, by PEFT's names (…lora_A.weight and …lora_B.weight)."""
    own = {
        name.removeprefix(f"{part}."): tensor
        for name, tensor in state.items()
        if name.startswith(f"{part}.")
    }
    if part == "unet":
        return names.convert_unet_state_dict_to_peft(own)
    # These names include the ones that came after them.
    return names.convert_state_dict_to_peft(own, names.StateDictType.DIFFUSERS_OLD)


def _fits(module: nn.Module, a: Tensor, b: Tensor) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and b.flatten(1).shape[1] == len(a) and (
        (len(b), a[0].numel()) == (len(weight), weight[0].numel())
    )  # fmt: skip
