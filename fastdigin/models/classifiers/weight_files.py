"""file:PATH@ARCHITECTURE, the user's own weights in an architecture of timm or torchvision.

Robust and shape-biased ResNet-50s come this way.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from fastdigin.errors import UserError
from fastdigin.models.classifiers import library
from fastdigin.models.classifiers.loaded import LoadedNetwork
from fastdigin.models.layers import find_head
from fastdigin.models.missing import loading
from fastdigin.models.weights import check_weights, read_weights

log = logging.getLogger(__name__)

_POSITIONS = "encoder.pos_embedding"
"""Of a vision transformer of torchvision."""


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
    owner = f"classifier 'file:{name}'"
    state = _without_prefix(_renamed(state, loaded.network, owner), names)
    options = _options(kind, loaded, state)
    if options:
        loaded = build(model, **options)
    if loaded.named == "own":  # the architecture's, as if its weights were in the file
        loaded = replace(loaded, named="guessed")
    with loading(owner, f"weights of {architecture}, or name the architecture they belong to"):
        unexpected = loaded.network.load_state_dict(state, strict=False).unexpected_keys
    check_weights(owner, loaded.network, set(names).difference(state), unexpected)
    return loaded


def _options(kind: str, loaded: LoadedNetwork, state: Mapping[str, Tensor]) -> dict[str, int]:
    """What the shapes in a file say of its network that the architecture leaves open."""
    network, options = loaded.network, {}
    head = state.get(f"{loaded.head or find_head(network)}.weight")
    if head is not None and len(head) != len(loaded.classes):
        options["num_classes"] = len(head)
    positions, side = {
        "timm": ("pos_embed", "img_size"),
        "torchvision": (_POSITIONS, "image_size"),
    }[kind]
    ours, theirs = network.state_dict().get(positions), state.get(positions)
    if ours is not None and theirs is not None and ours.shape[1] != theirs.shape[1]:
        # A square of patches, and tokens beside them that both have.
        patches = (loaded.size // _patch(network)) ** 2
        rows = math.isqrt(theirs.shape[1] - (ours.shape[1] - patches))
        options[side] = rows * _patch(network)
    if kind == "timm":
        first = next((m for m in network.named_modules() if isinstance(m[1], nn.Conv2d)), None)
        weight = None if first is None else state.get(f"{first[0]}.weight")
        if weight is not None and weight.ndim == 4 and weight.shape[1] == 1 != first[1].in_channels:
            options["in_chans"] = 1
    return options


def _patch(network: nn.Module) -> int:
    """The side of a vision transformer's patches."""
    return next(m.kernel_size[0] for m in network.modules() if isinstance(m, nn.Conv2d))


def _renamed(state: Mapping[str, Tensor], network: nn.Module, owner: str) -> Mapping[str, Tensor]:
    """The tensors under the network's names, where another program called all of them otherwise.

    They must be as many, and in order of the same shapes and kinds (weight, bias, running_mean).
    """
    own = network.state_dict()
    if len(own) != len(state) or own.keys() & state.keys():
        return state

    def kinds(tensors: Mapping[str, Tensor]) -> list[tuple]:
        return [(name.rpartition(".")[2], value.shape) for name, value in tensors.items()]

    if kinds(own) != kinds(state):
        return state
    log.warning("%s: names of tensors differ, their order and shapes agree: taken in order", owner)
    return dict(zip(own, state.values(), strict=True))


def _without_prefix(state: Mapping[str, Tensor], names: list[str]) -> Mapping[str, Tensor]:
    """The tensors below what stands before a network's names in a file; the shortest, if several.

    names: of all tensors that are read.
    """
    ends = names[0], names[-1]
    prefixes = {key.removesuffix(end) for end in ends for key in state if key.endswith(end)}
    prefixes = {prefix for prefix in prefixes if not prefix or prefix.endswith(".")} or {""}
    best = min(prefixes, key=lambda p: (sum(p + name not in state for name in names), len(p)))
    return {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}
