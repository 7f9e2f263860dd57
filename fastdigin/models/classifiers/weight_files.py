"""file:PATH@ARCHITECTURE, the user's own weights in an architecture of timm or torchvision.

Robust and shape-biased ResNet-50s come this way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from fastdigin.errors import UserError
from fastdigin.models.classifiers import library
from fastdigin.models.classifiers.loaded import LoadedNetwork
from fastdigin.models.layers import find_head
from fastdigin.models.weights import check_weights, read_weights


def load(name: str) -> LoadedNetwork:
    """Weights from PATH in the network that ARCHITECTURE, timm:NAME or torchvision:NAME, builds.

    PATH: safetensors, or a checkpoint that holds only tensors and plain values, the weights
    themselves or under an entry like "state_dict". Whatever stands before the architecture's names,
    like "module." or "model.", is stripped; weights beside them are not read. The number of classes
    is that of the file's head; preprocessing is the architecture's.

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
    build = library(kind).build
    loaded = build(model)
    prefix = _prefix(state, loaded.network, path, architecture)
    count = _num_classes(state, prefix, loaded)
    if count not in (None, len(loaded.classes)):
        loaded = build(model, num_classes=count)
    own = {k: state[prefix + k] for k in loaded.network.state_dict() if prefix + k in state}
    _check_shapes(own, loaded.network, path, architecture)
    loaded.network.load_state_dict(own, strict=False)
    beside = {k.removeprefix(prefix) for k in state if k.startswith(prefix)}.difference(own)
    check_weights(f"classifier 'file:{name}'", loaded.network, unexpected=beside)
    return loaded


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
