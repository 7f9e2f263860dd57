"""One job's state between iterations: variables, optimiser, history, best image so far."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin import hardware
from fastdigin.engine.checks import check_job
from fastdigin.engine.job import Candidate, Job, Result, Settings
from fastdigin.engine.leaps import leaping_path
from fastdigin.engine.steps import on_device
from fastdigin.errors import UserError
from fastdigin.models.diffusion import LatentDiffusion


class Slot:
    """Holds a job while it is optimised.

    State is kept per slot, not in one batched tensor: a slot's arithmetic is then the same
    whatever its neighbours are, torch.optim serves as it is, and the cost beside a U-Net call is
    nil. State has the model's ``state_dtype``, whatever the networks' precision. ``constants`` is
    the job as the steps need it (batch.py). ``path``: the steps that its gradient goes through.
    ``seconds``: the job's share of the iterations so far.
    """

    def __init__(self, job: Job, model: LatentDiffusion):
        check_job(job, model)
        settings = job.settings
        self.job, self.model, self.iteration = job, model, 0
        self.path = leaping_path(
            model.ddim_table(settings.steps), settings.last_steps, settings.leap
        )
        self.constants = on_device(job, model)
        self.history: tuple[dict[str, float], ...] = ()
        self.reported = False
        self.error: str | None = None
        self.best: dict | None = None
        self.initial_image: Tensor | None = None
        self.seconds = 0.0
        self._pending: _Evaluation | None = None
        self._finite: dict[str, Tensor] = {}  # of the gradients of the latest update
        self._stopped = False  # by the early-stop rule

        place = {"device": model.device, "dtype": model.state_dtype, "non_blocking": True}
        self.z = job.latents.detach().to(**place, copy=True)
        self._norm = self.z.norm()
        self._base = {"conditioning": _per_step(job.conditioning, settings.steps).to(**place)}
        if model.has_null_branch(settings.guidance_scale):
            self._base["null_text"] = _per_step(job.null_text, settings.steps).to(**place)
        self._variables = {"latents": self.z}
        for name, base in self._base.items():
            self._variables[name] = torch.zeros_like(base[:1] if settings.shared_deltas else base)
        wanted = [name for name in self._variables if name in settings.variables]
        self._optimised = {name: self._variables[name].requires_grad_() for name in wanted}
        self._optimiser = _optimiser(settings, self._optimised)
        self._schedule = _schedule(settings, self._optimiser)

    @property
    def conditioning(self) -> Tensor:
        """(T, L, D): base plus delta."""
        return (self._base["conditioning"] + self._variables["conditioning"]).detach()

    @property
    def null_text(self) -> Tensor | None:
        """(T, L, D), or None where there is no null branch."""
        if "null_text" not in self._base:
            return None
        return (self._base["null_text"] + self._variables["null_text"]).detach()

    @property
    def active(self) -> bool:
        """Whether the job goes on: not failed, not at its last evaluation, not stopped early."""
        ended = self._stopped or len(self.history) > self.job.settings.iterations
        return self.error is None and not ended

    def fail(self, reason: str) -> None:
        """Ends the job with an error."""
        self.error = reason

    @property
    def updates_left(self) -> bool:
        """Whether the coming evaluation may be followed by an update."""
        return self.iteration < self.job.settings.iterations

    def loss(self, candidate: Candidate) -> tuple[Tensor, dict[str, Tensor]]:
        """(weighted total, unweighted terms) of the job's losses."""
        terms = {loss.name: _number(loss.name, loss(candidate)) for loss in self.job.losses}
        total = sum(loss.weight * terms[loss.name] for loss in self.job.losses)
        return total, terms

    @torch.no_grad()
    def evaluate(self, image_3hw: Tensor, x0_chw: Tensor) -> None:
        """Evaluates the plain image of this iteration. ``settle`` reads what came of it."""
        total, terms = self.loss(Candidate(image_3hw, x0_chw))
        figures = {"total": total, **terms}
        figures |= {name: read(image_3hw) for name, read in self.job.monitors.items()}
        self._finite = {}
        self._pending = _Evaluation(
            {name: self._on_device(figure) for name, figure in figures.items()},
            {
                "image": image_3hw.detach(),
                "latents": self.z.detach().clone(),  # the next update changes it in place
                "conditioning": self.conditioning,
                "null_text": self.null_text,
            },
        )

    @torch.no_grad()
    def update(self, gradients: Mapping[str, Tensor | None]) -> None:
        """One optimiser step from gradients of "latents" (C, h, w) and the texts (T, L, D).

        The gradients may be changed in place. One that is not finite counts as zero until
        ``settle`` finds out.
        """
        settings = self.job.settings
        for name, variable in self._optimised.items():
            gradient = gradients[name]
            if name != "latents" and settings.shared_deltas:
                gradient = gradient.sum(dim=0, keepdim=True)
            finite = gradient.isfinite().all()
            self._finite[name] = self._on_device(finite)
            variable.grad = torch.where(finite, gradient, 0)
            if settings.normalise_gradients:
                variable.grad /= variable.grad.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
            if settings.clip_gradients is not None:
                torch.nn.utils.clip_grad_norm_(
                    [variable], settings.clip_gradients, norm_type=math.inf
                )
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)  # else it would live as long as the next run
        self._schedule.step()
        if "latents" in self._optimised:
            self.z.mul_(self._norm / self.z.norm())
        self.iteration += 1

    @property
    def figures(self) -> Tensor:
        """What ``settle`` wants to know, (n,) on the model's device; read by nobody yet."""
        if self._pending is None:
            return self.z.new_empty(0)
        return torch.stack([*self._pending.figures.values(), *self._finite.values()])

    def settle(self, values: Sequence[float]) -> None:
        """Ends an iteration with the values of ``figures``: history, best image, early stop.

        Raises FloatingPointError if a loss or a gradient was not finite.
        """
        if self._pending is None:
            return
        figures, state = self._pending.figures, self._pending.state
        row = dict(zip(figures, values, strict=False))
        finite = dict(zip(self._finite, values[len(figures) :], strict=True))
        self._pending, self._finite = None, {}
        at = len(self.history)
        for name in ("total", *(loss.name for loss in self.job.losses)):
            if not math.isfinite(row[name]):
                cause = ""
                if not state["image"].isfinite().all():
                    cause = (
                        ": the decoded image is not finite; where the VAE runs in fp16 it "
                        'overflows, so take dtype "bf16" or "fp32"'
                    )
                raise FloatingPointError(f"loss {name!r} is {row[name]} at iteration {at}{cause}")
        self.history += (row,)
        if self.initial_image is None:
            self.initial_image = state["image"]
        if self.best is None or row["total"] < self.history[self.best["iteration"]]["total"]:
            self.best = {"iteration": at, **state}
        stop, weights = self.job.settings.early_stop, {x.name: x.weight for x in self.job.losses}
        self._stopped = stop is not None and stop.ends(self.history, weights)
        for name, is_finite in finite.items():
            if not is_finite:
                raise FloatingPointError(f"the gradient of {name} is not finite at iteration {at}")

    def result(self) -> Result:
        """The Result so far."""
        found = {"initial_image": self.initial_image, **(self.best or {})}
        best = _on_host({k: v for k, v in found.items() if isinstance(v, Tensor)})
        return Result(
            job=self.job,
            status="done" if self.error is None else "failed",
            error=self.error,
            image=best.get("image"),
            initial_image=best.get("initial_image"),
            history=self.history,
            best_iteration=found.get("iteration"),
            seconds=self.seconds,
            latents=best.get("latents"),
            conditioning=best.get("conditioning"),
            null_text=best.get("null_text"),
        )

    def _on_device(self, figure: Tensor | float) -> Tensor:
        figure = torch.as_tensor(figure).detach().reshape(())
        return figure.to(self.z.device, self.z.dtype, non_blocking=True)


@dataclass(frozen=True)
class _Evaluation:
    """What an iteration found, before anybody has read it.

    To read a figure is to wait for the device; so they are collected, and read all at once.
    """

    figures: dict[str, Tensor]
    state: dict[str, Tensor | None]


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU; a GPU copies them all at once."""
    if not tensors or not hardware.of(next(iter(tensors.values())).device).is_gpu:
        return {name: x.cpu() for name, x in tensors.items()}
    flat = torch.cat([x.flatten() for x in tensors.values()]).cpu()
    parts = flat.split([x.numel() for x in tensors.values()])
    pairs = zip(tensors.items(), parts, strict=True)
    return {name: part.view(x.shape).clone() for (name, x), part in pairs}


def _number(name: str, value: object) -> Tensor:
    """What a loss returned; UserError unless it is a tensor of one number."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UserError(f"loss {name!r} returned {value!r:.80}, wanted a tensor of one number")
    return value


def _per_step(text: Tensor, steps: int) -> Tensor:
    return text.detach() if text.ndim == 3 else text.detach().expand(steps, -1, -1)


def _optimiser(settings: Settings, variables: Mapping[str, Tensor]) -> torch.optim.Optimizer:
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    rate = settings.learning_rate
    groups = [
        {"params": [v], "lr": rate * settings.latent_lr_factor if name == "latents" else rate}
        for name, v in variables.items()
    ]
    return kinds[settings.optimiser](groups, lr=rate)


def _schedule(settings: Settings, optimiser) -> torch.optim.lr_scheduler.LambdaLR:
    """Factors, not absolute rates, so that the latents' smaller rate decays as well."""

    def factor(update: int) -> float:
        if settings.schedule == "constant":
            return 1.0
        progress = update / max(settings.iterations, 1)
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
