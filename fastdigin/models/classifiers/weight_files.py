"""file:PATH@ARCHITECTURE, the user's own weights in an architecture of timm or torchvision.

Robust and shape-biased ResNet-50s come this way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.models.classifiers import library
from fastdigin.models.classifiers.loaded import LoadedNetwork
from fastdigin.models.layers import find_head
from fastdigin.models.missing import loading
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
    state, build = read_weights(Path(path)), library(kind).build
    loaded = build(model)
    # Checkpoints from before torch 0.4.1 do not count batches; nothing reads the counts here.
    names = [n for n in loaded.network.state_dict() if not n.endswith("num_batches_tracked")]
    state = _without_prefix(state, names)
    head = state.get(f"{loaded.head or find_head(loaded.network)}.weight")
    if head is not None and len(head) != len(loaded.classes):
        loaded = build(model, num_classes=len(head))
    owner = f"classifier 'file:{name}'"
    with loading(owner, f"weights of {architecture}, or name the architecture they belong to"):
        unexpected = loaded.network.load_state_dict(state, strict=False).unexpected_keys
    check_weights(owner, loaded.network, set(names).difference(state), unexpected)
    return loaded


def _without_prefix(state: Mapping[str, Tensor], names: list[str]) -> Mapping[str, Tensor]:
    """The tensors below what stands before a network's names in a file; the shortest, if several.

    names: of all tensors that are read.
    """
    ends = names[0], names[-1]
    prefixes = {key.removesuffix(end) for end in ends for key in state if key.endswith(end)}
    prefixes = {prefix for prefix in prefixes if not prefix or prefix.endswith(".")} or {""}
    best = min(prefixes, key=lambda p: (sum(p + name not in state for name in names), len(p)))
    return {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}
