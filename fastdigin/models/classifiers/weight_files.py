"""file:PATH@ARCHITECTURE, the user's own weights in an architecture of timm or torchvision.

Robust and shape-biased ResNet-50s come this way.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from fastdigin.errors import UserError
from fastdigin.models.classifiers.loaded import LoadedNetwork
from fastdigin.models.layers import find_head
from fastdigin.models.missing import first_sentence

ENTRIES = ("state_dict", "model", "model_state_dict")
"""Where training programs keep the weights within a checkpoint."""


def load_file(name: str) -> LoadedNetwork:
    """Weights from PATH in the network that ARCHITECTURE, timm:NAME or torchvision:NAME, builds.

    PATH: safetensors, or a checkpoint that holds only tensors and plain values, the weights
    themselves or an entry of ENTRIES. Whatever stands before the architecture's names, like
    "module." or "model.", is stripped; weights beside them are not read. The number of classes is
    that of the file's head; preprocessing is the architecture's.

    Raises UserError for a missing or foreign file and for weights of another architecture.
    """
    path, _, architecture = name.rpartition("@")
    kind, _, model = architecture.partition(":")
    if not path or kind not in ("timm", "torchvision") or not model:
        raise UserError(
            f"classifier 'file:{name}' does not say its architecture: write "
            "file:PATH@torchvision:NAME or file:PATH@timm:NAME, like "
            "file:robust.pth@torchvision:resnet50."
        )
    state = read_weights(Path(path))
    if kind == "timm":
        from fastdigin.models.classifiers.timm_models import build_timm as build
    else:
        from fastdigin.models.classifiers.torchvision_models import build_torchvision as build
    loaded = build(model)
    prefix = _prefix(state, loaded.network, path, architecture)
    count = _num_classes(state, prefix, loaded)
    if count not in (None, len(loaded.classes)):
        loaded = build(model, num_classes=count)
    own = {k: state[prefix + k] for k in loaded.network.state_dict() if prefix + k in state}
    _check_shapes(own, loaded.network, path, architecture)
    loaded.network.load_state_dict(own, strict=False)
    return loaded


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors file or of a checkpoint."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.load_file(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"weights '{path}' do not exist: check the path") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"weights '{path}' hold more than tensors, and unpickling them could run any program. "
            "If you trust the file, convert it once: torch.save(torch.load(PATH, "
            "weights_only=False)['state_dict'], 'weights.pth')"
        ) from error
    except Exception as error:  # a file of another kind breaks the readers in many ways
        raise UserError(
            f"weights '{path}' cannot be read ({first_sentence(error)}): give a safetensors file "
            "or a checkpoint of torch.save"
        ) from error
    found = _named_tensors(checkpoint)
    if found is None:
        raise UserError(
            f"weights '{path}' hold no named tensors: they should be a state dict, or have one "
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


def _prefix(state: Mapping[str, Tensor], network: nn.Module, path: str, architecture: str) -> str:
    """What stands before all of the network's names in the file; the shortest, if several do."""
    # Checkpoints from before torch 0.4.1 do not count batches; nothing reads the counts here.
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    found = {
        key[: -len(names[0])] for key in state if key == names[0] or key.endswith("." + names[0])
    }
    missing = {prefix: [n for n in names if prefix + n not in state] for prefix in found or {""}}
    best = min(missing, key=lambda prefix: (len(missing[prefix]), len(prefix)))
    if missing[best]:
        raise UserError(
            f"weights '{path}' are not those of {architecture}: {len(missing[best])} of its "
            f"{len(names)} tensors are missing, like {missing[best][0]!r}; the file has "
            f"{len(state)}, like {next(iter(state))!r}. Name the architecture they belong to."
        )
    return best


def _num_classes(state: Mapping[str, Tensor], prefix: str, loaded: LoadedNetwork) -> int | None:
    head = loaded.head or find_head(loaded.network)
    weight = state.get(f"{prefix}{head}.weight")
    return None if weight is None else weight.shape[0]


def _check_shapes(
    own: Mapping[str, Tensor], network: nn.Module, path: str, architecture: str
) -> None:
    wanted = network.state_dict()
    wrong = [
        f"{name} is {tuple(value.shape)} instead of {tuple(wanted[name].shape)}"
        for name, value in own.items()
        if value.shape != wanted[name].shape
    ]
    if wrong:
        raise UserError(
            f"weights '{path}' do not fit {architecture}: {'; '.join(wrong[:3])}. Name the "
            "architecture they belong to."
        )
