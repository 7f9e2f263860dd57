"""Weights are whole, of their network and finite, or they are refused; and nothing is unpickled."""

import math
import pickle
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from fastdigin.errors import UserError
from fastdigin.models.missing import first_sentence
from fastdigin.storage import weights_fingerprint

ENTRIES = ("state_dict", "model", "model_state_dict")
"""Where training programs keep the weights within a checkpoint."""


class FrozenNetwork:
    """A network that is frozen and put in evaluation mode, in place. name: in results."""

    def __init__(self, network: nn.Module, name: str):
        self.network, self.name = network.eval().requires_grad_(False), name

    @property
    def device(self) -> torch.device:
        return self.network.device

    def to(self, device: torch.device | str):
        """Moves the network, in place; returns self."""
        self.network.to(device)
        return self

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights."""
        return weights_fingerprint([self.network])


def check_weights(
    owner: str, network: nn.Module, missing: Iterable[str] = (), unexpected: Iterable[str] = ()
) -> None:
    """Refuses a network that is not all of what its file holds.

    Args:
        owner: What it is called, like "classifier 'hf:someone/net'".
        network: As its library loaded it; what the file lacks may be anything there.
        missing: Names of tensors that the file lacks.
        unexpected: Names of tensors of the file that the network has no place for. Those of a part
            that it does not have (CLIP's other half, a pooling layer) do not matter; those of a
            part that it has (a bias, an adapter, one layer more) make it another network.

    Raises:
        UserError: A tensor is missing, foreign or not finite; the message names some of them.
    """
    check_names(owner, network, missing, unexpected)
    broken = (
        name
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and not _is_finite(tensor)
    )
    _refuse(owner, "its weights are not finite in", broken)


def check_names(
    owner: str, network: nn.Module, missing: Iterable[str], unexpected: Iterable[str]
) -> None:
    """``check_weights`` without a look at the weights: the network may be on "meta"."""
    missing, unexpected = sorted(missing), list(unexpected)
    _refuse(owner, "its weights lack", missing, _prefix_hint(missing, unexpected))
    modules = dict(network.named_modules())
    foreign = [name for name in unexpected if _belongs(name, modules)]
    lora = any("lora" in name for name in foreign)
    hint = " They are LoRA weights beside the model's own: merge them (pipe.fuse_lora()) first."
    _refuse(owner, "its config.json has no place for", foreign, hint if lora else "")


def _is_finite(tensor: Tensor) -> bool:
    """The sum tells almost always and is 20 times faster; that of finite numbers may overflow."""
    return math.isfinite(tensor.sum()) or bool(tensor.isfinite().all())


def _belongs(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a tensor without a place is within a layer that is there, or of the next in a row."""
    path = name.split(".")
    depth = max(n for n in range(len(path)) if ".".join(path[:n]) in modules)
    parent = modules[".".join(path[:depth])]
    if isinstance(parent, (nn.ModuleList, nn.Sequential)):
        return path[depth].isdecimal()
    return depth > 0 and not list(parent.children())


def _prefix_hint(missing: list[str], unexpected: list[str]) -> str:
    """What to do where a file names every tensor by what the network was wrapped in."""
    for name in unexpected:
        if missing and name.endswith(f".{missing[0]}"):
            prefix = name.removesuffix(missing[0])
            return (
                f" In the file all names begin with {prefix!r}: it was saved from a wrapper (a "
                "compiled or parallel module); save the network within it."
            )
    return ""


def _refuse(owner: str, problem: str, names: Iterable[str], hint: str = "") -> None:
    names = sorted(names)
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(
            f"{owner} cannot be loaded: {problem} {', '.join(names[:3])}{more}."
            + (hint or " Fetch or save its files again, or name the model they belong to.")
        )


def read_weights(path: Path, owner: str = "weights") -> dict[str, Tensor]:
    """The named tensors of a safetensors file, or of a checkpoint of nothing but plain values.

    Raises UserError for a file that does not exist, and for any other kind of file.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.load_file(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{owner} '{path}' do not exist: check the path") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{owner} '{path}' hold more than tensors, and unpickling them could run any program. "
            "If you trust the file, convert it once: torch.save(torch.load(PATH, "
            "weights_only=False)['state_dict'], 'weights.pth')"
        ) from error
    except Exception as error:  # a file of another kind breaks the readers in many ways
        raise UserError(
            f"{owner} '{path}' cannot be read ({first_sentence(error)}): give a safetensors file "
            "or a checkpoint of torch.save"
        ) from error
    found = _named_tensors(checkpoint)
    if found is None:
        raise UserError(
            f"{owner} '{path}' hold no named tensors: they should be a state dict, or have one "
            f"under {', '.join(ENTRIES)}"
        )
    return found


def _named_tensors(checkpoint: Any) -> dict[str, Tensor] | None:
    if not isinstance(checkpoint, Mapping):
        return None
    for entry in ENTRIES:
        inner = checkpoint.get(entry)
        if isinstance(inner, Mapping):
            return _named_tensors(inner)
    tensors = {str(k): v for k, v in checkpoint.items() if isinstance(v, Tensor)}
    return tensors or None
