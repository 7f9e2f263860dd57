"""Whether a job fits the model and its own settings, told before any work starts."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fastdigin.engine.job import Blending, Injection, Job, SelfInjection, Settings
from fastdigin.errors import UserError
from fastdigin.models.attention import is_cross
from fastdigin.models.diffusion import LatentDiffusion

_OPTIONAL_TENSOR = (Tensor, type(None))
_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,), "latents": (Tensor,), "conditioning": (Tensor,), "null_text": _OPTIONAL_TENSOR,
    "losses": (Sequence,), "settings": (Settings,), "seed": (int,),
    "injection": (Injection, type(None)), "self_injection": (SelfInjection, type(None)),
    "blending": (Blending, type(None)), "pooled": _OPTIONAL_TENSOR, "noise": _OPTIONAL_TENSOR,
    "monitors": (Mapping,),
}  # fmt: skip


def check_mode() -> None:
    """UserError under torch.inference_mode, where nothing can be optimised."""
    if torch.is_inference_mode_enabled():
        raise UserError(
            "the engine needs gradients, which torch.inference_mode() rules out: call it "
            "outside of that; torch.no_grad() does no harm"
        )


def check_fields(job: Job) -> None:
    """Raises UserError where a field of a job is nothing that it could be, whatever the model."""
    for name, kinds in _TYPES.items():
        _check_type(job, name, getattr(job, name), kinds)
    for name in ("injection", "self_injection", "blending"):
        edit = getattr(job, name)
        weights = () if edit is None else edit.weights
        if not all(_is_number(weight) and 0 <= weight <= 1 for weight in weights):
            raise UserError(f"job {job.id!r}: {name} has weights {weights!r:.80}, wanted 0 to 1")
    if job.injection is not None:
        _check_type(job, "injection.mapping", job.injection.mapping, (Tensor,))
    if job.blending is not None:
        for name in ("mask", "source_latents"):
            _check_type(job, f"blending.{name}", getattr(job.blending, name), (Tensor,))
    for number, loss in enumerate(job.losses):
        named = isinstance(getattr(loss, "name", None), str)
        if not (named and _is_number(getattr(loss, "weight", None)) and callable(loss)):
            raise UserError(
                f"job {job.id!r}: losses[{number}] is {loss!r:.80}, wanted a callable with a name "
                "(a text) and a weight (a finite number)"
            )
    for name, read in job.monitors.items():
        if not (isinstance(name, str) and callable(read)):
            raise UserError(
                f"job {job.id!r}: monitors has {name!r}: {read!r:.80}, wanted a text and a callable"
            )


def _check_type(job: Job, name: str, value: Any, kinds: tuple[type, ...]) -> None:
    wrong = not isinstance(value, kinds) or isinstance(value, bool)
    wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
    if wrong:
        raise UserError(f"job {job.id!r}: {name} is {value!r:.80}, wanted {wanted}")
    if isinstance(value, Tensor):
        check_values(f"job {job.id!r}: {name}", value)


def check_values(name: str, tensor: Any) -> None:
    """Raises UserError for anything but a tensor of floating-point numbers that one can work with.

    Tensors made under torch.inference_mode cannot be kept for a backward.
    """
    if not isinstance(tensor, Tensor):
        raise UserError(f"{name} is {tensor!r:.80}, wanted a tensor")
    if tensor.is_meta or not tensor.is_floating_point():
        where = "on meta" if tensor.is_meta else f"of {tensor.dtype}"
        raise UserError(f"{name} is {where}, wanted floating-point values")
    if tensor.is_inference():
        raise UserError(f"{name} was made under torch.inference_mode(): clone it outside of that")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_job(job: Job, model: LatentDiffusion) -> None:
    """Raises UserError where a job's shapes do not fit the model or its own settings."""
    if tuple(job.latents.shape) != model.latent_shape:
        raise UserError(
            f"job {job.id!r}: latents have shape {tuple(job.latents.shape)}, model "
            f"{model.name!r} needs {model.latent_shape}"
        )
    _check_texts(job, model)
    check_pooled(model, job.pooled, (), f"job {job.id!r}: pooled")
    _check_noise(job, model)
    shape = (job.settings.steps, *model.latent_shape)
    if job.offsets is not None and tuple(job.offsets.shape) != shape:
        raise UserError(
            f"job {job.id!r}: offsets have shape {tuple(job.offsets.shape)}, wanted {shape}"
        )
    _check_edits(job, model)
    _check_losses(job)


def check_pooled(
    model: LatentDiffusion, pooled: Tensor | None, leading: tuple[int, ...], name: str
) -> None:
    """Raises UserError unless pooled embeddings (*leading, 2, P) are given where needed."""
    width = model.pooled_width
    given = None if pooled is None else tuple(pooled.shape)
    wanted = (*leading, 2, width) if width else None
    if given != wanted:
        found = "None" if given is None else f"of shape {given}"
        hint = ": model.encode_pooled([prompt, '']) makes it" if width else ""
        raise UserError(f"{name} is {found}, but model {model.name!r} needs {wanted}{hint}")


def _check_texts(job: Job, model: LatentDiffusion) -> None:
    settings, width = job.settings, model.text_width
    steps, scale = settings.steps, settings.guidance_scale
    texts = {"conditioning": job.conditioning}
    if model.few_step and not model.embeds_guidance and scale < 1:
        raise UserError(
            f"job {job.id!r}: guidance_scale {scale:g} would follow the null text; where "
            "diffusers' examples write 0 for Turbo models, write 1 here: no guidance"
        )
    if model.has_null_branch(scale):
        if job.null_text is None:
            raise UserError(
                f"job {job.id!r}: null_text is None, but guidance_scale {scale} needs one (or set "
                "guidance_scale=1)"
            )
        texts["null_text"] = job.null_text
    elif set(settings.variables) == {"null_text"}:
        raise UserError(
            f"job {job.id!r}: guidance_scale {scale:g} has no null text, the only one of variables"
        )
    for name, text in texts.items():
        if (
            text.shape[-1] != width
            or (text.ndim == 3 and len(text) != steps)
            or text.ndim not in (2, 3)
        ):
            raise UserError(
                f"job {job.id!r}: {name} has shape {tuple(text.shape)}, wanted (L, {width}) or "
                f"(T, L, {width}) with T = {steps} steps"
            )
        if text.shape[-2] != job.conditioning.shape[-2]:
            raise UserError(
                f"job {job.id!r}: {name} has {text.shape[-2]} tokens, the conditioning has "
                f"{job.conditioning.shape[-2]}"
            )


def _check_noise(job: Job, model: LatentDiffusion) -> None:
    steps = job.settings.steps
    stochastic = model.ddim_table(steps).noise is not None  # raises for too many steps
    shape = (steps, *model.latent_shape)
    if job.noise is not None and (not stochastic or tuple(job.noise.shape) != shape):
        wanted = shape if stochastic else "None: the model's solver adds no noise"
        raise UserError(
            f"job {job.id!r}: noise has shape {tuple(job.noise.shape)}, wanted {wanted}"
        )


def _check_edits(job: Job, model: LatentDiffusion) -> None:
    steps = job.settings.steps
    for name in ("injection", "self_injection", "blending"):
        edit = getattr(job, name)
        if edit is not None and len(edit.weights) != steps:
            raise UserError(
                f"job {job.id!r}: {name} has {len(edit.weights)} weights for {steps} steps"
            )
    if job.injection is not None:
        _check_injection(job, model)
    if job.self_injection is not None:
        _check_self_injection(job, model)
    if job.blending is not None and (
        job.blending.mask.shape != job.latents.shape[1:]
        or job.blending.source_latents.shape != (steps, *job.latents.shape)
    ):
        raise UserError(
            f"job {job.id!r}: blending needs a mask {tuple(job.latents.shape[1:])} and source "
            f"latents {(steps, *job.latents.shape)}, got {tuple(job.blending.mask.shape)} and "
            f"{tuple(job.blending.source_latents.shape)}"
        )


def _check_losses(job: Job) -> None:
    if not job.losses:
        raise UserError(f"job {job.id!r} has no losses: there is nothing to optimise")
    names = [loss.name for loss in job.losses] + list(job.monitors)
    if len(set(names)) < len(names) or "total" in names:
        raise UserError(
            f"job {job.id!r}: losses and monitors need distinct names other than 'total', "
            f"got {', '.join(names)}"
        )
    stop, losses = job.settings.early_stop, names[: len(job.losses)]
    while stop is not None:
        known = (stop.of, ("total", *names)), *((name, losses) for name in stop.settled)
        for name, among in known:
            if name not in among:
                raise UserError(
                    f"job {job.id!r}: early_stop is of {name!r}, but there are only "
                    f"{', '.join(among)}"
                )
        stop = stop.also


def _check_injection(job: Job, model: LatentDiffusion) -> None:
    """A source recorded with another model, or for fewer steps, would break the whole batch."""
    injection, length = job.injection, job.conditioning.shape[-2]
    shapes = model.attention_shapes()
    wanted = {layer: shape for layer, shape in shapes.items() if is_cross(layer)}
    given = {layer: tuple(s.tensor.shape[1:3]) for layer, s in injection.layers.items()}
    if given != wanted:
        layer, _ = min(set(given.items()) ^ set(wanted.items()))
        raise UserError(
            f"job {job.id!r}: injection does not fit the cross-attention layers of model "
            f"{model.name!r}, in (heads, queries): {layer} is {given.get(layer)}, "
            f"wanted {wanted.get(layer)}"
        )
    _check_reach(job, "injection", injection)
    for source in injection.layers.values():
        tokens = source.tensor.shape[-1] if source.keys is None else source.keys.shape[-2]
        if tuple(injection.mapping.shape) != (length, tokens):
            raise UserError(
                f"job {job.id!r}: injection maps {tuple(injection.mapping.shape)} target x source "
                f"tokens, wanted {(length, tokens)}"
            )


def _check_self_injection(job: Job, model: LatentDiffusion) -> None:
    """Of each layer the whole map, or queries and keys of every step."""
    shapes = model.attention_shapes()
    wanted = {layer: shape for layer, shape in shapes.items() if not is_cross(layer)}
    for layer, source in job.self_injection.layers.items():
        given, (heads, queries) = source.tensor.shape, wanted.get(layer, (0, 0))
        if source.keys is None:
            fits = given[1:] == (heads, queries, queries)
        else:
            fits = given[1:3] == (heads, queries) and source.keys.shape == given
        if not fits:
            raise UserError(
                f"job {job.id!r}: self_injection does not fit the self-attention layers of model "
                f"{model.name!r}, in (heads, queries): {layer} is {tuple(given[1:3])}, "
                f"wanted {wanted.get(layer)}"
            )
    _check_reach(job, "self_injection", job.self_injection)


def _check_reach(job: Job, name: str, injection: Injection | SelfInjection) -> None:
    needed = max((i + 1 for i, w in enumerate(injection.weights) if w), default=0)
    recorded = min((len(source.tensor) for source in injection.layers.values()), default=0)
    if needed > recorded:
        raise UserError(
            f"job {job.id!r}: {name} weights reach step {needed}, but only {recorded} steps "
            "of the source were recorded"
        )
