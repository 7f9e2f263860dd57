"""How much memory a function takes to keep for its backward, found without running it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef


def saved_bytes(
    function: Callable[..., object], *inputs: Tensor, networks: tuple[nn.Module, ...] = ()
) -> int:
    """Bytes that autograd holds for the backward once ``function(*inputs)`` has returned.

    The function runs on fake tensors (shapes without data), so that it takes next to no time and
    memory. It may use real tensors and networks, also fake ones: then of the inputs' mode. At least
    one input must require a gradient, and everything must lie on the devices that will be used,
    because PyTorch's choice of attention kernel depends on it.

    Each storage counts once and whole, whatever its views: inputs too, where they are kept, but
    not the parameters and buffers of ``networks``, nor what the function has released.
    """
    weights = [w for n in networks for w in (*n.parameters(), *n.buffers())]
    mode = detect_fake_mode([*inputs, *weights]) or FakeTensorMode(allow_non_fake_inputs=True)
    inputs = [mode.from_tensor(x) for x in inputs]
    # Autograd may keep a real weight itself or what the mode made of it, which it would forget.
    weights += [mode.from_tensor(w) for w in weights]
    ignored = {StorageWeakRef(w.untyped_storage()) for w in weights}
    found: dict[StorageWeakRef, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[StorageWeakRef(storage)] = storage.nbytes()
        return tensor

    with mode, torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = function(*inputs)
    total = sum(
        n for storage, n in found.items() if storage not in ignored and not storage.expired()
    )
    del output  # it has kept the graph alive until here
    return total
