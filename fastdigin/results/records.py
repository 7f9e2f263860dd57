"""The records of the four tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fastdigin.results.keys import key
from fastdigin.results.schema import Record, register
from fastdigin.results.views import Cross, View


@register
@dataclass(frozen=True, kw_only=True)
class CounterfactualRecord(Record):
    """A photo that was changed until the classifier answers with the target."""

    task = "counterfactual"
    title = "Counterfactuals"
    beside = ("input", "target")
    question = "What would have to change for the classifier to see another class?"
    explanation = (
        "Each photo is changed as little as possible until the classifier answers with the target "
        "class, and only changes that the diffusion model finds natural are allowed. What changed "
        "is what the classifier goes by. 'Before' is the photo as the diffusion model reproduces "
        "it, 'after' is the counterfactual; changes are counted from the photo itself. The mask "
        "marks the object, outside of which changes are costly."
    )

    source: str | None = key("the class of the photo")
    target: str | None = key("the class that the classifier shall see")
    prompt: str | None = key("describes the photo")
    input: str | None = key("fingerprint of the photo and what is known of it")
    edited_prompt: str | None = key("the prompt with the target")
    variant: int | None = key("which of the photo's different counterfactuals, from 1")
    injection_fraction: float | None = key(
        "of the steps, those that attend as the source did", unit="share"
    )
    blending_fraction: float | None = key(
        "of the steps, those whose background is taken from the source", unit="share"
    )
    target_confidence_before: float | None = key(
        "the classifier's confidence in the target, in [0, 1], for the photo"
    )
    target_confidence_reconstruction: float | None = key(
        "the same for the photo as the diffusion model reproduces it (initial_image)"
    )
    target_confidence: float | None = key("the same for the result")
    prediction: str | None = key("the class that the classifier sees in the result")
    flipped: bool | None = key(
        "whether the target is seen in the result and was not in the photo; empty where it was"
    )
    already_target: bool | None = key("whether the target was seen in the photo already")
    judge_prediction: str | None = key(
        "the class that an independent classifier sees in the result"
    )
    judge_agrees: bool | None = key("whether that is the target, whatever the judge calls it")
    background_l1: float | None = key(
        "mean L1 from the photo to the result outside the mask, pixels in [0, 1]",
        label="background L1",
    )
    foreground_l1: float | None = key("the same inside the mask", label="foreground L1")

    def __post_init__(self) -> None:
        # Lines from before the key existed: both spoke of the same classes.
        if self.judge_agrees is None and self.judge_prediction is not None:
            object.__setattr__(self, "judge_agrees", self.judge_prediction == self.target)

    shows = (
        View("source"),
        View("target"),
        View(
            "target_confidence", before="target_confidence_before",
            reconstruction="target_confidence_reconstruction", pictures=True,
        ),
        View(
            "flipped", note="classifier now answers with the target",
            badge=("flipped", "not flipped"),
        ),
        View(
            "already_target", note="the photo shows the target already, so that none is a flip",
            places=("summary",),
        ),
        View("judge_prediction", "judge sees"),
        View(
            "judge_agrees", note="independent judge names the target, flipped or not",
            places=("summary",),
        ),
        View("background_l1", note="pixels in 0 to 1"),
        View("foreground_l1", note="pixels in 0 to 1"),
    )  # fmt: skip


@register
@dataclass(frozen=True, kw_only=True)
class DisagreementRecord(Record):
    """An image of a class that f is sure of and g denies."""

    task = "disagreement"
    title = "Disagreement"
    question = "What does one classifier recognise and the other one not?"
    explanation = (
        "Two classifiers, f and g, judge images of one class. Each image is optimised until f is "
        "sure of the class and g is not; whatever these images have in common is what g misses, "
        "or what only f relies on. 'Before' is the image as the prompt alone gives it."
    )

    class_: str | None = key("the class that f and g judge", name="class")
    f_confidence_before: float | None = key(
        "f's confidence in the class, in [0, 1], for the image of the prompt alone"
    )
    g_confidence_before: float | None = key("the same of g")
    f_confidence: float | None = key("f's confidence in the class for the result")
    g_confidence: float | None = key("the same of g")
    g_prediction: str | None = key("the class that g sees in the result")

    @property
    def gap_before(self) -> float | None:
        """f's confidence minus g's, before the optimisation."""
        return _difference(self.f_confidence_before, self.g_confidence_before)

    @property
    def gap(self) -> float | None:
        """f's confidence minus g's."""
        return _difference(self.f_confidence, self.g_confidence)

    shows = (
        View("class_"),
        View("f_confidence", "confidence of f", before="f_confidence_before"),
        View("g_confidence", "confidence of g", before="g_confidence_before"),
        View("gap", None, "share", "f minus g", places=("summary",), before="gap_before"),
        View("g_prediction", "g sees"),
    )


@register
@dataclass(frozen=True, kw_only=True)
class NeuronRecord(Record):
    """An image that excites a neuron."""

    task = "neurons"
    title = "Neurons"
    question = "What excites a single neuron most?"
    explanation = (
        "For each neuron the word whose generated images excite it most is the start ('before'); "
        "then the image is optimised to raise the activation further ('after'). An image above "
        "the data set's maximum excites the neuron more than any photo does."
    )

    neuron: int | None = key("the neuron's number")
    word: str | None = key("the word whose images excite the neuron most")
    direction: Literal["max", "min"] | None = key('"max" or "min": raised or lowered')
    dataset_max_activation: float | None = key("the neuron's largest activation on the data set")
    activation_before: float | None = key("the neuron's activation on the image of the word alone")
    activation: float | None = key("the same on the result")
    cross_activations: Mapping[str, float | None] | None = key(
        "{neuron: its activation on the result / its largest on the data set}"
    )
    max_other_activation: float | None = key(
        "the largest of these for another neuron", unit="multiple"
    )

    @property
    def share_of_maximum(self) -> float | None:
        """The activation as a multiple of the data set's maximum."""
        return self._share(self.activation)

    @property
    def share_of_maximum_before(self) -> float | None:
        """The same before the optimisation."""
        return self._share(self.activation_before)

    def _share(self, activation: float | None) -> float | None:
        # A multiple of a maximum that is not positive says nothing.
        maximum = self.dataset_max_activation
        known = activation is not None and maximum is not None and maximum > 0
        return activation / maximum if known else None

    @property
    def above_dataset(self) -> bool | None:
        """Whether the activation exceeds the data set's maximum; None where unknown."""
        excess = _difference(self.activation, self.dataset_max_activation)
        return None if excess is None else excess > 0

    shows = (
        View("neuron"),
        View("word"),
        View("direction"),
        View(
            "activation", before="activation_before", pictures=True, places=("table", "card"),
        ),
        View("dataset_max_activation", "data-set maximum", places=("card",)),
        View("share_of_maximum", "of the maximum", "multiple", before="share_of_maximum_before"),
        View(
            "above_dataset", "above the data set",
            note="activation higher than for any photo of the data set",
            badge=("above the data set", "below the data set's maximum"),
        ),
        View("max_other_activation", "highest other neuron", places=("card",)),
    )  # fmt: skip
    crossed = (
        Cross(
            "cross_activations", own="neuron", also="word",
            caption="Does an image excite its own neuron only? Rows: images, by the neuron they "
            "were optimised for. Columns: a neuron's activation on that image, as a multiple of "
            "its maximum over the data set. The row's own neuron is framed.",
        ),
    )  # fmt: skip


@register
@dataclass(frozen=True, kw_only=True)
class NeuronCounterfactualRecord(Record):
    """A photo around whose object a neuron was turned up or down."""

    task = "neuron-counterfactual"
    title = "Neuron counterfactuals"
    beside = ("input", "neuron")
    question = "What around the object does a neuron really look at?"
    explanation = (
        "A neuron is turned up or down while the object in the photo is kept, so that only the "
        "background may change. A background that turns into something else tells what the neuron "
        "responds to; if the class confidence follows, the classifier leans on the background. "
        "'Before' is the photo as the diffusion model reproduces it; changes are counted from the "
        "photo itself. The mask marks the object that is kept."
    )

    neuron: int | None = key("the neuron's number")
    direction: Literal["max", "min"] | None = key('"max" or "min": turned up or down')
    prompt: str | None = key("describes the photo")
    edited_prompt: str | None = key("the prompt of the result: its background may be another")
    input: str | None = key("fingerprint of the photo and what is known of it")
    class_: str | None = key("the class of the photo", name="class")
    activation_before: float | None = key("the neuron's activation on the photo")
    activation_reconstruction: float | None = key(
        "the same on the photo as the diffusion model reproduces it (initial_image)"
    )
    activation: float | None = key("the same on the result")
    background_before: str | None = key("what a background classifier sees in the photo")
    background_after: str | None = key("the same in the result")
    class_confidence_before: float | None = key(
        "the classifier's confidence in the class, in [0, 1], for the photo"
    )
    class_confidence: float | None = key("the same for the result")
    foreground_l1: float | None = key(
        "mean L1 from the photo to the result inside the mask, pixels in [0, 1]",
        label="foreground L1",
    )
    background_l1: float | None = key("the same outside the mask", label="background L1")

    @property
    def background_changed(self) -> bool | None:
        """Whether the background classifier's answer differs; None without one."""
        seen = (self.background_before, self.background_after)
        return None if None in seen else seen[0] != seen[1]

    shows = (
        View("neuron"),
        View("direction"),
        View(
            "activation", before="activation_before", reconstruction="activation_reconstruction",
            by="direction", pictures=True,
        ),
        View("background_after", "background", before="background_before"),
        View(
            "background_changed", note="background classifier's answer differs",
            badge=("background changed", "background kept"), places=("card", "summary"),
        ),
        View("class_confidence", before="class_confidence_before", by="direction"),
        View("foreground_l1", note="pixels in 0 to 1"),
    )  # fmt: skip


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
