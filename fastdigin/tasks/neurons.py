"""Synthetic neuron visualisation: an image that makes one neuron fire.

Words are tried with the diffusion model; the one whose samples activate the neuron most is the
start, and the activation is raised from there (DiG-IN, section 4.3). The words come from a list,
or from whatever names the objects in the neuron's most activating images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job, Result, Settings
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.objectives import Cutouts, NeuronActivation
from fastdigin.retrieval.activating import Activating, most_activating
from fastdigin.storage import fingerprint
from fastdigin.tasks.defaults import fitted
from fastdigin.tasks.explanation import Explanation, explain, plain
from fastdigin.tasks.firing import check_fires
from fastdigin.tasks.generated import generated_job, seed_of
from fastdigin.tasks.inputs import as_inputs, read_any_image
from fastdigin.tasks.monitors import Activation
from fastdigin.tasks.sources import PROMPT

TASK = "neurons"

NameObjects = Callable[[int, Sequence[Tensor]], Sequence[str]]


@dataclass(frozen=True)
class NeuronSettings:
    """How neurons are visualised.

    direction: "max", or "min" to lower the activation from the same start.
    samples_per_word: images drawn per word in the search, with the same seeds for every word.
    prompt: must contain ``{}``, the word.
    """

    optimisation: Settings = dataclasses.field(default_factory=Settings)
    direction: Literal["max", "min"] = "max"
    samples_per_word: int = 4
    prompt: str = PROMPT
    cutouts: Cutouts = dataclasses.field(default_factory=Cutouts)

    def __post_init__(self) -> None:
        if self.direction not in ("max", "min"):
            raise UserError(f"direction must be max or min, got {self.direction!r}")
        if self.samples_per_word < 1:
            raise UserError(f"samples_per_word must be at least 1, got {self.samples_per_word}")
        if "{}" not in self.prompt:
            raise UserError(f"prompt {self.prompt!r} must contain {{}}, where the word goes")


# Chosen on neurons that no bench uses: at the paper's rate, which suits 512 px, activations were
# still rising at the end.
EMBEDDED = NeuronSettings(
    optimisation=Settings(iterations=30, learning_rate=0.05, schedule="cosine")
)


def visualise_neurons(
    engine: Engine,
    classifier: Classifier,
    neurons: int | Sequence[int],
    words: Sequence[str] | NameObjects,
    dataset: Sequence[Tensor] | Activating,
    *,
    images_per_neuron: int = 1,
    settings: NeuronSettings | None = None,
    seed: int = 0,
    skip: Collection[str] = (),
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[Explanation]:
    """An Explanation per neuron and image, as it finishes.

    words: a list tried for every neuron, or a callable (neuron, its most activating images of
        the dataset, each (3, H, W)) -> words, such as a captioning or ranking model.
    dataset: images (3, H, W) in [0, 1] that tell how strongly the neuron fires on real data, or
        what ``most_activating`` found for these neurons in any number of photos.
    images_per_neuron: started from different seeds, the most activating first; at most
        ``samples_per_word``. skip: ids not to do again.
    on_progress: called with the share of one image's work that was just done.
    Raises UserError before any work for a neuron that does not exist or does not fire on the data
    set, and for an empty word list.
    """
    settings = settings or default_settings(engine.model)
    neurons = [neurons] if isinstance(neurons, (int, str)) else neurons
    neurons = list(dict.fromkeys(classifier.check_neuron(n) for n in neurons))
    if not neurons:
        raise UserError("neurons is empty: name at least one")
    if not 1 <= images_per_neuron <= settings.samples_per_word:
        raise UserError(
            f"images_per_neuron must lie in 1..{settings.samples_per_word} (samples_per_word), "
            f"got {images_per_neuron}"
        )
    engine.model.ddim_table(settings.optimisation.steps)  # raises where there are too many
    classifier.to(engine.model.device)
    activating = _activating(classifier, neurons, dataset)
    ranges = {n: activating.ranges[n] for n in neurons}
    maxima = {n: high for n, (_, high) in ranges.items()}
    check_fires(classifier, ranges, activating.seen, must=True)
    chosen_words = _words_per_neuron(words, neurons, activating)
    for word in {w for list_ in chosen_words.values() for w in list_}:
        engine.model.tokenize(settings.prompt.format(word))
    described = run_settings(engine.model, settings, classifier, words, dataset, seed)
    ids = {
        neuron: {k: id for k in range(images_per_neuron)
                 if (id := job_id(neuron, settings.direction, k)) not in skip}
        for neuron in neurons
    }  # fmt: skip
    open_neurons = [neuron for neuron in neurons if ids[neuron]]
    open_words = list(dict.fromkeys(word for n in open_neurons for word in chosen_words[n]))
    # One sample of the search is a forward pass, about a third of an iteration.
    iterations = settings.optimisation.iterations + 1
    open_jobs = sum(len(ids[n]) for n in open_neurons)
    work = open_jobs * iterations + len(open_words) * settings.samples_per_word / 3
    advance = on_progress and (lambda count: on_progress(count * open_jobs / work))

    def jobs() -> Iterator[Job]:
        table = _search(engine, classifier, open_words, settings, seed, advance)
        starts = {
            n: _starts(table, n, [open_words.index(w) for w in chosen_words[n]])
            for n in open_neurons
        }
        for neuron in open_neurons:
            for rank, id in ids[neuron].items():
                word, sample = starts[neuron][rank]
                yield _job(engine, classifier, neuron, open_words[word], seed_of(seed, sample),
                           maxima, settings, id)  # fmt: skip

    results = engine.run(jobs(), advance)
    return (_explain(result, classifier, maxima, described) for result in results)


def default_settings(model: LatentDiffusion) -> NeuronSettings:
    """The paper's, with the model's usual steps and guidance; the embedded model has its own."""
    return EMBEDDED if model.name == "embedded" else fitted(NeuronSettings(), model)


def run_settings(
    model: LatentDiffusion,
    settings: NeuronSettings,
    classifier: Classifier,
    words: Sequence[str] | NameObjects,
    dataset: Sequence[Tensor] | Activating,
    seed: int,
) -> dict[str, Any]:
    """Whatever decides the results, as plain values for run.json."""
    named = getattr(words, "__name__", str(words)) if callable(words) else list(words)
    known = isinstance(dataset, Activating)
    return plain(settings) | {
        "model": model.name,
        "classifier": classifier.name,
        "layer": classifier.layer,
        "words": named,
        "dataset": dataset.fingerprint if known else fingerprint(*dataset),
        "seed": seed,
    }


def job_id(neuron: int, direction: str, rank: int) -> str:
    """The id of the ``rank``-th image of a neuron."""
    return f"neuron-{neuron:04d}-{direction}-{rank:03d}"


def _activating(
    classifier: Classifier, neurons: list[int], dataset: Sequence[Tensor] | Activating
) -> Activating:
    if isinstance(dataset, Activating):
        unknown = [neuron for neuron in neurons if neuron not in dataset.top]
        if unknown:
            raise UserError(
                f"dataset holds nothing of neuron {unknown[0]}: give most_activating the same "
                "neurons"
            )
        return dataset
    if not len(dataset):
        raise UserError("dataset is empty: neurons need images to be compared with")
    return most_activating(classifier, neurons, as_inputs(dataset))


def _words_per_neuron(words, neurons: list[int], activating: Activating) -> dict[int, list[str]]:
    if callable(words):
        top = {n: [read_any_image(photo) for _, photo in activating.top[n]] for n in neurons}
        chosen = {n: list(dict.fromkeys(words(n, top[n]))) for n in neurons}
    else:
        chosen = dict.fromkeys(neurons, list(dict.fromkeys(words)))
    for neuron, list_ in chosen.items():
        if not list_:
            raise UserError(f"words for neuron {neuron} are empty: give at least one word")
    return chosen


@torch.no_grad()
def _search(engine, classifier, words, settings, seed, advance) -> Tensor:
    """(words, samples, neurons) activations on samples of every word, with the same seeds for all.

    A sample that fails counts as one that never fires. advance: called with the share of an
    iteration's work that was just done.
    """
    numbers = range(settings.samples_per_word)
    samples = [(word, k) for word in words for k in numbers]
    rows = []
    for start in range(0, len(samples), engine.slots):
        part = samples[start : start + engine.slots]
        results = engine.evaluate(
            generated_job(
                engine.model, id=f"{word}-{k}", prompt=settings.prompt.format(word),
                losses=[NeuronActivation(classifier, 0)], settings=settings.optimisation,
                seed=seed_of(seed, k), monitors={}, info={},
            )
            for word, k in part
        )  # fmt: skip
        for result in results:
            if result.image is None:
                rows.append(torch.full((classifier.num_neurons,), -math.inf))
            else:
                image = result.image[None].to(classifier.device)
                rows.append(classifier.activations(image)[0].float().cpu())
        if advance is not None:
            advance(len(part) / 3)
    return torch.stack(rows).unflatten(0, (-1, len(numbers))) if rows else torch.empty(0, 0, 0)


def _starts(table: Tensor, neuron: int, words: list[int]) -> list[tuple[int, int]]:
    """(word, sample) pairs of the word with the highest MEAN activation, the highest first."""
    best = max(words, key=lambda w: float(table[w, :, neuron].mean()))
    order = table[best, :, neuron].argsort(descending=True, stable=True)
    return [(best, int(k)) for k in order]


def _job(engine, classifier, neuron, word, start_seed, maxima, settings, id) -> Job:
    loss = NeuronActivation(
        classifier,
        neuron,
        maximise=settings.direction == "max",
        scale=maxima[neuron] if maxima[neuron] > 0 else 1.0,
        cutouts=settings.cutouts,
        name="neuron_loss",
    )
    return generated_job(
        engine.model,
        id=id,
        prompt=settings.prompt.format(word),
        losses=[loss],
        settings=settings.optimisation,
        seed=start_seed,
        monitors={"activation": Activation(classifier, neuron)},
        info={"neuron": neuron, "word": word, "direction": settings.direction},
    )


@torch.no_grad()
def _explain(result: Result, classifier, maxima: dict[int, float], described) -> Explanation:
    info = result.job.info
    neuron, word, direction = info["neuron"], info["word"], info["direction"]
    record: dict[str, Any] = {
        "neuron": neuron,
        "word": word,
        "direction": direction,
        "dataset_max_activation": maxima[neuron],
        "caption": f"Neuron {neuron}: the job failed.",
    }
    if result.image is not None:
        image = result.image[None].to(classifier.device)
        on_this = classifier.activations(image)[0]
        cross = {n: _ratio(float(on_this[n]), top) for n, top in maxima.items()}
        others = [value for n, value in cross.items() if n != neuron and value is not None]
        first, best = result.history[0], result.history[result.best_iteration]
        record |= {
            "activation_before": first["activation"],
            "activation": best["activation"],
            "cross_activations": cross,
            "max_other_activation": max(others, default=None),
            "caption": (
                f"Neuron {neuron} of {classifier.name} ({direction}), started from “{word}”: from "
                f"{first['activation']:.2f} to {best['activation']:.2f}; the data set's maximum "
                f"is {maxima[neuron]:.2f}."
            ),
        }
    return explain(TASK, result, described, record, before=result.initial_image)


def _ratio(value: float, top: float) -> float | None:
    return value / top if top > 0 and math.isfinite(value) else None
