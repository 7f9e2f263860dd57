"""Networks whose features metrics compare."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastdigin.errors import MissingFiles, UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.classifiers import load_features
from fastdigin.models.missing import require

INCEPTION = "inception"


class Extractor(NamedTuple):
    """A network's features. features: maps images (B,3,H,W) in [0,1], on any device, to (B,D)."""

    name: str
    features: Callable[[Tensor], Tensor]


def load_extractor(spec: str, device: torch.device | str = "cpu") -> Extractor:
    """A network by name. Nothing is downloaded that ``Classifier.load`` would not download.

    Args:
        spec: inception, the one of published FIDs (torch-fidelity; its weights lie in torch's hub
            cache, or inception:FILE names them); or a text as for ``Classifier.load``, such as
            embedded:judge, whose features are those before its head.
        device: where it runs.

    Raises:
        UserError: as ``Classifier.load``; Missing where package or weights are not here.

    Example:
        >>> name, features = load_extractor("embedded:judge")
    """
    kind, _, file = spec.partition(":")
    if kind == INCEPTION:
        inception = _inception(Path(file) if file else None).to(device)
        return Extractor(spec, lambda x: inception((255 * x).round().byte().to(device))[0])
    network = Classifier(**load_features(spec).arguments, name=spec).to(device)
    return Extractor(spec, lambda x: network.activations(x.to(device)))


def _inception(file: Path | None) -> torch.nn.Module:
    """The Inception network that TensorFlow's FID uses, with 2048 features."""
    module = require(
        "torch_fidelity.feature_extractor_inceptionv3", "metrics", "extractor 'inception'"
    )
    url = module.URL_INCEPTION_V3
    path = file or Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        raise MissingFiles(
            f"extractor 'inception' needs its weights, which are not at '{path}': put the file "
            f"from {url} there, or name it as inception:FILE.",
            f"curl -L -o '{path}' {url}",
        )
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # what follows would run any code
        return module.FeatureExtractorInceptionV3(INCEPTION, ["2048"], str(path))
    except Exception as error:
        raise UserError(
            f"extractor 'inception': '{path}' does not hold its weights ({error}): give the file "
            f"from {url}"
        ) from error
