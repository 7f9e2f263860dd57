"""What goes into the engine and what comes out: Job, Settings, Result.

A Job is one image's optimisation, complete in itself. Latents are (C, h, w), text embeddings
(L, D) or one per timestep (T, L, D), images (3, H, W) in [0, 1], masks (H, W) or (h, w) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.models.attention import SourceAttention

VARIABLES = ("latents", "conditioning", "null_text")


@dataclass(frozen=True)
class Candidate:
    """What a loss sees: one predicted x0.

    image: (3, H, W) in [0, 1], decoded from ``latents`` (C, h, w).
    key: (job seed, iteration, loss step), from which random augmentations are drawn, so that
        batching and recomputation cannot change them. None asks for the plain image.
    """

    image: Tensor
    latents: Tensor
    key: tuple[int, int, int] | None = None


class Loss(Protocol):
    """One term of the objective; the engine minimises the sum of weight * loss."""

    name: str
    weight: float

    def __call__(self, candidate: Candidate) -> Tensor:
        """The unweighted scalar."""


@dataclass(frozen=True)
class EarlyStop:
    """Ends a job when a figure was good enough ``held_for`` times in a row.

    of: "total", or the name of one of the job's losses (unweighted) or monitors, all of the plain
        image. Good enough is smaller than ``below`` or greater than ``above``; give one.
    """

    below: float | None = None
    above: float | None = None
    of: str = "total"
    held_for: int = 1

    def __post_init__(self) -> None:
        _require(self.held_for >= 1, "held_for", self.held_for, "a count of at least 1")
        bounds = (self.below, self.above)
        _require(bounds.count(None) == 1, "below and above", bounds, "one bound and one None")

    def is_met(self, row: Mapping[str, float]) -> bool:
        """Whether an entry of the history is good enough."""
        value = row[self.of]
        return value < self.below if self.above is None else value > self.above


@dataclass(frozen=True)
class Settings:
    """How a job is sampled and optimised. Defaults: DiG-IN, section 3 and supplement B.

    steps: of the solver, T. guidance_scale: s; 1 leaves the null branch out. Models that take the
        scale as an input (LCM) never have one.
    iterations: updates. The image is evaluated once more after the last one, so a history has
        ``iterations + 1`` entries and entry 0 is the unoptimised image.
    last_steps: K, how many of the last predicted x0 carry the loss, with weights 1..K over their
        sum.
    learning_rate: for the text embeddings; the latents' is ``latent_lr_factor`` times that.
    schedule: "cosine" lets every rate fall to a tenth of its start.
    normalise_gradients: divides each variable's gradient by its norm; clip_gradients bounds its
        largest element (inf-norm), by scaling.
    variables: which of "latents", "conditioning", "null_text" are optimised.
    shared_deltas: one text delta for all timesteps instead of one each.
    """

    steps: int = 20
    guidance_scale: float = 3.0
    iterations: int = 20
    last_steps: int = 3
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 0.01
    latent_lr_factor: float = 0.1
    schedule: Literal["constant", "cosine"] = "constant"
    normalise_gradients: bool = False
    clip_gradients: float | None = None
    variables: tuple[str, ...] = VARIABLES
    shared_deltas: bool = False
    early_stop: EarlyStop | None = None

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "steps", self.steps, "at least 1")
        _require(self.guidance_scale >= 0, "guidance_scale", self.guidance_scale, "at least 0")
        _require(self.iterations >= 0, "iterations", self.iterations, "at least 0")
        _require(self.last_steps >= 1, "last_steps", self.last_steps, "at least 1")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0")
        _require(self.latent_lr_factor >= 0, "latent_lr_factor", self.latent_lr_factor, ">= 0")
        _choice(self.optimiser, "optimiser", ("adam", "adamw", "sgd"))
        _choice(self.schedule, "schedule", ("constant", "cosine"))
        clip = self.clip_gradients
        _require(clip is None or clip > 0, "clip_gradients", clip, "above 0, or None")
        _require(bool(self.variables), "variables", self.variables, f"some of {VARIABLES}")
        for variable in self.variables:
            _choice(variable, "variables", VARIABLES)

    @property
    def guided(self) -> bool:
        """Whether a null branch runs at all."""
        return self.guidance_scale != 1.0


@dataclass(frozen=True)
class Injection:
    """Prompt-to-prompt: the first steps attend as the source prompt did.

    layers: layer name -> SourceAttention whose tensor has a leading dimension of recorded steps
        (up to the last one whose weight is not 0) and whose keys have none.
    mapping: (L, Ls) target x source tokens, columns summing to 1.
    weights: one per step in [0, 1].
    """

    layers: Mapping[str, SourceAttention]
    mapping: Tensor
    weights: tuple[float, ...]


@dataclass(frozen=True)
class SelfInjection:
    """Prompt-to-prompt's self-attention injection, which keeps the layout of the source.

    layers: self-attention layer -> SourceAttention whose tensor and keys have a leading dimension
        of recorded steps (up to the last one whose weight is not 0). Other layers are left alone.
    weights: one per step in [0, 1].
    """

    layers: Mapping[str, SourceAttention]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Blending:
    """Mask blending: before step i, z <- w_i m z_src_i + (1 - w_i m) z.

    mask: (h, w), 1 where the source is kept. source_latents: (T, C, h, w), the source trajectory
    at the input of each step. weights: one per step in [0, 1].
    """

    mask: Tensor
    source_latents: Tensor
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Job:
    """One image's optimisation.

    latents: z_T (C, h, w). conditioning, null_text: base embeddings, (L, D) or (T, L, D);
    null_text may be None where there is no null branch. pooled: (2, P), the pooled embeddings of
    prompt and null text for models that take them (SDXL), see ``LatentDiffusion.encode_pooled``.
    noise: (T, C, h, w), what a stochastic solver (LCM, SDXL-Turbo) adds after each step; None
    draws it from ``seed``. monitors: name -> function of the plain image
    (3, H, W), recorded at every iteration. info: one object of whoever made the job, carried
    through to the Result untouched.
    """

    id: str
    latents: Tensor
    conditioning: Tensor
    null_text: Tensor | None
    losses: Sequence[Loss]
    settings: Settings = field(default_factory=Settings)
    seed: int = 0
    injection: Injection | None = None
    self_injection: SelfInjection | None = None
    blending: Blending | None = None
    pooled: Tensor | None = None
    noise: Tensor | None = None
    monitors: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    info: Any = None


@dataclass(frozen=True)
class Unmade:
    """What is known of a job that could not be made: it stands for the Job in a failed Result."""

    id: str
    seed: int = 0
    info: Any = None


@dataclass(frozen=True)
class Result:
    """What became of a Job. Tensors are on the CPU.

    job: as it was given; an Unmade where a stage failed to make it.
    status: "done" or "failed" (then ``error`` says why; images are those of the best iteration
    so far, or None). image: the plain image with the smallest total; initial_image: the one of
    iteration 0. history: per iteration the plain "total", every loss (unweighted) and monitor.
    latents, conditioning, null_text: the variables that made ``image``, the text ones (T, L, D):
    with the job's settings, injection and blending they reproduce it.
    """

    job: Job | Unmade
    status: Literal["done", "failed"]
    error: str | None
    image: Tensor | None
    initial_image: Tensor | None
    history: Sequence[Mapping[str, float]]
    best_iteration: int | None
    seconds: float
    latents: Tensor | None = None
    conditioning: Tensor | None = None
    null_text: Tensor | None = None

    @classmethod
    def failure(cls, job: Job | Unmade, error: str) -> Result:
        """The Result of a job that never started."""
        return cls(job, "failed", error, None, None, (), None, 0.0)

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def iterations(self) -> int:
        """Updates made."""
        return max(len(self.history) - 1, 0)


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise UserError(f"{name} must be {wanted}, got {value!r}")


def _choice(value: object, name: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, name, value, "one of " + ", ".join(choices))
