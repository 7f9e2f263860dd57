"""The methods that are tasks of the engine: its defaults, the published settings, parts of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdigin import embedded
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Settings
from fastdigin.models.classifier import Classifier
from fastdigin.presets import load_algorithm
from fastdigin.results.pictures import read_picture
from fastdigin.tasks.counterfactual import Counterfactuals, CounterfactualSettings
from fastdigin.tasks.neuron_counterfactual import NeuronCounterfactuals
from fastdigin.tasks.task import Task
from fastdigin_bench.methods.asked import Asked, AskedNeuron
from fastdigin_bench.text_jobs import none_failed


@dataclass(frozen=True)
class ByCounterfactuals:
    """change: what becomes of the model's default settings."""

    name: str
    change: Callable[[CounterfactualSettings], CounterfactualSettings]

    def settings(self, engine: Engine) -> CounterfactualSettings:
        return self.change(Counterfactuals.default_settings(engine.model))

    def __call__(self, engine: Engine, classifier: Classifier, asked: Sequence[Asked]) -> Tensor:
        photos = [one.item for one in asked]
        return images_of(
            Counterfactuals(
                engine=engine, photos=photos, classifier=classifier, settings=self.settings(engine)
            )
        )


@dataclass(frozen=True)
class ByNeuronCounterfactuals:
    """The engine's neuron counterfactuals with its default settings."""

    name: str = "fastdigin"

    def __call__(
        self, engine: Engine, classifier: Classifier, asked: Sequence[AskedNeuron]
    ) -> Tensor:
        return images_of(
            NeuronCounterfactuals(
                engine=engine,
                photos=[one.item for one in asked],
                classifier=classifier,
                neuron=[one.neuron for one in asked],
                direction=[one.direction for one in asked],
                dataset=[read_picture(photo.path) for photo in embedded.photos()],
            )
        )


def images_of(task: Task) -> Tensor:
    """(B, 3, H, W), what the task makes of its requests, in their order.

    Raises RuntimeError where a job failed: then there is nothing to compare.
    """
    records = {record.id: record for record in none_failed(task.run())}
    return torch.stack([records[request.id].image for request in task.requests])


def published(settings: CounterfactualSettings) -> CounterfactualSettings:
    """The paper's settings (section 4.2, supplement B and C) by the published algorithm."""
    paper = replace(CounterfactualSettings(), optimisation=Settings())
    return load_algorithm("exact").of(paper)


def prompt_to_prompt(settings: CounterfactualSettings) -> CounterfactualSettings:
    """Null-text inversion and one schedule of injected attention; the classifier has no say.

    Source: Hertz et al. 2022 (arXiv 2208.01626), word swap; Mokady et al. 2023 (arXiv 2211.09794).
    Simplified: cross-attention alone is injected, without a local blend.
    """
    return replace(
        load_algorithm("exact").of(settings),
        optimisation=replace(settings.optimisation, iterations=0),
        injection_fractions=(0.3,), blending_fractions=(0.0,),
    )  # fmt: skip


DEFAULT = ByCounterfactuals("fastdigin", lambda settings: settings)
FAST = ByCounterfactuals("fastdigin --preset fast", load_algorithm("fast").of)
PUBLISHED = ByCounterfactuals("published DiG-IN", published)
PROMPT_TO_PROMPT = ByCounterfactuals("prompt-to-prompt", prompt_to_prompt)
