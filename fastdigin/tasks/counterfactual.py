"""Universal visual counterfactuals: what would have to change for the classifier to say TARGET?

A photo is inverted, the source word of its prompt is replaced by the target, the gentlest
prompt-to-prompt schedule that already helps is searched, and the classifier's confidence in the
target is raised while the background is kept (DiG-IN, section 4.2 and supplement C).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fastdigin.configuration import check_settings, documented, setting
from fastdigin.editing.prompts import replace_phrase, token_mapping
from fastdigin.editing.schedules import Schedule, parse_schedule, schedule_weights
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import EarlyStop, Job, Result, Settings
from fastdigin.errors import UserError
from fastdigin.metrics.distances import masked_l1
from fastdigin.models.classifier import Classifier
from fastdigin.objectives import ClassConfidence, Cutouts
from fastdigin.photos import ImageInput, Images, as_inputs, distinct, one_each
from fastdigin.results import CounterfactualRecord
from fastdigin.results.numbers import percent
from fastdigin.tasks.diverse import apart, other_start
from fastdigin.tasks.monitors import Confidence
from fastdigin.tasks.photo_task import (
    CheckedPhoto,
    Edit,
    PhotoRequest,
    PhotoSettings,
    PhotoTask,
)
from fastdigin.tasks.regularisers import Regulariser
from fastdigin.tasks.sources import NO_TOOLS, PhotoTools, Source, SourcePhoto
from fastdigin.tasks.task import given
from fastdigin.tasks.words import (
    class_word,
    first_that_fits,
    id_of,
    same_class,
    shared_words,
    user_word,
    words_for,
)

CONFIDENCE = "target_confidence"
"""The monitor of every job: the classifier's confidence in the target, on the plain image."""


@documented
@dataclass(frozen=True)
class CounterfactualSettings(PhotoSettings):
    """How counterfactuals are made.

    injection_fractions x blending_fractions are the candidates of the schedule search. The
    regularisers of the paper hold the background.

    A job ends in time, which with direct inversion is as good as the published method in half the
    time (bench/NOTES.md); that is the preset exact (fd.presets.EXACT).

    Raises:
        UserError: a value that is out of its bounds, or no candidate for the search.

    Example:
        >>> settings = fd.Counterfactuals.default_settings(model)
        >>> replace(settings, stop_at=0.95, optimisation=replace(settings.optimisation, steps=10))
    """

    injection_fractions: tuple[Schedule, ...] = setting(
        (0.3, 0.4, 0.5),
        "fractions of the steps that attend as the source did, or schedules: 0.1-0.4 (from, "
        "until), cosine, cosine:TILT",
        least=0, most=1, parse=parse_schedule,
    )  # fmt: skip
    blending_fractions: tuple[Schedule, ...] = setting(
        (0.0, 0.3),
        "fractions of the steps whose background is the source's, or schedules",
        least=0, most=1, parse=parse_schedule,
    )  # fmt: skip
    objective: Literal["conf", "log_conf", "logits"] = setting(
        "log_conf", "what is raised for the target; the paper's is log_conf"
    )
    regularisers: tuple[Regulariser, ...] = setting(
        (
            Regulariser("latents-l2", "background", 25.0),
            Regulariser("pixels-l2", "background", 250.0),
        ),
        "what keeps the result near the photo, instead of the default ones",
        flag="regulariser",
    )
    stop_at: float | None = setting(
        0.85,
        "end an image's work once its target confidence was above P three times in a row",
        above=0, below=1, metavar="P",
    )  # fmt: skip
    stop_settled: bool = setting(
        True, "with stop_at: not before the distance to the photo no longer falls"
    )
    cutouts: Cutouts = setting(Cutouts, "random crops")

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("injection_fractions", "blending_fractions"):
            if not getattr(self, name):
                raise UserError(f"{name} must be some numbers from 0 to 1, got ()")

    def engine_settings(self) -> Settings:
        """``optimisation`` with the rule of stop_at."""
        if self.stop_at is None:
            return self.optimisation
        distances = [item.name for item in self.regularisers] if self.stop_settled else []
        stop = EarlyStop(above=self.stop_at, of=CONFIDENCE, held_for=3, settled=tuple(distances))
        return replace(self.optimisation, early_stop=stop)

    def schedules(self) -> list[tuple[Schedule, Schedule]]:
        """(injection, blending), only the first of those that come to the same steps."""
        steps, different = self.optimisation.steps, {}
        for pair in itertools.product(self.injection_fractions, self.blending_fractions):
            different.setdefault(tuple(schedule_weights(s, steps) for s in pair), pair)
        return list(different.values())


# Chosen on the packaged pairs, by eye and by figures. The weights of the paper suit 512 px and hold
# the shape of a garment; where injection forbids a change of shape the optimisation paints stripes
# instead, hence the gentle 0.1.
EMBEDDED = CounterfactualSettings(
    optimisation=Settings(learning_rate=0.02),
    injection_fractions=(0.1, 0.3, 0.5),
    regularisers=(
        Regulariser("latents-l2", "background", 2.5),
        Regulariser("pixels-l2", "background", 25.0),
    ),
)


@dataclass(frozen=True)
class CounterfactualRequest(PhotoRequest):
    """A photo and the class that the classifier shall see; None where nobody said which.

    variant: which of the photo's different counterfactuals it is, from 0.
    """

    target_class: int | None
    variant: int = 0


@documented
@dataclass(kw_only=True)
class Counterfactuals(PhotoTask):
    """Universal visual counterfactuals of photos, as in :func:`fastdigin.counterfactuals`.

    Raises:
        UserError: for anything that would fail later, before any work starts.

    Example:
        >>> photos = fd.collect(["photos/"])
        >>> task = fd.Counterfactuals(engine=engine, photos=photos, classifier=robust, target=3)
        >>> records = list(task.run())
    """

    name = "counterfactual"
    record_type = CounterfactualRecord
    settings_type = CounterfactualSettings
    embedded_settings = EMBEDDED

    target: str | int | Sequence[str | int] | None = given(
        "name or index (not for embedded:pairs)", default=None, metavar="CLASS", affects=False
    )
    target_word: str | None = given(
        "its word in the prompt (default: that of --target)", default=None, metavar="WORD",
        affects=False,
    )  # fmt: skip
    judge: Classifier | None = given(
        "independent classifier to ask afterwards", kind="classifier", default=None, metavar="C",
        embedded="embedded:judge", optimised=None,
    )  # fmt: skip
    diverse: int = given(
        "different counterfactuals of each photo; the report says how different they are",
        kind="count", default=1, metavar="N", affects=False,
    )  # fmt: skip

    def make_requests(self) -> list[CounterfactualRequest]:
        photos = self.photos
        if self.target is not None:
            targets = one_each(self.target, "targets", len(photos))
            # A word that a table has is one for the table's target.
            photos = [
                replace(p, target=t, target_word=None) for p, t in zip(photos, targets, strict=True)
            ]
        index, shared = self.classifier.class_index, shared_words(self.classifier)
        goals = [None if photo.target is None else index(photo.target) for photo in photos]
        words = (
            self.target_word or p.target_word or user_word(self.classifier, goal, p.target)
            for p, goal in zip(photos, goals, strict=True)
        )
        photos = [replace(p, target_word=word) for p, word in zip(photos, words, strict=True)]
        ids = distinct(
            photo.id if goal is None else f"{photo.id}-to-{id_of(self._word(goal), goal, shared)}"
            for photo, goal in zip(photos, goals, strict=True)
        )
        return [
            CounterfactualRequest(f"{id}-variant-{n + 1}" if n else id, photo, goal, n)
            for id, photo, goal in zip(ids, photos, goals, strict=True)
            for n in range(self.diverse)
        ]

    def check(self, request: CounterfactualRequest) -> CheckedPhoto:
        goal = request.target_class
        if goal is None:
            raise UserError(
                f"image {request.item.id!r} has no target: give --target, or a target column"
            )
        checked = super().check(request)
        if checked.photo.source_class == goal:
            raise UserError(
                f"image {request.item.id!r}: source and target are both "
                f"{self.classifier.classes[goal]!r}; name another target"
            )
        self._edited(request, checked.photo)  # raises where the prompts do not fit
        return checked

    @property
    def injected(self) -> Sequence[Schedule]:
        return self.settings.injection_fractions

    @property
    def tries(self) -> int:
        return len(self.settings.schedules()) if len(self.settings.schedules()) > 1 else 0

    def candidates(self, request: CounterfactualRequest, source: Source) -> list[Job]:
        *before, own = (self._starts(request, source, n) for n in range(request.variant + 1))
        results = self.engine.evaluate([jobs[0] for jobs in before])
        others = [result.initial_image for result in results if result.initial_image is not None]
        return apart(own, source.image, others, source.mask)

    def _starts(self, request: CounterfactualRequest, source: Source, variant: int) -> list[Job]:
        jobs = (self._job(request, source, *pair) for pair in self.settings.schedules())
        return [other_start(job, source.latent_mask, variant) for job in jobs]

    def _job(
        self, request: CounterfactualRequest, source: Source, injected: Schedule, blended: Schedule
    ) -> Job:
        photo, settings = source.photo, self.settings
        prompt = self._edited(request, photo)
        loss = ClassConfidence(
            self.classifier, request.target_class, form=settings.objective,
            cutouts=settings.cutouts, name="target_loss",
        )  # fmt: skip
        return self.edited_job(
            Edit(request, source, prompt, injected, blended),
            1 - source.latent_mask,
            loss,
            settings.engine_settings(),
            {CONFIDENCE: Confidence(self.classifier, request.target_class)},
        )

    @torch.no_grad()
    def explain(self, result: Result) -> CounterfactualRecord:
        edit: Edit = result.job.info
        source, photo, goal = edit.source, edit.source.photo, edit.request.target_class
        names, word = self.classifier.classes, self._word(goal)
        figures = {"caption": f"{photo.source} → {word}: the failed job left no image."}
        if result.image is not None:
            figures = self._figures(result.image.to(source.image), edit)
        return CounterfactualRecord.of(
            result,
            settings=self.run_settings,
            before=source.reconstruction,
            input_image=source.image,
            mask=source.mask,
            source=names[photo.source_class],
            target=names[goal],
            prompt=photo.prompt,
            edited_prompt=edit.prompt,
            input=edit.request.fingerprint,
            injection_fraction=self.fraction(edit.injected),
            blending_fraction=self.fraction(edit.blended),
            variant=edit.request.variant + 1,
            **figures,
        )

    def _figures(self, image, edit: Edit) -> dict:
        source, goal = edit.source, edit.request.target_class
        original, names, judge = source.image, self.classifier.classes, self.judge
        at_first, rebuilt, found = (
            self.classifier.probabilities(x[None])[0]
            for x in (original, source.reconstruction, image)
        )
        before, after = float(at_first[goal]), float(found[goal])
        # A photo that shows the target already cannot be turned into it: it is no flip, nor none.
        already = self.classifier.sees(at_first, goal)
        judged = agrees = None
        if judge is not None:
            sees = judge.probabilities(image[None])[0]
            judged = judge.classes[int(sees.argmax())]
            agrees = self._judge_agrees(sees, goal)
        return {
            "target_confidence_before": before,
            "target_confidence_reconstruction": float(rebuilt[goal]),
            "target_confidence": after,
            "prediction": names[int(found.argmax())],
            "flipped": None if already else self.classifier.sees(found, goal),
            "already_target": already,
            "judge_prediction": judged,
            "judge_agrees": agrees,
            "background_l1": masked_l1(image, original, 1 - source.mask),
            "foreground_l1": masked_l1(image, original, source.mask),
            "caption": (
                f"{source.photo.source} → {self._word(goal)}: {self.classifier.name}'s "
                f"confidence in {names[goal]} goes from {percent(before)} to {percent(after)}"
                + (f"; the judge, {judge.name}, sees {judged}." if judge else ".")
            ),
        }

    def _judge_agrees(self, judge_sees: Tensor, goal: int) -> bool:
        """Whether the judge sees the target, whatever it calls it."""
        judge = self.judge
        if judge.activation == "sigmoid":
            classes = [n for n in range(len(judge.classes)) if judge.sees(judge_sees, n)]
        else:
            classes = [int(judge_sees.argmax())]
        return any(same_class(self.classifier, goal, judge, n) for n in classes)

    def _word(self, index: int) -> str:
        return class_word(self.classifier, index)

    def _edited(self, request: CounterfactualRequest, photo: SourcePhoto) -> str:
        """The photo's prompt with the target in the place of the source."""
        item = request.item
        words = words_for(self.classifier, request.target_class, None)

        def use(word: str) -> str:
            edited = replace_phrase(photo.prompt, photo.source, word)
            token_mapping(self.model, photo.prompt, edited)
            return edited

        return first_that_fits([item.target_word or words[0], *words], use, "target_word")


def counterfactuals(
    engine: Engine,
    images: Images | ImageInput,
    classifier: Classifier,
    targets: str | int | Sequence[str | int] | None = None,
    *,
    settings: CounterfactualSettings | None = None,
    judge: Classifier | None = None,
    embedding: Classifier | None = None,
    diverse: int = 1,
    seed: int = 0,
    tools: PhotoTools = NO_TOOLS,
    skip: Collection[str] = (),
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[CounterfactualRecord]:
    """Shows what would have to change in photos for a classifier to see another class.

    Args:
        engine: what runs the jobs.
        images: files, folders, tables, PIL images, tensors (3, H, W) in [0, 1], or
            :class:`fastdigin.ImageInput` with prompts, source classes, targets and masks. Without a
            prompt it is "a photo of a {source}"; without a source it is what the classifier sees.
        classifier: its confidence in the target is raised.
        targets: a class name or index for all images, or one each; None takes those of the images.
        settings: how counterfactuals are made; None takes the defaults for the engine's model.
        judge: an independent classifier that is asked about the result, never optimised against.
        embedding: a network whose features ("activations") the regularisers of kind
            "features-cosine" and "features-l2" compare, such as :func:`fastdigin.load_embedding`.
        diverse: how many different counterfactuals of each image.
        seed: of the random crops, and of what makes ``diverse`` ones different.
        tools: what may help to prepare photos.
        skip: ids not to do again.
        on_progress: called with the share of one image's work that was just done.

    Returns:
        The records as they finish. One bad image among several yields failed ones.

    Raises:
        UserError: before any work, if nothing can be done.

    Example:
        >>> engine = fd.Engine(fd.LatentDiffusion.from_pretrained("embedded"))
        >>> robust = fd.Classifier.load("embedded:robust")
        >>> for r in fd.counterfactuals(engine, ["sneaker.png"], robust, "boot"):
        ...     print(r.target_confidence_before, r.target_confidence)
        ...     r.save("out")

    Source: DiG-IN (arXiv 2311.17833), section 4.2 and supplement C.
    """
    task = Counterfactuals(
        engine=engine, photos=as_inputs(images), classifier=classifier, target=targets,
        settings=settings, judge=judge, embedding=embedding, diverse=diverse, seed=seed,
        tools=tools,
    )  # fmt: skip
    return task.run(skip=skip, on_progress=on_progress)
