"""What goes into the engine and what comes out: Job, Settings, Result.

A Job is one image's optimisation, complete in itself. Latents are (C, h, w), text embeddings
(L, D) or one per timestep (T, L, D), images (3, H, W) in [0, 1], masks (H, W) or (h, w) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from fastdigin.configuration import check_settings, documented, require, setting
from fastdigin.errors import UserError
from fastdigin.models.attention import SourceAttention

VARIABLES = ("latents", "conditioning", "null_text")
FALL = 0.03
"""What a sum of losses falls by, as a share, until it counts as settled (EarlyStop)."""


@dataclass(frozen=True)
class Candidate:
    """What a loss sees: one predicted x0.

    Args:
        image: (3, H, W) in [0, 1], decoded from the latents.
        latents: (C, h, w).
        key: (job seed, iteration, loss step), from which random augmentations are drawn, so that
            batching and recomputation cannot change them. None asks for the plain image.

    Example:
        >>> fd.ClassConfidence(classifier, 3)(fd.Candidate(image, latents))
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

    Args:
        below, above: good enough is smaller than ``below`` or greater than ``above``; give one.
        of: "total", or the name of one of the job's losses (unweighted) or monitors, all of the
            plain image.
        held_for: at least 1.
        settled: losses whose weighted sum must besides have stopped to fall: its smallest value of
            the last ``held_for`` entries is not below 1 - FALL of the smallest before them.
        also: another rule that must end the job at the same time.

    Raises:
        UserError: none of the bounds or both, or ``held_for`` below 1.

    Example:
        >>> fd.Settings(early_stop=fd.EarlyStop(below=-0.9, held_for=3))
    """

    below: float | None = None
    above: float | None = None
    of: str = "total"
    held_for: int = 1
    settled: tuple[str, ...] = ()
    also: EarlyStop | None = None

    def __post_init__(self) -> None:
        require(self.held_for >= 1, "held_for", self.held_for, "a count of at least 1")
        bounds = (self.below, self.above)
        require(bounds.count(None) == 1, "below and above", bounds, "one bound and one None")

    def ends(self, history: Sequence[Mapping[str, float]], weights: Mapping[str, float]) -> bool:
        """Whether a job with this history is done. weights: of its losses."""
        if self.also is not None and not self.also.ends(history, weights):
            return False
        before, last = history[: -self.held_for], history[-self.held_for :]
        if len(last) < self.held_for or not all(map(self._is_met, last)):
            return False
        if not self.settled:
            return True

        def least(rows: Sequence[Mapping[str, float]]) -> float:
            return min(sum(weights[name] * row[name] for name in self.settled) for row in rows)

        return bool(before) and least(last) >= (1 - FALL) * least(before)

    def _is_met(self, row: Mapping[str, float]) -> bool:
        value = row[self.of]
        return value < self.below if self.above is None else value > self.above


@documented
@dataclass(frozen=True)
class Settings:
    """How a job is sampled and optimised. Defaults: DiG-IN, section 3 and supplement B.

    guidance_scale 1 leaves the null branch out; models that take the scale as an input (LCM) never
    have one. The image is evaluated once more after the last update, so a history has
    ``iterations + 1`` entries, and entry 0 is the unoptimised image.

    Raises:
        UserError: a value that is out of its bounds.

    Example:
        >>> fd.Settings(steps=10, iterations=50, schedule="cosine")
    """

    steps: int = setting(20, "of the solver, T", least=1, metavar="T")
    guidance_scale: float = setting(3.0, "classifier-free guidance", least=0, metavar="G")
    iterations: int = setting(20, "updates", least=0, metavar="N")
    last_steps: int = setting(
        3, "how many of the last predicted x0 carry the loss, weighted 1 to K", least=1, metavar="K"
    )
    leap: int | None = setting(
        None,
        "the gradient goes through every Nth of the steps before the last K, and leaps over those "
        "between (default: through all, which is exact)",
        least=1, metavar="N",
    )  # fmt: skip
    optimiser: Literal["adam", "adamw", "sgd"] = setting("adam", "of all variables")
    learning_rate: float = setting(0.01, "of the text embeddings", above=0, metavar="R")
    latent_lr_factor: float = setting(
        0.1, "the latents' rate is this times that of the texts", least=0, metavar="F"
    )
    schedule: Literal["constant", "cosine"] = setting(
        "constant", "cosine lets every rate fall to a tenth of its start"
    )
    normalise_gradients: bool = setting(False, "divide each variable's gradient by its norm")
    clip_gradients: float | None = setting(
        None, "bound of the largest element of each variable's gradient", above=0, metavar="B"
    )
    variables: tuple[Literal["latents", "conditioning", "null_text"], ...] = setting(
        VARIABLES, "what is optimised"
    )
    shared_deltas: bool = setting(False, "one text delta for all timesteps instead of one each")
    early_stop: EarlyStop | None = setting(None, "ends a job sooner", flag=None)

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.variables:
            raise UserError(f"variables must be some of {VARIABLES}, got ()")

    @property
    def guided(self) -> bool:
        """Whether a null branch runs at all."""
        return self.guidance_scale != 1.0


@dataclass(frozen=True)
class Injection:
    """Prompt-to-prompt: the first steps attend as the source prompt did.

    Args:
        layers: layer name -> SourceAttention whose tensor has a leading dimension of recorded
            steps (up to the last one whose weight is not 0) and whose keys have none.
        mapping: (L, Ls) target x source tokens, columns summing to 1.
        weights: one per step in [0, 1].

    Example:
        >>> injection = store.injection(mapping, 0.3, steps=20)  # of an AttentionStore
    """

    layers: Mapping[str, SourceAttention]
    mapping: Tensor
    weights: tuple[float, ...]


@dataclass(frozen=True)
class SelfInjection:
    """Prompt-to-prompt's self-attention injection, which keeps the layout of the source.

    Args:
        layers: self-attention layer -> SourceAttention whose tensor and keys have a leading
            dimension of recorded steps (up to the last one whose weight is not 0). Other layers are
            left alone.
        weights: one per step in [0, 1].

    Example:
        >>> injection = store.self_injection(fd.Cosine(), steps=20)  # of an AttentionStore
    """

    layers: Mapping[str, SourceAttention]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Blending:
    """Mask blending: before step i, z <- w_i m z_src_i + (1 - w_i m) z.

    Args:
        mask: (h, w), 1 where the source is kept.
        source_latents: (T, C, h, w), the source trajectory at the input of each step.
        weights: one per step in [0, 1].

    Example:
        >>> weights = fd.Threshold(0.3).weights(20)
        >>> fd.Blending(mask, inversion.trajectory[:-1], weights)
    """

    mask: Tensor
    source_latents: Tensor
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Job:
    """One image's optimisation.

    Args:
        id: names the job in its Result.
        latents: z_T (C, h, w).
        conditioning, null_text: base embeddings, (L, D) or (T, L, D). null_text may be None where
            there is no null branch.
        losses: any objects with a ``name``, a ``weight`` and a call from a :class:`Candidate` to a
            scalar, which is minimised.
        settings: how the job is sampled and optimised.
        seed: of random crops and of the noise.
        injection, self_injection, blending: what is taken from a source image.
        pooled: (2, P), the pooled embeddings of prompt and null text for models that take them
            (SDXL), see ``LatentDiffusion.encode_pooled``.
        noise: (T, C, h, w), what a stochastic solver (LCM, SDXL-Turbo) adds after each step; None
            draws it from ``seed``.
        offsets: (T, C, h, w), added to the U-Net's guided output at each step: what an inversion
            found it to lack ("direct" inversion). None adds nothing.
        monitors: name -> function of the plain image (3, H, W), recorded at every iteration.
        info: one object of whoever made the job, carried through to the Result untouched.

    Example:
        >>> text, empty = model.encode_prompts(["a photo of a white boot on brick", ""])
        >>> job = fd.Job("boot", torch.randn(model.latent_shape), text, empty, [loss])
        >>> (result,) = engine.run([job])
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
    offsets: Tensor | None = None
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

    Args:
        job: as it was given; an Unmade where a stage failed to make it.
        status: "done" or "failed". The images of a failed job are those of the best iteration so
            far, or None.
        error: why the job failed.
        image: (3, H, W), the plain image with the smallest total.
        initial_image: the one of iteration 0.
        history: per iteration the plain "total", every loss (unweighted) and monitor.
        best_iteration: the iteration that ``image`` is of.
        seconds: the job's share of its batches' iterations; what came before is not in it.
        latents, conditioning, null_text: the variables that made ``image``, the text ones
            (T, L, D): with the job's settings, injection and blending they reproduce it.

    Example:
        >>> for result in engine.run(jobs):
        ...     print(result.id, result.history[result.best_iteration]["total"])
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
