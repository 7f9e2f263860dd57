"""What every source of classifiers gives; and embedded:NAME, the packaged ones and worlds."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fastdigin.errors import UserError
from fastdigin.models.classifiers.outputs import Activation, Channels, Named
from fastdigin.models.preprocessing import Resizing


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its own preprocessing and class names: arguments of ``Classifier``.

    named: whether the names came with the weights, were guessed by their number, or are numbers.
    """

    network: nn.Module
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    resizing: Resizing = Resizing()
    head: str | None = None
    activation: Activation = "softmax"
    channels: Channels = "rgb"
    named: Named = "own"

    @property
    def arguments(self) -> dict[str, Any]:
        """For ``Classifier``."""
        return {key: value for key, value in vars(self).items() if key != "named"}


def load(name: str) -> LoadedNetwork:
    """A packaged classifier, or the folder of one that ``fastdigin.embedded.worlds`` trained.

    They were trained on exact area averages of the images.
    """
    from fastdigin.embedded import classifier_folder, classifier_names
    from fastdigin.embedded.networks import read_network

    folder = Path(name)
    if name in classifier_names() or not os.path.isfile(folder / "config.json"):
        folder = classifier_folder(name)  # lists the names where there is none
    network, config = read_network(folder)
    settings = (tuple(config[key]) for key in ("mean", "std", "classes"))
    return LoadedNetwork(network, config["size"], *settings)


def numbered(count: int) -> tuple[str, ...]:
    """Names for classes that nobody named: their indices. A single logit tells two apart."""
    return tuple(str(index) for index in range(max(count, 2) if count else 0))


def names_warning(spec: str, loaded: LoadedNetwork) -> str:
    """What to say of names that did not come with the weights."""
    mend = "give your own, one a line in --class-names FILE, or as classes=[...]"
    if loaded.named == "guessed":
        return (
            f"classifier {spec!r} tells {len(loaded.classes)} classes apart: their names are "
            f"guessed to be ImageNet's. If they are not, {mend}."
        )
    return (
        f"classifier {spec!r} comes without names for its {len(loaded.classes)} classes: prompts "
        f"would say 'a photo of a 0'. To have words, {mend}."
    )


def square(height: int, width: int, owner: str) -> int:
    """The edge; UserError where the two differ."""
    if height != width:
        raise UserError(
            f"{owner} takes images of {width} x {height} pixels: only square ones can be used."
        )
    return height


def first_convolution(network: nn.Module) -> int | None:
    """How many channels the first convolution of a network takes; None without one."""
    modules = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    return next((m.in_channels for m in modules), None)
