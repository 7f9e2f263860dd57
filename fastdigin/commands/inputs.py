"""Inputs of tasks on the command line: how each kind of them is named, and what is loaded for it.

A task declares its inputs (fastdigin.tasks.task.given); the ``kind`` of each is a line of KINDS.
"""

import argparse
import dataclasses
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fastdigin.commands.classifier_options import (
    CLASSIFIER_HELP,
    add_class_names,
    load_classifier,
    placed,
    read_lines,
)
from fastdigin.commands.common_options import (
    add_cache_options,
    add_images,
    add_layer,
    chosen_cache,
    chosen_device,
    chosen_folder,
)
from fastdigin.commands.options import comma_list, count
from fastdigin.engine.engine import Engine
from fastdigin.errors import MissingFiles, UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.classifiers import is_zero_shot
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.photos import ImageInput, collect, read_images
from fastdigin.retrieval import load_embedding
from fastdigin.tasks.task import Input, Task, inputs_of

CAPTIONS = "captions:"


class Loading:
    """The inputs of one task while they are loaded. The engine is loaded when it is asked for."""

    def __init__(self, task: type[Task], options: Namespace, load_engine):
        self.task, self.options, self._load_engine = task, options, load_engine
        self.values: dict[str, Any] = {}

    @cached_property
    def engine(self) -> Engine:
        return self._load_engine()

    @property
    def embedded(self) -> bool:
        """Whether the model is the packaged one."""
        return self.options.model == EMBEDDED

    def all(self) -> dict[str, Any]:
        """Every input's value: first those that tell of mistakes before a network is loaded."""
        for known in sorted(inputs_of(self.task), key=lambda known: not KINDS[known.kind].early):
            self.value(known)
        return self.values

    def value(self, known: Input) -> Any:
        if known.name not in self.values:
            self.values[known.name] = KINDS[known.kind].load(self, known)
        return self.values[known.name]

    def text(self, known: Input) -> Any:
        """What the option says; where it says nothing, what stands for it."""
        given = getattr(self.options, known.name)
        if given is None and known.embedded and self.embedded:
            return known.embedded
        return known.default if given is None else given


class Kind:
    """A kind of input that is a text."""

    early = False
    """Whether it is loaded before the engine."""

    def __init__(self, **argument: Any):
        """argument: what argparse is told beside the names and the help."""
        self._argument = argument

    def add(self, parser: argparse._ActionsContainer, known: Input) -> None:
        required = known.default is dataclasses.MISSING and known.embedded is None
        parser.add_argument(
            "--" + (known.flag or known.name).replace("_", "-"), dest=known.name, required=required,
            metavar=known.metavar, help=self.help(known), **self._argument,
        )  # fmt: skip

    def help(self, known: Input) -> str:
        also = f" (default with the packaged model: {known.embedded})" if known.embedded else ""
        return known.help + also

    def load(self, loading: Loading, known: Input) -> Any:
        return loading.text(known)


class ListOfTexts(Kind):
    """Texts with commas between them, at most --limit of them."""

    def load(self, loading: Loading, known: Input) -> list[str]:
        return super().load(loading, known)[: loading.options.limit]


class ClassifierKind(Kind):
    """A classifier by its name."""

    def help(self, known: Input) -> str:
        return f"{super().help(known)}: {CLASSIFIER_HELP}"

    def add(self, parser, known: Input) -> None:
        super().add(parser, known)
        if known.layer:
            add_layer(parser)

    def load(self, loading: Loading, known: Input) -> Classifier | None:
        loading.engine  # noqa: B018 - its mistakes come first
        spec = loading.text(known)
        if spec is None:
            return None
        classes = self._classes_of_another(loading, known) if is_zero_shot(spec) else None
        classifier = load_classifier(spec, loading.options, classes)
        layer = loading.options.layer if known.layer else None
        return classifier if layer is None else classifier.at_layer(layer)

    def _classes_of_another(self, loading: Loading, own: Input) -> Sequence[str] | None:
        """A zero-shot classifier tells the classes of the task's other classifier apart."""
        for known in inputs_of(loading.task):
            spec = loading.text(known) if known.kind == "classifier" else None
            if known.name != own.name and spec is not None and not is_zero_shot(spec):
                return loading.value(known).classes
        return None


class EmbeddingKind(Kind):
    """A network whose features are compared."""

    def help(self, known: Input) -> str:
        return f"{super().help(known)}: open_clip:MODEL/PRETRAINED, or any other classifier"

    def load(self, loading: Loading, known: Input) -> Classifier | None:
        spec = loading.text(known)
        return None if spec is None else placed(load_embedding(spec), loading.options)


class Photos(Kind):
    """Files, folders, tables and data sets of photos."""

    early = True

    def add(self, parser, known: Input) -> None:
        add_images(parser)
        parser.add_argument(
            "--source", metavar="CLASS", help="what the image shows (default: asks the classifier)"
        )
        parser.add_argument(
            "--source-word",
            metavar="WORD",
            help="its word in the prompt (default: that of --source)",
        )
        parser.add_argument(
            "--prompt", metavar="TEXT",
            help="describes the image, names the source or has {} for it",
        )  # fmt: skip
        parser.add_argument(
            "--captions", metavar="ID",
            help="an image-to-text model of transformers, a hub id or a folder, that says what "
            "photos without a prompt show (a table's column caption says it as well)",
        )  # fmt: skip

    def load(self, loading: Loading, known: Input) -> list[ImageInput]:
        options = loading.options
        told = ("source", "source_word", "prompt")
        changes = {key: getattr(options, key) for key in told if getattr(options, key) is not None}
        if options.crop:
            changes["crop"] = True
        if options.source is not None:
            changes["source_word"] = options.source_word  # the table's is one for its own source
        if options.prompt is not None:
            changes["background"] = None  # the table's may not occur in the new prompt
        photos = [replace(item, **changes) for item in collect(options.images, options.limit)]
        return with_captions(options, photos)


class Tools(Kind):
    """The caches and the segmenter that help to prepare photos."""

    def add(self, parser, known: Input) -> None:
        parser.add_argument(
            "--segmenter", metavar="S",
            help="finds the foreground from the attention: hq-sam:vit_tiny, vit_b, vit_l or vit_h "
            "(default: the attention itself)",
        )  # fmt: skip
        parser.add_argument(
            "--segmenter-weights", metavar="FILE", help="its checkpoint (default: the hub's)"
        )
        parser.add_argument(
            "--segmenter-prompt", choices=("points", "box"), default="points",
            help="how attention marks the object for it (default points)",
        )  # fmt: skip
        add_cache_options(parser, "inversions, masks and captions")

    def load(self, loading: Loading, known: Input) -> Any:
        from fastdigin.editing.inversion_cache import InversionCache
        from fastdigin.tasks.sources import PhotoTools

        options, model = loading.options, loading.engine.model
        if options.segmenter_weights and options.segmenter is None:
            raise UserError("--segmenter-weights is given without --segmenter: name both")
        folder = chosen_folder(options)
        return PhotoTools(
            inversions=folder and InversionCache(model, folder / "inversions"),
            segmentation=_load_segmentation(options, model, folder),
        )


class DataSet(Kind):
    """Photos that neurons are compared with."""

    def load(self, loading: Loading, known: Input) -> Sequence[Any]:
        named = loading.text(known)
        names = [named] if isinstance(named, str) else named
        size = loading.engine.model.image_size
        return read_images(collect(names), size) if len(names) else ()


class ActivatingKind(DataSet):
    """A data set that streams: what activates the task's neurons most in it."""

    def add(self, parser, known: Input) -> None:
        super().add(parser, known)
        add_cache_options(parser, "activations")

    def load(self, loading: Loading, known: Input) -> Any:
        from fastdigin.commands.activating import TOP_IMAGES, find_activating

        named = loading.text(known)
        if named is dataclasses.MISSING:
            named = ["embedded:photos"]
        classifier = loading.values["classifier"].to(loading.engine.model.device)
        names = [named] if isinstance(named, str) else named
        neurons = loading.values["neurons"]
        return find_activating(classifier, neurons, names, TOP_IMAGES, loading.options)


class Words(Kind):
    """Words to start from: a file of them, or a classifier that names what photos show."""

    early = True

    def add(self, parser, known: Input) -> None:
        parser.add_argument("--words", metavar=known.metavar, help=known.help)
        parser.add_argument(
            "--words-from", metavar="M",
            help="names what each neuron's most activating images show and starts from that: a "
            "zero-shot classifier (open_clip:MODEL/PRETRAINED) chooses among --words, another one "
            "among its classes; captions:ID, an image-to-text model of transformers, says it "
            "freely",
        )  # fmt: skip

    def load(self, loading: Loading, known: Input) -> Any:
        options = loading.options
        if options.words_from:
            return _load_naming(loading)
        if options.words:
            return read_lines(options.words, "--words")
        if not loading.embedded:
            raise UserError(
                "--words is needed with a model other than embedded, one word a line; or "
                "--words-from, which names what the neuron's most activating images show"
            )
        from fastdigin.embedded import words

        return words()


KINDS: dict[str, Kind] = {
    "text": Kind(),
    "count": Kind(type=count),
    "list": ListOfTexts(type=comma_list),
    "direction": Kind(choices=("max", "min", "both")),
    "classifier": ClassifierKind(),
    "embedding": EmbeddingKind(),
    "photos": Photos(),
    "tools": Tools(),
    "dataset": DataSet(nargs="+"),
    "activating": ActivatingKind(nargs="+"),
    "words": Words(),
}


def add_inputs(parser: argparse._ActionsContainer, task: type[Task]) -> None:
    """The arguments for all inputs of a task."""
    for known in inputs_of(task):
        KINDS[known.kind].add(parser, known)
    if any(known.kind == "classifier" for known in inputs_of(task)):
        add_class_names(parser)


def with_captions(options: Namespace, inputs: list[ImageInput]) -> list[ImageInput]:
    """The inputs with the captions of --captions, whose model is gone afterwards."""
    from fastdigin.tasks.captions import captioned, needs_caption

    if options.captions is None or not any(map(needs_caption, inputs)):
        return inputs
    from tqdm import tqdm

    from fastdigin.models.captioner import Captioner

    captioner = Captioner.load(options.captions).to(chosen_device(options))
    with tqdm(total=len(inputs), desc="captions", unit="photo", file=sys.stderr) as bar:
        cache = chosen_cache(options, "captions")
        return captioned(inputs, captioner, cache=cache, on_progress=bar.update)


def _load_segmentation(options, model, folder: Path | None):
    """Without weights the attention has to do; that is said, and does not end the run."""
    from fastdigin.editing.segmentation import Segmentation
    from fastdigin.models.segmenter import Segmenter
    from fastdigin.storage import TensorCache

    if options.segmenter is None:
        return None
    try:
        segmenter = Segmenter.load(options.segmenter, options.segmenter_weights)
    except MissingFiles as error:
        print(f"warning: attention alone finds the foreground: {error}", file=sys.stderr)
        return None
    masks = folder and TensorCache(folder / "masks")
    return Segmentation(segmenter.to(model.device), options.segmenter_prompt, masks=masks)


def _load_naming(loading: Loading) -> Any:
    """What --words-from means. UserError for --words that it would not use."""
    from fastdigin.models.captioner import Captioner
    from fastdigin.tasks.naming import CaptionedWords, RankedWords

    options, device = loading.options, loading.engine.model.device
    spec = options.words_from
    words = read_lines(options.words, "--words") if options.words else None
    if words and not is_zero_shot(spec):
        raise UserError(
            f"--words is given with --words-from {spec!r}, which has words of its own: leave one "
            "out, or rank the words by a zero-shot classifier, open_clip:MODEL/PRETRAINED"
        )
    if spec.startswith(CAPTIONS):
        return CaptionedWords(Captioner.load(spec.removeprefix(CAPTIONS)).to(device))
    return RankedWords(placed(Classifier.load(spec, classes=words), options))
