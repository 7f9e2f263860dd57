"""Whether the networks that a run names are on this machine."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastdigin.errors import Missing, UserError
from fastdigin.models.missing import kept_offline

CLASSIFIERS = ("classifier", "judge", "f", "g", "embedding")
CAPTIONS = "captions:"


@dataclass(frozen=True)
class Need:
    """A network that a run needs.

    status: "missing" where ``command`` gets it; "wrong" where it cannot be loaded as it is.
    """

    option: str
    name: str
    status: Literal["here", "missing", "wrong"]
    problem: str | None = None
    command: str | None = None


def check_needs(options: Mapping[str, Any]) -> list[Need]:
    """A Need for every network that options of a command line (without dashes) name.

    Networks are loaded to see that they can be. Of diffusion models the headers of the files are
    read, and segmenters are looked for; nothing tries the network.
    """
    with kept_offline():
        return [_check(option, name, options) for option, name in _named(options)]


def _named(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for option in ("model", *CLASSIFIERS, "segmenter", "captions", "words-from"):
        value = options.get(option)
        values: Sequence[str] = value if isinstance(value, list) else [value] if value else []
        for name in values:
            yield option, name


def _check(option: str, name: str, options: Mapping[str, Any]) -> Need:
    try:
        _find(option, name, options)
    except Missing as error:
        return Need(option, name, "missing", str(error), error.command)
    except UserError as error:
        return Need(option, name, "wrong", str(error))
    return Need(option, name, "here")


def _find(option: str, name: str, options: Mapping[str, Any]) -> None:
    if option == "model":
        from fastdigin.models.model_files import check_headers, find_model

        check_headers(name, find_model(name))
    elif option == "segmenter":
        from fastdigin.models.segmenter import find_segmenter

        weights = options.get("segmenter-weights")
        if not find_segmenter(name, weights)[1].is_file():
            raise UserError(f"--segmenter-weights '{weights}' does not exist")
    elif option == "captions" or name.startswith(CAPTIONS):
        from fastdigin.models.captioner import Captioner

        Captioner.load(name.removeprefix(CAPTIONS))
    else:
        from fastdigin.models.classifiers import is_zero_shot, load_features, load_network

        # Of a zero-shot classifier only the image half: its texts take minutes.
        load = load_features if option == "embedding" or is_zero_shot(name) else load_network
        load(name)
