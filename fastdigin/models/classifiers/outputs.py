"""What a network takes and returns: channels, logits, and what makes probabilities of them."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fastdigin.errors import UserError

Activation = Literal["softmax", "sigmoid"]
ACTIVATIONS = get_args(Activation)
Channels = Literal["rgb", "bgr", "gray"]
CHANNELS = get_args(Channels)
Named = Literal["own", "guessed", "numbers"]
LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue, as Pillow and torchvision make gray images (ITU-R 601)."""


def find_logits(output: object, count: int, activation: Activation) -> Tensor | None:
    """The logits (B,K) in what a network returns, or None.

    That is a tensor, an object or a dict with ``logits`` (transformers), or a tuple, list or dict
    that holds one tensor of this shape. A single logit per image says whether it shows the second
    of two classes: it stands beside a zero, for softmax((0, z)) = (1 - sigmoid(z), sigmoid(z)), or
    where classes stand for themselves beside its negative.
    """
    named = _named(output)
    fitting = [value for value in named.values() if _fits(value, count)]
    logits = named.get("logits", fitting[0] if len(fitting) == 1 else None)
    if not _fits(logits, count):
        return None
    logits = logits.reshape(len(logits), -1)
    if logits.shape[1] == count:
        return logits
    return torch.cat([-logits, logits], 1) if activation == "sigmoid" else pad(logits, (1, 0))


def read_logits(output: object, count: int, activation: Activation, owner: str) -> Tensor:
    """The same; UserError where there is no such tensor, or more than one."""
    logits = find_logits(output, count, activation)
    if logits is None:
        shapes = ", ".join(
            f"{name} {tuple(value.shape)}" if isinstance(value, Tensor) else f"{name} {type(value)}"
            for name, value in _named(output).items()
        )
        raise UserError(
            f"classes of {owner} has {count} names, but its network returns {shapes}: give one "
            "name per logit, or a module whose forward returns the logits (B,K)."
        )
    return logits


def _named(output: object) -> dict[str, object]:
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, (tuple, list)):
        return {f"[{n}]": value for n, value in enumerate(output)}
    return {"logits": getattr(output, "logits", output)}


def _fits(value: object, count: int) -> bool:
    if not isinstance(value, Tensor) or value.ndim not in (1, 2):
        return False
    columns = value.shape[1] if value.ndim == 2 else 1
    return columns == count or (columns == 1 and count == 2)


def probabilities(logits_bk: Tensor, activation: Activation) -> Tensor:
    """(B,K) in [0,1]; rows sum to 1 by softmax, each class stands for itself by sigmoid."""
    return torch.sigmoid(logits_bk) if activation == "sigmoid" else logits_bk.softmax(dim=1)


class WithLogOdds(nn.Module):
    """A network whose ``log_odds`` module gives log(p / (1 - p)) of every class; returns logits."""

    def __init__(self, network: nn.Module, count: int, activation: Activation, owner: str):
        super().__init__()
        self.network, self.log_odds = network, _LogOdds(activation)
        self.count, self.activation, self.owner = count, activation, owner

    def forward(self, inputs: Tensor) -> Tensor:
        logits_bk = read_logits(self.network(inputs), self.count, self.activation, self.owner)
        self.log_odds(logits_bk)
        return logits_bk


class _LogOdds(nn.Module):
    def __init__(self, activation: Activation):
        super().__init__()
        self.activation = activation

    def forward(self, logits_bk: Tensor) -> Tensor:
        if self.activation == "sigmoid":
            return logits_bk
        own = torch.eye(logits_bk.shape[1], dtype=torch.bool, device=logits_bk.device)
        others_bkk = logits_bk[:, None, :].masked_fill(own, -torch.inf)
        return logits_bk - others_bkk.logsumexp(dim=2)


def in_channels(images_b3hw: Tensor, channels: Channels) -> Tensor:
    """RGB images in the channels that a network takes."""
    if channels == "gray":
        weights = images_b3hw.new_tensor(LUMINANCE).view(3, 1, 1)
        return (images_b3hw * weights).sum(dim=1, keepdim=True)
    return images_b3hw.flip(1) if channels == "bgr" else images_b3hw


def both_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Of a single name the two classes of a binary classifier, the named one second."""
    return (f"not {classes[0]}", classes[0]) if len(classes) == 1 else classes
