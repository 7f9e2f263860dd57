"""Universal visual counterfactuals: what would have to change for the classifier to say TARGET?

A photo is inverted, the source word of its prompt is replaced by the target, the gentlest
prompt-to-prompt schedule that already helps is searched, and the classifier's confidence in the
target is raised while the background is kept (DiG-IN, section 4.2 and supplement C).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from fastdigin.editing.masks import blending
from fastdigin.editing.prompts import replace_phrase, token_mapping
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job, Result, Settings
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.objectives import ClassConfidence, Cutouts
from fastdigin.objectives.classification import FORMS
from fastdigin.storage import fingerprint
from fastdigin.tasks.defaults import fitted
from fastdigin.tasks.explanation import Explanation, explain, masked_l1, plain
from fastdigin.tasks.inputs import (
    ImageInput,
    Images,
    as_inputs,
    distinct,
    one_each,
)
from fastdigin.tasks.monitors import Confidence
from fastdigin.tasks.photo_run import run_photo_jobs
from fastdigin.tasks.regularisers import Regulariser, check_regularisers, losses_of
from fastdigin.tasks.search import best_candidates
from fastdigin.tasks.sources import (
    NO_TOOLS,
    PhotoSettings,
    PhotoTools,
    Source,
    SourcePhoto,
    check_photo,
    edited_start,
    prepare,
)
from fastdigin.tasks.words import class_word

TASK = "counterfactual"
CONFIDENCE = "target_confidence"
"""The monitor of every job: the classifier's confidence in the target, on the plain image."""


@dataclass(frozen=True)
class CounterfactualSettings(PhotoSettings):
    """How counterfactuals are made.

    injection_fractions x blending_fractions: the candidates of the schedule search; the first
        are the fractions of the steps that attend as the source did, the second those whose
        background is taken from the source.
    objective: "log_conf" (the paper's), "conf" or "logits". regularisers: what keeps the result
        near the photo; the paper's hold the background.
    """

    injection_fractions: tuple[float, ...] = (0.3, 0.4, 0.5)
    blending_fractions: tuple[float, ...] = (0.0, 0.3)
    objective: Literal["conf", "log_conf", "logits"] = "log_conf"
    regularisers: tuple[Regulariser, ...] = (
        Regulariser("latents-l2", "background", 25.0),
        Regulariser("pixels-l2", "background", 250.0),
    )
    cutouts: Cutouts = dataclasses.field(default_factory=Cutouts)

    def __post_init__(self) -> None:
        if self.objective not in FORMS:
            raise UserError(f"objective must be one of {', '.join(FORMS)}, got {self.objective!r}")
        for name in ("injection_fractions", "blending_fractions"):
            fractions = getattr(self, name)
            if not fractions or not all(0 <= f <= 1 for f in fractions):
                raise UserError(f"{name} must be some numbers from 0 to 1, got {fractions!r}")


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
class _Request:
    id: str
    photo: SourcePhoto
    source_class: int
    target_class: int
    target_word: str


def counterfactuals(
    engine: Engine,
    images: Images,
    classifier: Classifier,
    targets: str | int | Sequence[str | int] | None = None,
    *,
    settings: CounterfactualSettings | None = None,
    judge: Classifier | None = None,
    seed: int = 0,
    tools: PhotoTools = NO_TOOLS,
    skip: Collection[str] = (),
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[Explanation]:
    """An Explanation per image, as it finishes.

    images: files, folders, tensors (3, H, W) in [0, 1], or ImageInputs with prompts, source
        classes, targets and masks. Without a prompt it is "a photo of a {source}"; without a
        source it is what the classifier sees.
    targets: one class for all images or one each; None takes those of the ImageInputs.
    judge: an independent classifier that is asked about the result, never optimised against.
    tools: what may help to prepare photos. skip: ids not to do again.
    on_progress: called with the share of one image's work that was just done.
    Raises UserError before any work if nothing can be done; one bad image among several yields a
    failed Explanation.
    """
    settings = settings or default_settings(engine.model)
    for network in filter(None, (classifier, judge)):
        network.to(engine.model.device)
    check_regularisers(settings.regularisers, engine.model.device)
    described = run_settings(engine.model, settings, classifier, judge, seed, tools)
    engine.model.ddim_table(settings.optimisation.steps)  # raises where there are too many
    inputs = _with_targets(as_inputs(images), targets)
    plans = list(zip(job_ids(inputs, classifier), inputs, strict=True))

    return run_photo_jobs(
        engine, TASK, plans, lambda plan: _check(engine, *plan, classifier),
        partial(_jobs, engine, classifier=classifier, settings=settings, seed=seed,
                tools=tools),
        partial(_explain, classifier=classifier, judge=judge, described=described),
        described, skip=skip, on_progress=on_progress,
    )  # fmt: skip


def default_settings(model: LatentDiffusion) -> CounterfactualSettings:
    """The paper's, with the model's usual steps and guidance; the embedded model has its own."""
    return EMBEDDED if model.name == "embedded" else fitted(CounterfactualSettings(), model)


def run_settings(
    model: LatentDiffusion,
    settings: CounterfactualSettings,
    classifier: Classifier,
    judge: Classifier | None,
    seed: int,
    tools: PhotoTools = NO_TOOLS,
) -> dict[str, Any]:
    """Whatever decides the results, as plain values for run.json."""
    return plain(settings) | tools.described() | {
        "model": model.name,
        "classifier": classifier.name,
        "classes": fingerprint(classifier.classes),  # a zero-shot classifier's are the user's
        "judge": judge.name if judge else None,
        "seed": seed,
    }


def job_ids(inputs: Sequence[ImageInput], classifier: Classifier) -> list[str]:
    """One id per input, "IMAGE-to-TARGET". UserError for a target that is not a class."""
    return distinct(
        item.id if item.target is None else f"{item.id}-to-{_target_word(classifier, item.target)}"
        for item in inputs
    )


def _target_word(classifier: Classifier, target: str | int) -> str:
    return class_word(classifier, classifier.class_index(target)).replace(" ", "_")


def _with_targets(inputs: list[ImageInput], targets) -> list[ImageInput]:
    """Inputs with ``targets`` filled in."""
    if targets is None:
        return inputs
    targets = one_each(targets, "targets", len(inputs))
    return [replace(item, target=t) for item, t in zip(inputs, targets, strict=True)]


def _check(engine: Engine, id: str, item: ImageInput, classifier: Classifier) -> _Request:
    if item.target is None:
        raise UserError(f"image {item.id!r} has no target: give --target, or a target column")
    goal = classifier.class_index(item.target)
    photo, source = check_photo(engine.model, classifier, item)
    if source == goal:
        raise UserError(
            f"image {item.id!r}: source and target are both {classifier.classes[goal]!r}; "
            "name another target"
        )
    target_word = class_word(classifier, goal)
    edited = replace_phrase(photo.prompt, photo.source, target_word)
    token_mapping(engine.model, photo.prompt, edited)  # raises where the prompts do not fit
    return _Request(id, photo, source, goal, target_word)


def _jobs(engine, requests, *, classifier, settings, seed, tools, batch, on_step):
    """Inverts at most ``batch`` photos and returns the best candidate job of each."""
    sources = prepare(
        engine,
        [r.photo for r in requests],
        settings.inversion(),
        max(settings.injection_fractions),
        tools=tools,
        batch=batch,
        on_step=on_step,
    )
    schedules = _schedules(settings)
    return best_candidates(
        engine,
        [
            [_job(engine, request, source, classifier, settings, seed, *s) for s in schedules]
            for request, source in zip(requests, sources, strict=True)
        ],
    )


def _schedules(settings: CounterfactualSettings) -> list[tuple[float, float]]:
    """(injection, blending) fractions, only the first of those that come to the same steps."""
    steps, different = settings.optimisation.steps, {}
    for pair in itertools.product(settings.injection_fractions, settings.blending_fractions):
        counts = tuple(sum(i / steps < fraction for i in range(steps)) for fraction in pair)
        different.setdefault(counts, pair)
    return list(different.values())


def _job(engine, request: _Request, source: Source, classifier, settings, seed, injected, blended):
    model, photo, inversion = engine.model, source.photo, source.inversion
    prompt = replace_phrase(photo.prompt, photo.source, request.target_word)
    steps = settings.optimisation.steps
    losses = [
        ClassConfidence(
            classifier, request.target_class, form=settings.objective, cutouts=settings.cutouts,
            name="target_loss",
        )
    ]  # fmt: skip
    losses += losses_of(settings.regularisers, source)
    mapping = token_mapping(model, photo.prompt, prompt).to(model.device, model.dtype)
    return Job(
        id=request.id,
        **edited_start(model, prompt, inversion),
        losses=losses,
        settings=settings.optimisation,
        seed=seed,
        injection=source.attention.injection(mapping, injected, steps) if injected else None,
        blending=blending(1 - source.latent_mask, inversion.trajectory, blended)
        if blended
        else None,
        monitors={CONFIDENCE: Confidence(classifier, request.target_class)},
        info={"request": request, "source": source, "prompt": prompt,
              "injection": injected, "blending": blended},
    )  # fmt: skip


@torch.no_grad()
def _explain(result: Result, *, classifier: Classifier, judge, described) -> Explanation:
    info = result.job.info
    request, source = info["request"], info["source"]
    photo, names = source.photo, classifier.classes
    original = source.image
    record: dict[str, Any] = {
        "source": names[request.source_class],
        "target": names[request.target_class],
        "prompt": photo.prompt,
        "input": photo.fingerprint,
        "edited_prompt": info["prompt"],
        "injection_fraction": info["injection"],
        "blending_fraction": info["blending"],
        "caption": f"{photo.source} → {request.target_word}: the failed job left no image.",
    }
    if result.image is not None:
        image = result.image.to(original)
        before = float(classifier.probabilities(original[None])[0, request.target_class])
        probabilities = classifier.probabilities(image[None])[0]
        after = float(probabilities[request.target_class])
        judged = judge.classes[int(judge.probabilities(image[None]).argmax())] if judge else None
        record |= {
            "target_confidence_before": before,
            "target_confidence": after,
            "prediction": names[int(probabilities.argmax())],
            "flipped": int(probabilities.argmax()) == request.target_class,
            "judge_prediction": judged,
            "background_l1": masked_l1(image, original, 1 - source.mask),
            "foreground_l1": masked_l1(image, original, source.mask),
            "caption": (
                f"{photo.source} → {request.target_word}: {classifier.name}'s confidence in "
                f"{names[request.target_class]} goes from {before:.0%} to {after:.0%}"
                + (f"; the judge, {judge.name}, sees {judged}." if judge else ".")
            ),
        }
    return explain(TASK, result, described, record, before=source.reconstruction,
                   input_image=source.image, mask=source.mask)  # fmt: skip
