"""Neurons: what a named module puts out, or what the head takes in, one number per channel."""

import difflib
from collections.abc import Callable

from torch import Tensor, nn

from fastdigin.errors import UserError


def find_head(network: nn.Module) -> str | None:
    """Name of the module that turns features into logits: the last linear layer, or None.

    Where there is none, the last 1x1 convolution (SqueezeNet).
    """
    modules = list(network.named_modules())
    linear = [name for name, module in modules if isinstance(module, nn.Linear)]
    pointwise = [
        name
        for name, module in modules
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    ]
    return next(reversed(linear or pointwise), None)


def check_layer(network: nn.Module, layer: str, owner: str) -> None:
    """UserError with similar names if ``layer`` is not a module of the network."""
    names = [name for name, _ in network.named_modules() if name]
    if _run_of(layer)[0] in names:
        return
    similar = difflib.get_close_matches(layer, names, n=5, cutoff=0.4) or names[-5:]
    raise UserError(
        f"layer {layer!r} is not a module of {owner}; similar ones: {', '.join(similar)}."
    )


def layer_output(network: nn.Module, layer: str, run: Callable[[], object]) -> Tensor | None:
    """Activations (B,F) of the module called ``layer`` during ``run``; differentiable.

    "NAME:2" is the second of several runs of a module. None if it did not run or gives something
    else than (B,F), (B,L,C), (B,C,H,W) or (B,H,W,C). UserError for a module that runs several times
    where nothing says which run is meant.
    """
    name, number = _run_of(layer)
    module = network.get_submodule(name)
    captured = _captured(
        module.register_forward_hook, lambda x: _has_channels_last(network, module, x), run
    )
    if captured and ((number is None and len(captured) > 1) or (number or 0) > len(captured)):
        choices = ", ".join(f"{name}:{n}" for n in range(1, len(captured) + 1))
        raise UserError(
            f"layer {layer!r} runs {len(captured)} times in one pass of the network: name one run, "
            f"{choices}, or another layer."
        )
    return captured[(number or 1) - 1] if captured else None


def layer_input(network: nn.Module, layer: str, run: Callable[[], object]) -> Tensor | None:
    """The same for what the module takes in, at its last run; a linear layer has channels last."""
    module = network.get_submodule(layer)
    is_linear = isinstance(module, nn.Linear)
    captured = _captured(module.register_forward_pre_hook, lambda x: is_linear, run)
    return captured[-1] if captured else None


def _run_of(layer: str) -> tuple[str, int | None]:
    """The module of a layer, and which of its runs is meant."""
    name, _, number = layer.rpartition(":")
    return (name, int(number)) if name and number.isdecimal() and int(number) else (layer, None)


def _captured(
    register: Callable, has_channels_last: Callable[[Tensor], bool], run: Callable[[], object]
) -> list[Tensor | None]:
    """What a hook of a module is given last at each of its runs, pooled.

    register: the module's method that registers such a hook.
    """
    captured = []

    def hook(_, *given: object) -> None:
        tensor = _tensor(given[-1])
        captured.append(tensor if tensor is None else _pool(tensor, has_channels_last(tensor)))

    with register(hook):
        run()
    return captured


def _tensor(value: object) -> Tensor | None:
    """The tensor itself, or the first one of a tuple or of transformers' model outputs."""
    if hasattr(value, "to_tuple"):
        value = value.to_tuple()
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    return value if isinstance(value, Tensor) and value.ndim in (2, 3, 4) else None


def _pool(values: Tensor, channels_last: bool) -> Tensor:
    """(B,F): means over space or over tokens, class tokens included.

    Always another tensor, because what comes later in the network may change this one in place.
    """
    if values.ndim == 4:
        return values.mean(dim=(1, 2) if channels_last else (2, 3))
    return values.mean(dim=1) if values.ndim == 3 else values.clone()


def _has_channels_last(network: nn.Module, module: nn.Module, output: Tensor) -> bool:
    """Whether a 4-d output is (B,H,W,C), as in Swin transformers.

    A layer that knows its channels decides by them; elsewhere the network's kind does.
    """
    channels = getattr(module, "out_features", None) or getattr(module, "out_channels", None)
    if channels is None and isinstance(module, nn.LayerNorm):
        channels = module.normalized_shape[-1]
    if isinstance(channels, int) and output.ndim == 4:
        first, last = output.shape[1] == channels, output.shape[-1] == channels
        if first != last:
            return last
    if isinstance(module, (nn.Conv2d, nn.AdaptiveAvgPool2d)):
        return False
    return _is_channels_last_network(network)


def _is_channels_last_network(network: nn.Module) -> bool:
    declared = getattr(network, "output_fmt", None)  # timm
    return str(getattr(declared, "value", declared)) == "NHWC" or (
        type(network).__module__.startswith("torchvision.") and "Swin" in type(network).__name__
    )
