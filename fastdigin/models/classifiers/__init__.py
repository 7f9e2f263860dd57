"""Networks of many libraries by one string, one module per library."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastdigin.errors import UserError
from fastdigin.models.classifiers.loaded import LoadedNetwork

__all__ = ["KINDS", "LoadedNetwork", "is_zero_shot", "load_network"]

KINDS = {
    "embedded": "embedded:NAME",
    "timm": "timm:NAME",
    "torchvision": "torchvision:NAME[.WEIGHTS]",
    "hf": "hf:ID_OR_FOLDER",
    "open_clip": "open_clip:MODEL/PRETRAINED",
    "file": "file:PATH@ARCHITECTURE",
}
"""Kind -> how it is written."""


def load_network(
    spec: str, classes: Sequence[str] | None = None, templates: Sequence[str] | None = None
) -> LoadedNetwork:
    """What ``Classifier.load`` builds on; it says what the texts mean.

    classes are for zero-shot classifiers only. Raises UserError if the spec is not understood or
    cannot be had.
    """
    kind, _, name = spec.partition(":")
    if kind not in KINDS or not name:
        raise UserError(
            f"classifier {spec!r} is not understood: write one of {', '.join(KINDS.values())}."
        )
    if kind == "open_clip":
        from fastdigin.models.classifiers.open_clip_models import load_open_clip

        return load_open_clip(name, classes, templates)
    if templates is not None:
        raise UserError(
            f"templates were given for classifier {spec!r}, which reads no text: leave them out, "
            f"or use a zero-shot classifier, {KINDS['open_clip']}."
        )
    return _loader(kind)(name)


def is_zero_shot(spec: str) -> bool:
    """Whether the classifier of this text tells any named classes apart."""
    return spec.startswith("open_clip:")


def _loader(kind: str) -> Callable[[str], LoadedNetwork]:
    # Imported on use: each of these libraries takes a second or more.
    if kind == "embedded":
        from fastdigin.models.classifiers.embedded import load_embedded as load
    elif kind == "timm":
        from fastdigin.models.classifiers.timm_models import load_timm as load
    elif kind == "torchvision":
        from fastdigin.models.classifiers.torchvision_models import load_torchvision as load
    elif kind == "hf":
        from fastdigin.models.classifiers.transformers_models import load_transformers as load
    else:
        from fastdigin.models.classifiers.weight_files import load_file as load
    return load
