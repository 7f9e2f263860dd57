"""Synthetic neuron visualisation: an image that makes one neuron fire.

Words are tried with the diffusion model; the one whose samples activate the neuron most is the
start, and the activation is raised from there (DiG-IN, section 4.3). The words come from a list,
or from whatever names the objects in the neuron's most activating images.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fastdigin.configuration import check_settings, documented, setting
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job, Result, Settings
from fastdigin.engine.progress import EVALUATION, Told
from fastdigin.engine.queue import Stage
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.objectives import Cutouts, NeuronActivation
from fastdigin.photos import as_inputs, read_any_image
from fastdigin.results import NeuronRecord
from fastdigin.retrieval.activating import Activating, most_activating
from fastdigin.tasks.firing import check_fires, off_note
from fastdigin.tasks.generated import PROMPT_OF_A_WORD, generated_job, seed_of
from fastdigin.tasks.monitors import Activation
from fastdigin.tasks.task import Preparation, Request, Task, given

NameObjects = Callable[[int, Sequence[Tensor]], Sequence[str]]
"""(neuron, its most activating images, each (3, H, W)) -> words."""


@documented
@dataclass(frozen=True)
class NeuronSettings:
    """How neurons are visualised.

    Raises:
        UserError: a value that is out of its bounds, or a prompt without {}.

    Example:
        >>> replace(fd.NeuronVisualisations.default_settings(model), samples_per_word=8)
    """

    optimisation: Settings = setting(Settings, "the engine's settings", flat=True)
    direction: Literal["max", "min"] = setting(
        "max", "raise the activation, or lower it from the same start"
    )
    samples_per_word: int = setting(
        4, "images drawn per word in the search, with the same seeds for every word", least=1
    )
    prompt: str = setting(PROMPT_OF_A_WORD, "must contain {}, the word", metavar="TEXT")
    cutouts: Cutouts = setting(Cutouts, "random crops")

    def __post_init__(self) -> None:
        check_settings(self)
        if "{}" not in self.prompt:
            raise UserError(f"prompt {self.prompt!r} must contain {{}}, where the word goes")


# Chosen on neurons that no bench uses: at the paper's rate, which suits 512 px, activations were
# still rising at the end, and 15 updates at 0.12 make the pictures of 30 at 0.05.
EMBEDDED = NeuronSettings(
    optimisation=Settings(iterations=15, learning_rate=0.12, schedule="cosine")
)


KEPT = 1 / 4
LEAST_KEPT = 4
"""How many of its words a neuron tries again after their first samples: a quarter, or so many.

With 32 words and four samples, all 96 neurons of the packaged classifier keep the word that they
have when all samples of all words are drawn, at half of the work or less.
"""


@dataclass(frozen=True)
class VisualisationRequest(Request):
    """One image of a neuron. rank: of its start among the samples, 0 for the most activating."""

    neuron: int
    rank: int


@dataclass(frozen=True)
class Start:
    """What a job was made from: its ``info``. word: of the sample that it starts from."""

    neuron: int
    word: str


@documented
@dataclass(kw_only=True)
class NeuronVisualisations(Task):
    """Synthetic visualisations of neurons, as in :func:`fastdigin.visualise_neurons`.

    Raises:
        UserError: for a neuron that does not exist or is zero on all of a data set, and for an
            empty word list, before any work starts.

    Example:
        >>> task = fd.NeuronVisualisations(
        ...     engine=engine, classifier=spurious, neurons=[76], words=["grass"], dataset=found
        ... )
        >>> records = list(task.run())
    """

    name = "neurons"
    record_type = NeuronRecord
    settings_type = NeuronSettings
    embedded_settings = EMBEDDED

    classifier: Classifier = given(
        "the classifier of the neurons",
        kind="classifier",
        metavar="C",
        layer=True,
        optimised="activations",
    )
    neurons: list[int | str] = given(
        "numbers in the layer", kind="list", metavar="3,17", affects=False
    )
    dataset: Activating | Sequence[Tensor] = given(
        "the data set that neurons are compared with, of any size: files, folders with their "
        "subfolders, tables, data sets",
        kind="activating", flag="images", metavar="IMAGES", embedded="embedded:photos",
        affects=False,
    )  # fmt: skip
    words: Sequence[str] | NameObjects = given(
        "one word a line, to start from", kind="words", metavar="FILE"
    )
    per_neuron: int = given(
        "images per neuron", kind="count", default=1, metavar="N", affects=False
    )

    def prepare(self) -> None:
        numbers = (self.classifier.check_neuron(n) for n in self.neurons)
        self._neurons = list(dict.fromkeys(numbers))
        if not self._neurons:
            raise UserError("neurons is empty: name at least one")
        most = self.settings.samples_per_word
        if not 1 <= self.per_neuron <= most:
            raise UserError(
                f"images_per_neuron must lie in 1..{most} (samples_per_word), got {self.per_neuron}"
            )
        self._activating = self._known_activating()
        ranges = {n: self._activating.ranges[n] for n in self._neurons}
        self._maxima = {n: high for n, (_, high) in ranges.items()}
        check_fires(self.classifier, ranges, self._activating.seen, must=True)
        self._words = self._words_per_neuron()
        for word in {w for words in self._words.values() for w in words}:
            self.model.tokenize(self.settings.prompt.format(word))  # raises where it is too long
        self._table: dict[str, Tensor] = {}

    def measured(self) -> dict:
        return {"dataset": self._activating.fingerprint}

    def make_requests(self) -> list[VisualisationRequest]:
        direction = self.settings.direction
        return [
            VisualisationRequest(f"neuron-{neuron:04d}-{direction}-{rank:03d}", neuron, rank)
            for neuron in self._neurons
            for rank in range(self.per_neuron)
        ]

    def jobs(self, checked: Sequence[VisualisationRequest], width: int) -> list[Stage]:
        def parts(out_of_memory: bool) -> list[Stage]:
            if out_of_memory or len(checked) == 1:
                return []
            return [stage for one in checked for stage in self.jobs([one], width)]

        ids = [request.id for request in checked]
        return [Preparation(ids, partial(self.starts, checked), parts)]

    def preparation(self, requests: Sequence[VisualisationRequest]) -> float:
        words = {word for request in requests for word in self._words[request.neuron]}
        return len(words) * self.settings.samples_per_word * EVALUATION

    def starts(
        self, requests: Sequence[VisualisationRequest], advance: Callable[[float], None]
    ) -> list[Job]:
        """The jobs of some requests, after trying the words of their neurons.

        One sample of every word, and all of those that did best with it (successive halving).
        """
        neurons = list(dict.fromkeys(request.neuron for request in requests))
        words = list(dict.fromkeys(word for n in neurons for word in self._words[n]))
        words = [word for word in words if word not in self._table]
        rest = range(1, self.settings.samples_per_word)
        self._try(words, range(1), Told(advance, len(words) * EVALUATION, len(words)))
        best = dict.fromkeys(word for n in neurons for word in self._best_words(n))
        best = [word for word in best if len(self._table[word]) == 1]
        told = Told(advance, len(words) * len(rest) * EVALUATION, len(best) * len(rest))
        self._try(best, rest, told)
        told.end()  # as if all words had been tried
        jobs = []
        for request in requests:
            # The word with the highest MEAN activation; of its samples the highest first.
            tried = self._best_words(request.neuron)
            activations = {word: self._table[word][:, request.neuron] for word in tried}
            best = max(activations, key=lambda word: float(activations[word].mean()))
            order = activations[best].argsort(descending=True, stable=True)
            sample = int(order[request.rank])
            off = float(activations[best][sample]) == 0
            jobs.append(self._job(request, best, sample, off))
        return jobs

    def _best_words(self, neuron: int) -> list[str]:
        """Those of a neuron's words whose first samples activate it most, in their order."""
        words = self._words[neuron]
        first = torch.stack([self._table[word][0, neuron] for word in words])
        order = first.argsort(descending=True, stable=True)
        kept = max(LEAST_KEPT, math.ceil(KEPT * len(words)))
        return [words[i] for i in sorted(order[:kept].tolist())]

    @torch.no_grad()
    def _try(self, words: Sequence[str], numbers: range, told: Told) -> None:
        """Notes the activations (samples, neurons) of words' samples, the seeds the same.

        numbers: of the samples. A sample that fails counts as one that never fires.
        """
        settings, rows = self.settings, []
        samples = [(word, k) for word in words for k in numbers]
        for start in range(0, len(samples), self.engine.slots):
            part = samples[start : start + self.engine.slots]
            jobs = [
                generated_job(
                    self.model, id=f"{word}-{k}", prompt=settings.prompt.format(word),
                    losses=[NeuronActivation(self.classifier, 0)], settings=settings.optimisation,
                    seed=seed_of(self.seed, k),
                )
                for word, k in part
            ]  # fmt: skip
            rows += [self._activations(result) for result in self.engine.evaluate(jobs, told.add)]
        for n, word in enumerate(words):
            found = rows[n * len(numbers) : (n + 1) * len(numbers)]
            self._table[word] = torch.stack([*self._table.get(word, ()), *found])

    def _activations(self, result: Result) -> Tensor:
        if result.image is None:
            return torch.full((self.classifier.num_neurons,), -math.inf)
        image = result.image[None].to(self.classifier.device)
        return self.classifier.activations(image)[0].float().cpu()

    def _job(self, request: VisualisationRequest, word: str, sample: int, off: bool) -> Job:
        neuron, settings, top = request.neuron, self.settings, self._maxima[request.neuron]
        loss = NeuronActivation(
            self.classifier, neuron, maximise=settings.direction == "max",
            scale=top if top > 0 else 1.0, cutouts=settings.cutouts, name="neuron_loss",
            through_relu=off and settings.direction == "max",
        )  # fmt: skip
        return generated_job(
            self.model,
            id=request.id,
            prompt=settings.prompt.format(word),
            losses=[loss],
            settings=settings.optimisation,
            seed=seed_of(self.seed, sample),
            monitors={"activation": Activation(self.classifier, neuron)},
            info=Start(neuron, word),
        )

    @torch.no_grad()
    def explain(self, result: Result) -> NeuronRecord:
        start, direction = result.job.info, self.settings.direction
        neuron, top = start.neuron, self._maxima[start.neuron]
        figures = {"caption": f"Neuron {neuron}: the job failed."}
        if result.image is not None:
            on_this = self._activations(result)
            cross = {n: _ratio(float(on_this[n]), m) for n, m in self._maxima.items()}
            others = [value for n, value in cross.items() if n != neuron and value is not None]
            first, best = result.history[0], result.history[result.best_iteration]
            figures = {
                "activation_before": first["activation"],
                "activation": best["activation"],
                "cross_activations": cross,
                "max_other_activation": max(others, default=None),
                "caption": (
                    f"Neuron {neuron} of {self.classifier.name} ({direction}), started from "
                    f"“{start.word}”: from {first['activation']:.2f} to {best['activation']:.2f}; "
                    f"the data set's maximum is {top:.2f}."
                    + off_note(result.job.losses[0], first["activation"], best["activation"])
                ),
            }
        return NeuronRecord.of(
            result, settings=self.run_settings, before=result.initial_image, neuron=neuron,
            word=start.word, direction=direction, dataset_max_activation=top, **figures,
        )  # fmt: skip

    def _known_activating(self) -> Activating:
        if not isinstance(self.dataset, Activating):
            if not len(self.dataset):
                raise UserError("dataset is empty: neurons need images to be compared with")
            return most_activating(self.classifier, self._neurons, as_inputs(self.dataset))
        unknown = [neuron for neuron in self._neurons if neuron not in self.dataset.top]
        if unknown:
            raise UserError(
                f"dataset holds nothing of neuron {unknown[0]}: give most_activating the same "
                "neurons"
            )
        return self.dataset

    def _words_per_neuron(self) -> dict[int, list[str]]:
        if callable(self.words):
            top = self._activating.top
            images = {n: [read_any_image(photo) for _, photo in top[n]] for n in self._neurons}
            words = {n: list(dict.fromkeys(self.words(n, images[n]))) for n in self._neurons}
        else:
            words = dict.fromkeys(self._neurons, list(dict.fromkeys(self.words)))
        for neuron, found in words.items():
            if not found:
                raise UserError(f"words for neuron {neuron} are empty: give at least one word")
        return words


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
) -> Iterator[NeuronRecord]:
    """Generates images that make single neurons of a classifier fire.

    Args:
        engine, seed, skip, on_progress: as in :func:`fastdigin.counterfactuals`.
        classifier: whose neurons are meant: those before the head, or of ``at_layer``.
        neurons: numbers in that layer.
        words: a list tried for every neuron, or a callable (neuron, its most activating images of
            the dataset, each (3, H, W)) -> words, such as a captioning or ranking model.
        dataset: images (3, H, W) in [0, 1] that tell how strongly the neurons fire on real data, or
            what ``most_activating`` found for these neurons in any number of photos.
        images_per_neuron: started from different seeds, the most activating first; at most
            ``samples_per_word``.
        settings: how neurons are visualised; None takes the defaults for the engine's model.

    Returns:
        A record per neuron and image, as it finishes.

    Raises:
        UserError: before any work, for a neuron that does not exist or is zero on all of a data
            set of several images, and for an empty word list.

    Example:
        >>> photos = fd.photo_files(["embedded:photos"])
        >>> found = fd.most_activating(spurious, [76], photos)
        >>> for r in fd.visualise_neurons(engine, spurious, [76], ["grass", "brick"], found):
        ...     print(r.word, r.activation, r.dataset_max_activation)

    Source: DiG-IN (arXiv 2311.17833), section 4.3.
    """
    task = NeuronVisualisations(
        engine=engine, classifier=classifier,
        neurons=[neurons] if isinstance(neurons, (int, str)) else list(neurons), words=words,
        dataset=dataset, per_neuron=images_per_neuron, settings=settings, seed=seed,
    )  # fmt: skip
    return task.run(skip=skip, on_progress=on_progress)


def _ratio(value: float, top: float) -> float | None:
    return value / top if top > 0 and math.isfinite(value) else None
