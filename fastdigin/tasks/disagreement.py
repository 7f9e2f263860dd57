"""Classifier disagreement: images of a class that f is sure of and g denies.

Starting from a sample of "a photo of a {class}", f's confidence in the class is raised and g's
lowered (DiG-IN, section 4.1). What changes is what only one of them relies on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job, Result, Settings
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.objectives import ClassConfidence, Cutouts
from fastdigin.objectives.classification import FORMS
from fastdigin.storage import fingerprint
from fastdigin.tasks.defaults import fitted
from fastdigin.tasks.explanation import Explanation, explain, plain
from fastdigin.tasks.generated import generated_job, seed_of
from fastdigin.tasks.monitors import Confidence
from fastdigin.tasks.search import best_candidates
from fastdigin.tasks.sources import PROMPT
from fastdigin.tasks.words import class_word, same_classes

TASK = "disagreement"


@dataclass(frozen=True)
class DisagreementSettings:
    """How disagreements are made.

    objective: what is raised for f and lowered for g: "conf" (the paper's), "log_conf" or
        "logits" (the margin over the largest other class). f_weight: of f's loss beside g's.
    prompt: must contain ``{}``, the class. draws: samples among which the one with the smallest
        plain loss is the start. (An addition to the paper, which starts from one.)
    """

    optimisation: Settings = dataclasses.field(default_factory=Settings)
    objective: Literal["conf", "log_conf", "logits"] = "conf"
    f_weight: float = 1.0
    prompt: str = PROMPT
    draws: int = 1
    cutouts: Cutouts = dataclasses.field(default_factory=Cutouts)

    def __post_init__(self) -> None:
        if self.objective not in FORMS:
            raise UserError(f"objective must be one of {', '.join(FORMS)}, got {self.objective!r}")
        if "{}" not in self.prompt:
            raise UserError(f"prompt {self.prompt!r} must contain {{}}, where the class name goes")
        if self.draws < 1:
            raise UserError(f"draws must be at least 1, got {self.draws}")
        if not 0 < self.f_weight < math.inf:
            raise UserError(f"f_weight must be a positive number, got {self.f_weight}")


# Chosen by eye and by figures on seeds that no bench uses. At the paper's rates f and g hardly part
# within 20 iterations; "conf" has no gradient left where g is sure; without its weight f gives way
# while g is lowered; and from one draw in three g cannot be turned without spoiling the garment.
EMBEDDED = DisagreementSettings(
    optimisation=Settings(iterations=50, learning_rate=0.05, schedule="cosine"),
    objective="log_conf",
    f_weight=3.0,
    draws=24,
)


def disagreements(
    engine: Engine,
    f: Classifier,
    g: Classifier,
    classes: str | int | Sequence[str | int],
    *,
    seeds: int = 1,
    settings: DisagreementSettings | None = None,
    seed: int = 0,
    skip: Collection[str] = (),
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[Explanation]:
    """An Explanation per class and seed, as it finishes.

    f, g: any two classifiers that both know the classes (a zero-shot one included). classes:
        names, or indices of f; one or several. seeds: images per class. skip: ids not to do again.
    on_progress: called with the share of one image's work that was just done.
    Raises UserError before any work for a class that f or g does not know.
    """
    settings = settings or default_settings(engine.model)
    if seeds < 1:
        raise UserError(f"seeds must be at least 1, got {seeds}")
    classes = [classes] if isinstance(classes, (str, int)) else classes
    if not len(classes):
        raise UserError("classes is empty: name at least one class")
    engine.model.ddim_table(settings.optimisation.steps)  # raises where there are too many
    for network in (f, g):
        network.to(engine.model.device)
    pairs = _class_pairs(f, g, classes)
    for index, _ in pairs:
        engine.model.tokenize(settings.prompt.format(class_word(f, index)))
    described = run_settings(engine.model, settings, f, g, seed)
    wanted = [
        (pair, n)
        for pair in pairs
        for n in range(seeds)
        if job_id(class_word(f, pair[0]), n) not in skip
    ]
    jobs = _starts(engine, f, g, wanted, settings, seed)
    share = 1 / (settings.optimisation.iterations + 1)
    advance = on_progress and (lambda count: on_progress(share * count))
    results = engine.run(jobs, advance)
    return (_explain(result, f, g, described) for result in results)


def default_settings(model: LatentDiffusion) -> DisagreementSettings:
    """The paper's, with the model's usual steps and guidance; the embedded model has its own."""
    return EMBEDDED if model.name == "embedded" else fitted(DisagreementSettings(), model)


def run_settings(
    model: LatentDiffusion, settings: DisagreementSettings, f: Classifier, g: Classifier, seed: int
) -> dict[str, Any]:
    """Whatever decides the results, as plain values for run.json."""
    return plain(settings) | {
        "model": model.name,
        "f": f.name,
        "g": g.name,
        "classes": fingerprint(f.classes, g.classes),  # a zero-shot classifier's are the user's
        "seed": seed,
    }


def job_ids(f: Classifier, g: Classifier, classes: Sequence[str | int], seeds: int) -> list[str]:
    """The ids of all jobs, in their order."""
    words = [class_word(f, index) for index, _ in _class_pairs(f, g, classes)]
    return [job_id(word, number) for word in words for number in range(seeds)]


def job_id(word: str, number: int) -> str:
    """The id of the ``number``-th image of a class."""
    return f"{word.replace(' ', '_')}-{number:03d}"


def _class_pairs(f: Classifier, g: Classifier, names: Sequence[str | int]) -> list[tuple[int, int]]:
    """(f's index, g's index) of each class, once."""
    return list(dict.fromkeys(_class_pair(f, g, name) for name in names))


def _class_pair(f: Classifier, g: Classifier, name: str | int) -> tuple[int, int]:
    index = f.class_index(name)
    same = same_classes(f, g)
    return index, index if same else g.class_index(class_word(f, index))


def _starts(engine, f, g, wanted, settings, seed) -> Iterator[Job]:
    """The best draw of each wanted (pair, number); as many are drawn at a time as run at once."""
    for first in range(0, len(wanted), engine.slots):
        yield from best_candidates(
            engine,
            [
                [
                    _job(engine, f, g, pair, settings, seed_of(seed, n, draw), n)
                    for draw in range(settings.draws)
                ]
                for pair, n in wanted[first : first + engine.slots]
            ],
        )


def _job(engine, f, g, pair, settings, seed, number) -> Job:
    word = class_word(f, pair[0])
    common = {"form": settings.objective, "cutouts": settings.cutouts}
    return generated_job(
        engine.model,
        id=job_id(word, number),
        prompt=settings.prompt.format(word),
        losses=[
            ClassConfidence(
                f, pair[0], **common, maximise=True, weight=settings.f_weight, name="f_loss"
            ),
            ClassConfidence(g, pair[1], **common, maximise=False, name="g_loss"),
        ],
        settings=settings.optimisation,
        seed=seed,
        monitors={
            "f_confidence": Confidence(f, pair[0]),
            "g_confidence": Confidence(g, pair[1]),
        },
        info={"class": word, "pair": pair},
    )


@torch.no_grad()
def _explain(result: Result, f: Classifier, g: Classifier, described) -> Explanation:
    word = result.job.info["class"]
    record: dict[str, Any] = {"class": word, "caption": f"{word}: the job failed."}
    if result.image is not None:
        first, best = result.history[0], result.history[result.best_iteration]
        image = result.image[None]
        g_sees = g.classes[int(g.logits(image.to(g.device)).argmax())]
        record |= {
            "f_confidence_before": first["f_confidence"],
            "g_confidence_before": first["g_confidence"],
            "f_confidence": best["f_confidence"],
            "g_confidence": best["g_confidence"],
            "g_prediction": g_sees,
            "caption": (
                f"A {word} for {f.name} ({best['f_confidence']:.0%}); {g.name} gives it "
                f"{best['g_confidence']:.0%} and sees {g_sees}."
            ),
        }
    return explain(TASK, result, described, record, before=result.initial_image)
