"""What every source of classifiers gives; and embedded:NAME, the packaged ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fastdigin.errors import UserError
from fastdigin.models.preprocessing import Resizing


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its own preprocessing and class names: arguments of ``Classifier``."""

    network: nn.Module
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    resizing: Resizing = Resizing()
    head: str | None = None


def load(name: str) -> LoadedNetwork:
    """A packaged classifier; they were trained on exact area averages of the images."""
    from fastdigin.embedded import classifier_folder
    from fastdigin.embedded.networks import read_network

    network, config = read_network(classifier_folder(name))
    settings = (tuple(config[key]) for key in ("mean", "std", "classes"))
    return LoadedNetwork(network, config["size"], *settings)


def numbered(count: int) -> tuple[str, ...]:
    """Names for classes that nobody named: their indices."""
    return tuple(str(index) for index in range(count))


def square(height: int, width: int, owner: str) -> int:
    """The edge; UserError where the two differ."""
    if height != width:
        raise UserError(
            f"{owner} takes images of {width} x {height} pixels: only square ones can be used."
        )
    return height
