"""What a module of a well-known library tells by itself: arguments of ``Classifier``."""

import logging
from dataclasses import replace
from typing import Any

from torch import nn

from fastdigin.errors import UserError
from fastdigin.models.classifiers.loaded import LoadedNetwork, names_warning

log = logging.getLogger(__name__)


def describe(network: nn.Module, processor: Any, name: str) -> LoadedNetwork:
    """A module of timm, torchvision or transformers with its own preprocessing.

    processor: as ``Classifier`` takes it. Raises UserError for a module of another library, and
    where nothing says how its images are prepared.
    """
    library = next((b.__module__.partition(".")[0] for b in type(network).__mro__ if _known(b)), "")
    if hasattr(network, "pretrained_cfg"):
        from fastdigin.models.classifiers import timm_models

        return timm_models.describe(network, name)
    if library == "torchvision":
        from fastdigin.models.classifiers import torchvision_models as own

        if processor is not None:
            return own.describe(network, processor, name)
        found = own.describe(network, own.weights_of(network, name), name)
        return replace(found, named="guessed") if found.named == "own" else found
    if library == "transformers":
        from fastdigin.models.classifiers import transformers_models

        return transformers_models.describe(network, processor or _processor(network, name), name)
    raise UserError(
        f"{name} is a {type(network).__name__}, which does not say how its images are prepared: "
        "give size, mean, std and classes."
    )


def completed(network: nn.Module, processor: Any, name: str, **given: Any) -> LoadedNetwork:
    """The same, with what was given instead of what the module tells; warns of guessed names."""
    found = describe(network, processor, name)
    if given["classes"] is None and found.named != "own":
        log.warning("%s", names_warning(name, found))
    changes = {key: value for key, value in given.items() if value is not None}
    edge, size = found.resizing.edge, changes.get("size", found.size)
    if edge is not None and "resizing" not in changes:
        changes["resizing"] = replace(found.resizing, edge=edge * size // found.size)
    return replace(found, **changes)


def _known(base: type) -> bool:
    return base.__module__.partition(".")[0] in ("torchvision", "transformers")


def _processor(network: Any, name: str) -> Any:
    """The image processor beside the weights that a model of transformers came from."""
    from transformers import AutoImageProcessor

    source = network.config._name_or_path
    try:
        return AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name}: there is no image processor at {source!r}, where its model comes from: give "
            "it as processor=AutoImageProcessor.from_pretrained(...)."
        ) from error
