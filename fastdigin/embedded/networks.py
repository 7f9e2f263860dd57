"""The embedded classifiers' architectures, and reading and writing them as safetensors.

Both end in ``nn.Linear(width, classes)``; its input is the penultimate layer whose neurons the
neuron tasks look at. Inputs are (B, 3, 48, 48), normalised with the ``mean`` and ``std`` that
stand in ``config.json``.
"""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Four 3x3 convolutions with batch norm and ReLU, global average pooling, a linear head.

    All convolutions but the third halve the resolution: 48 -> 24 -> 12 -> 12 -> 6. Penultimate
    neurons are spatial means of ReLU outputs, so none is negative.
    """

    def __init__(self, num_classes: int, widths: tuple[int, int, int, int] = (32, 64, 96, 128)):
        super().__init__()
        blocks, channels = [], 3
        for width, stride in zip(widths, (2, 2, 1, 2), strict=True):
            blocks += [
                nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
        self.features = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images_b3hw: Tensor) -> Tensor:
        return self.head(self.features(images_b3hw).mean(dim=(2, 3)))


class ConvMixer(nn.Module):
    """A patch embedding, then depthwise (space) and pointwise (channel) mixing with GELU.

    After "Patches Are All You Need?" (Trockman & Kolter 2022), at a small size. The judge: its
    patches, activation and residuals differ from SmallCNN, so that fooling both is harder.
    """

    def __init__(
        self, num_classes: int, width: int = 96, depth: int = 5, patch: int = 4, kernel: int = 5
    ):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, patch, stride=patch), nn.GELU(), nn.BatchNorm2d(width)
        )
        self.blocks = nn.ModuleList(_MixerBlock(width, kernel) for _ in range(depth))
        self.head = nn.Linear(width, num_classes)

    def forward(self, images_b3hw: Tensor) -> Tensor:
        features = self.stem(images_b3hw)
        for block in self.blocks:
            features = block(features)
        return self.head(features.mean(dim=(2, 3)))


class _MixerBlock(nn.Module):
    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.space = nn.Sequential(
            nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width),
            nn.GELU(),
            nn.BatchNorm2d(width),
        )
        self.channels = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width))

    def forward(self, features: Tensor) -> Tensor:
        return self.channels(features + self.space(features))


def build_network(config: dict) -> nn.Module:
    """An untrained network. ``config`` has ``architecture``, its ``arguments``, and ``classes``."""
    make = {"small_cnn": SmallCNN, "conv_mixer": ConvMixer}[config["architecture"]]
    return make(len(config["classes"]), **config["arguments"])


def read_network(folder: Path) -> tuple[nn.Module, dict]:
    """The classifier that :func:`write_network` wrote, frozen and in eval mode, and its config.

    The config has ``architecture``, ``arguments``, ``size``, ``mean``, ``std``, ``classes`` and
    the measured ``figures``.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    network = build_network(config)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.eval().requires_grad_(False), config


def write_network(folder: Path, network: nn.Module, config: dict) -> None:
    """Writes ``config.json`` and ``model.safetensors`` (fp32) into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
