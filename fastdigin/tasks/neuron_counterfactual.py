"""Neuron counterfactuals: change what a neuron sees around an object, and keep the object.

From the inversion of a photo, one neuron's activation is raised or lowered while the foreground
is kept. For a spurious neuron the background changes: this is what the classifier looks at
(DiG-IN, section 4.4).
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin.configuration import check_settings, documented, setting
from fastdigin.editing.prompts import replace_phrase, token_mapping
from fastdigin.editing.schedules import Schedule, parse_schedule
from fastdigin.embedded import BACKGROUNDS
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job, Result, Settings
from fastdigin.errors import check_choice
from fastdigin.metrics.distances import masked_l1
from fastdigin.models.classifier import Classifier
from fastdigin.objectives import NeuronActivation
from fastdigin.photos import (
    ImageInput,
    Images,
    as_inputs,
    distinct,
    one_each,
    readable_images,
)
from fastdigin.results import NeuronCounterfactualRecord
from fastdigin.results.numbers import percent
from fastdigin.storage import fingerprint
from fastdigin.tasks.firing import check_fires, off_note
from fastdigin.tasks.monitors import Activation, Confidence
from fastdigin.tasks.photo_task import CheckedPhoto, Edit, PhotoRequest, PhotoSettings, PhotoTask
from fastdigin.tasks.regularisers import Regulariser
from fastdigin.tasks.sources import (
    NO_TOOLS,
    MaskEdge,
    PhotoTools,
    Source,
    SourcePhoto,
)
from fastdigin.tasks.task import given

SCALING_IMAGES = 1000
"""Of the photos, at most so many are read to see how strongly a neuron fires."""


@documented
@dataclass(frozen=True)
class NeuronCounterfactualSettings(PhotoSettings):
    """How neuron counterfactuals are made.

    background_words are tried in place of the phrase of the prompt that names the background,
    where an ImageInput tells which; the prompt with the smallest neuron loss is the start. (An
    addition to the paper: optimisation alone tints a small model's background rather than
    replacing it.) The regularisers of the paper hold the foreground. The neuron looks at the plain
    image: no crops.

    Raises:
        UserError: a value that is out of its bounds.

    Example:
        >>> settings = fd.NeuronCounterfactuals.default_settings(model)
        >>> replace(settings, blending_fraction=0.5, background_words=("grass", "sand"))
    """

    injection_fraction: Schedule = setting(
        0.3,
        "fraction of the steps that attend as the photo did, or a schedule: 0.1-0.4 (from, until), "
        "cosine, cosine:TILT",
        least=0, most=1, parse=parse_schedule,
    )  # fmt: skip
    blending_fraction: Schedule = setting(
        0.3,
        "fraction of the steps whose foreground is the photo's, or a schedule",
        least=0, most=1, parse=parse_schedule,
    )  # fmt: skip
    background_words: tuple[str, ...] = setting((), "tried in place of the photo's background")
    mask_edge: MaskEdge = setting(
        "soften", "an automatic mask gets a soft margin (the paper's), or is cut to the object"
    )
    regularisers: tuple[Regulariser, ...] = setting(
        (
            Regulariser("latents-l2", "foreground", 25.0),
            Regulariser("pixels-l2", "foreground", 250.0),
        ),
        "what keeps the result near the photo, instead of the default ones",
        flag="regulariser",
    )

    def __post_init__(self) -> None:
        check_settings(self)


# Chosen on photos that no bench uses, by eye and by figures: higher rates please the neuron
# with specks of paint, and more injection holds the structure of the old background. At 64 px the
# margin of a softened mask is most of the background: it is cut, and then blended for long.
EMBEDDED = NeuronCounterfactualSettings(
    optimisation=Settings(learning_rate=0.01),
    injection_fraction=0.1,
    blending_fraction=0.8,
    background_words=BACKGROUNDS,
    mask_edge="tighten",
    regularisers=(
        Regulariser("latents-l2", "foreground", 1.0),
        Regulariser("pixels-l2", "foreground", 50.0),
    ),
)


DIRECTIONS = {"max": ("max",), "min": ("min",), "both": ("max", "min")}
"""What may be asked for -> the results it makes."""


@dataclass(frozen=True)
class NeuronRequest(PhotoRequest):
    """A photo, a neuron, and whether it shall fire more ("max") or less ("min")."""

    neuron: int
    direction: str


@documented
@dataclass(kw_only=True)
class NeuronCounterfactuals(PhotoTask):
    """Neuron counterfactuals of photos, as in :func:`fastdigin.neuron_counterfactuals`.

    Raises:
        UserError: for a neuron that does not exist, before any work starts.

    Example:
        >>> task = fd.NeuronCounterfactuals(
        ...     engine=engine, photos=photos, classifier=spurious, neuron=76, direction="min"
        ... )
        >>> records = list(task.run())
    """

    name = "neuron-counterfactual"
    record_type = NeuronCounterfactualRecord
    settings_type = NeuronCounterfactualSettings
    embedded_settings = EMBEDDED
    search_by = "neuron_loss"

    classifier: Classifier = given(
        "the classifier of the neuron",
        kind="classifier",
        metavar="C",
        layer=True,
        optimised="activations",
    )
    neuron: str | int | Sequence[int] = given("its number in the layer", metavar="N", affects=False)
    direction: str | Sequence[str] = given(
        "whether it shall fire more or less; both makes two results",
        kind="direction",
        affects=False,
    )
    dataset: Sequence[Tensor] = given(
        "photos that tell how strongly the neuron fires", kind="dataset", default=(),
        metavar="IMAGES", embedded="embedded:photos", affects=False,
    )  # fmt: skip
    backgrounds: Classifier | None = given(
        "names the background before and after", kind="classifier", default=None, metavar="C",
        embedded="embedded:background", optimised=None,
    )  # fmt: skip

    def prepare(self) -> None:
        super().prepare()
        count = len(self.photos)
        self._neurons = [
            self.classifier.check_neuron(n) for n in one_each(self.neuron, "neurons", count)
        ]
        self._directions = one_each(self.direction, "directions", count)
        for direction in self._directions:
            check_choice("direction", direction, DIRECTIONS)
        self._scales = self._measured_scales()

    def measured(self) -> dict:
        if len(self.dataset):
            return {"dataset": fingerprint(*self.dataset)}
        # Without a data set a resumed run with other photos would mix scales.
        scales = {str(n): float(f"{scale:.4g}") for n, scale in self._scales.items()}
        return {"dataset": None, "scales": scales}

    def make_requests(self) -> list[NeuronRequest]:
        asked = [
            (photo, neuron, direction)
            for photo, neuron, directions in zip(
                self.photos, self._neurons, self._directions, strict=True
            )
            for direction in DIRECTIONS[directions]
        ]
        ids = distinct(f"{photo.id}-neuron-{neuron}-{way}" for photo, neuron, way in asked)
        return [NeuronRequest(id, *one) for id, one in zip(ids, asked, strict=True)]

    def check(self, request: NeuronRequest) -> CheckedPhoto:
        checked = super().check(request)
        for prompt in self._prompts(checked.photo):
            token_mapping(self.model, checked.photo.prompt, prompt)  # raises where they do not fit
        return checked

    @property
    def injected(self) -> Sequence[Schedule]:
        return (self.settings.injection_fraction,)

    @property
    def mask_edge(self) -> MaskEdge:
        return self.settings.mask_edge

    def candidates(self, request: NeuronRequest, source: Source) -> list[Job]:
        off = request.direction == "max" and self._is_off(request.neuron, source.reconstruction)
        return [self._job(request, source, prompt, off) for prompt in self._prompts(source.photo)]

    @torch.no_grad()
    def _is_off(self, neuron: int, image_3hw: Tensor) -> bool:
        return float(self.classifier.activations(image_3hw[None])[0, neuron]) == 0

    def _prompts(self, photo: SourcePhoto) -> list[str]:
        """The photo's prompt and, where its background is named, those with other backgrounds."""
        named = photo.item.background
        others = [w for w in self.settings.background_words if w != named] if named else []
        return [photo.prompt, *(replace_phrase(photo.prompt, named, word) for word in others)]

    def _job(self, request: NeuronRequest, source: Source, prompt: str, off: bool) -> Job:
        settings = self.settings
        loss = NeuronActivation(
            self.classifier, request.neuron, maximise=request.direction == "max",
            scale=self._scales[request.neuron], through_relu=off, name="neuron_loss",
        )  # fmt: skip
        monitors = {
            "activation": Activation(self.classifier, request.neuron),
            "class_confidence": Confidence(self.classifier, source.photo.source_class),
        }
        edit = Edit(
            request, source, prompt, settings.injection_fraction, settings.blending_fraction
        )
        return self.edited_job(edit, source.latent_mask, loss, settings.optimisation, monitors)

    @torch.no_grad()
    def _measured_scales(self) -> dict[int, float]:
        """Each neuron's largest activation over the data set, or 1 where it never fires."""
        size, images = self.model.image_size, self.dataset
        if not len(images):
            images = readable_images(self.photos[:SCALING_IMAGES], size)
        neurons = set(self._neurons)
        rows = [
            self.classifier.activations(image[None].to(self.classifier.device))[0].cpu()
            for image in (images if neurons else ())
        ]
        if not rows:
            return dict.fromkeys(neurons, 1.0)
        low, high = torch.stack(rows).amin(dim=0), torch.stack(rows).amax(dim=0)
        ranges = {n: (float(low[n]), float(high[n])) for n in neurons}
        check_fires(self.classifier, ranges, len(rows), must=False)
        return {n: top if top > 0 else 1.0 for n, (_, top) in ranges.items()}

    @torch.no_grad()
    def explain(self, result: Result) -> NeuronCounterfactualRecord:
        edit: Edit = result.job.info
        request, source = edit.request, edit.source
        figures = {"caption": f"Neuron {request.neuron}: the job failed."}
        if result.image is not None:
            figures = self._figures(result, edit)
        return NeuronCounterfactualRecord.of(
            result,
            settings=self.run_settings,
            before=source.reconstruction,
            input_image=source.image,
            mask=source.mask,
            neuron=request.neuron,
            direction=request.direction,
            prompt=source.photo.prompt,
            edited_prompt=edit.prompt,
            input=request.fingerprint,
            class_=self.classifier.classes[source.photo.source_class],
            **figures,
        )

    def _figures(self, result: Result, edit: Edit) -> dict:
        request, source, classifier = edit.request, edit.source, self.classifier
        image = result.image.to(source.image)
        neuron, source_class = request.neuron, source.photo.source_class
        original = source.image
        before, rebuilt, after = (
            float(classifier.activations(x[None])[0, neuron])
            for x in (original, source.reconstruction, image)
        )
        seen_before, seen_after = (self._background(x) for x in (original, image))
        class_before, class_after = (
            float(classifier.probabilities(x[None])[0, source_class]) for x in (original, image)
        )
        turned = f"; the background turns from {seen_before} to {seen_after}" if seen_before else ""
        return {
            "activation_before": before,
            "activation_reconstruction": rebuilt,
            "activation": after,
            "background_before": seen_before,
            "background_after": seen_after,
            "class_confidence_before": class_before,
            "class_confidence": class_after,
            "foreground_l1": masked_l1(image, original, source.mask),
            "background_l1": masked_l1(image, original, 1 - source.mask),
            "caption": (
                f"Neuron {neuron} ({request.direction}) goes from {before:.2f} to {after:.2f} "
                f"around a {source.photo.source}{turned}, and {classifier.name}'s confidence in "
                f"{classifier.classes[source_class]} goes from {percent(class_before)} to "
                f"{percent(class_after)}." + off_note(result.job.losses[0], rebuilt, after)
            ),
        }

    def _background(self, image_3hw: Tensor) -> str | None:
        if self.backgrounds is None:
            return None
        return self.backgrounds.classes[int(self.backgrounds.logits(image_3hw[None]).argmax())]


def neuron_counterfactuals(
    engine: Engine,
    images: Images | ImageInput,
    classifier: Classifier,
    neurons: int | Sequence[int],
    directions: str | Sequence[str],
    *,
    dataset: Iterable[Tensor] = (),
    backgrounds: Classifier | None = None,
    embedding: Classifier | None = None,
    settings: NeuronCounterfactualSettings | None = None,
    seed: int = 0,
    tools: PhotoTools = NO_TOOLS,
    skip: Collection[str] = (),
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[NeuronCounterfactualRecord]:
    """Changes what a neuron sees around the object of a photo, and keeps the object.

    Args:
        engine, images, embedding, seed, tools, skip, on_progress: as in
            :func:`fastdigin.counterfactuals`.
        classifier: whose neurons are meant: those before the head, or of ``at_layer``.
        neurons: numbers in that layer, one for all images or one each.
        directions: "max", "min" or "both", one for all images or one each.
        dataset: images (3, H, W) in [0, 1] whose largest activation sets the scale of a neuron's
            loss; without any, that of the first SCALING_IMAGES of ``images``.
        backgrounds: a classifier that names the background before and after, never optimised
            against.
        settings: None takes the defaults for the engine's model.

    Returns:
        A record per image, as it finishes. One bad image among several yields a failed record.

    Raises:
        UserError: before any work, if nothing can be done.

    Example:
        >>> spurious = fd.Classifier.load("embedded:spurious")
        >>> for r in fd.neuron_counterfactuals(engine, "embedded:photos", spurious, 76, "min"):
        ...     print(r.activation_before, r.activation, r.class_confidence)

    Source: DiG-IN (arXiv 2311.17833), section 4.4.
    """
    task = NeuronCounterfactuals(
        engine=engine, photos=as_inputs(images), classifier=classifier, neuron=neurons,
        direction=directions, dataset=list(dataset), backgrounds=backgrounds,
        embedding=embedding, settings=settings, seed=seed, tools=tools,
    )  # fmt: skip
    return task.run(skip=skip, on_progress=on_progress)
