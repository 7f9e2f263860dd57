"""embedded:NAME, the packaged classifiers."""

from __future__ import annotations

from fastdigin.embedded import networks
from fastdigin.models.classifiers.loaded import LoadedNetwork


def load_embedded(name: str) -> LoadedNetwork:
    """They were trained on exact area averages of the images."""
    network, config = networks.load_network(name)
    return LoadedNetwork(
        network, config["size"], tuple(config["mean"]), tuple(config["std"]),
        tuple(config["classes"]),
    )  # fmt: skip
