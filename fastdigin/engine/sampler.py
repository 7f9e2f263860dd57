"""The unrolled DDIM loop, differentiable at the price of T stored latents.

The forward runs without a graph and keeps the latent at the input of each step. The backward walks
the steps in reverse; each is recomputed with a graph and differentiated at once, so memory is T
latents plus one U-Net call, whatever T. Where there is more memory, the last ``kept_steps`` steps
keep their graphs from the forward and need no recomputing: 2 instead of 3 forward-equivalents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastdigin.engine.leaps import Leap, exact_path
from fastdigin.models.attention import AttentionControl, InjectedAttention, InjectedSelfAttention
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.models.precision import rescaled


@dataclass(frozen=True)
class Step:
    """The constants of one step for a batch of B samples.

    timestep: (B,), the same for all.
    coefficients: (B, 4), a row (a, b, c, d) each (models/ddim.py), or (B, 5) for a multistep
        solver. Its state is z and the previous x0, one behind the other as (B, 2C, h, w).
    guidance: (B,), or None where no sample uses a null branch.
    vector: what ``LatentDiffusion.vector`` made, (B, E), or where there is a null branch
        (2B, E), its rows first; None for models that take none.
    noise: (B, C, h, w), what a stochastic solver adds, scaled already; None where it adds none.
    offset: (B, C, h, w), added to the guided output; None where nothing is.
    injected, injected_self: source attention of the conditional branch, or None.
    blend: (w m, z_src) of shapes (B, 1, h, w) and (B, C, h, w), or None.
    """

    timestep: Tensor
    coefficients: Tensor
    guidance: Tensor | None
    injected: InjectedAttention | None = None
    injected_self: InjectedSelfAttention | None = None
    blend: tuple[Tensor, Tensor] | None = None
    vector: Tensor | None = None
    noise: Tensor | None = None
    offset: Tensor | None = None

    @property
    def is_multistep(self) -> bool:
        return self.coefficients.shape[1] == 5

    def timesteps(self, rows: int) -> Tensor:
        """(rows,), one timestep expanded: the U-Net then embeds it once."""
        return self.timestep[:1].expand(rows)


def guided_step(
    model: LatentDiffusion, z_bchw: Tensor, cond_bld: Tensor, null_bld: Tensor | None, step: Step
) -> tuple[Tensor, Tensor]:
    """One blended, guided, injected step: (z_prev, x0), both (B, C, h, w).

    Of a multistep solver z_bchw and z_prev are states (B, 2C, h, w).
    """
    previous = None
    if step.is_multistep:
        z_bchw, previous = z_bchw.chunk(2, dim=1)
    if step.blend is not None:
        weight, source = step.blend
        z_bchw = (1 - weight) * z_bchw + weight * source  # in this order it keeps z's layout
    control = None
    if step.injected is not None or step.injected_self is not None:
        control = AttentionControl(injected=step.injected, injected_self=step.injected_self)
    if step.guidance is None:
        output = model.predict(z_bchw, step.timesteps(len(z_bchw)), cond_bld, control, step.vector)
    else:
        both = model.predict(
            torch.cat([z_bchw, z_bchw]),
            step.timesteps(2 * len(z_bchw)),
            torch.cat([null_bld, cond_bld]),
            control,
            step.vector,
        )
        null, cond = both.chunk(2)
        output = null + step.guidance[:, None, None, None] * (cond - null)
    if step.offset is not None:
        output = output + step.offset
    z_prev, x0 = solver_step(step.coefficients, z_bchw, output, previous)
    if previous is not None:
        return torch.cat([z_prev, x0], dim=1), x0
    return z_prev if step.noise is None else z_prev + step.noise, x0


def solver_step(
    coefficients: Tensor, z_bchw: Tensor, output_bchw: Tensor, previous_x0: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(z_prev, x0) of the network's output; coefficients (B, 4), or (B, 5) with a previous x0."""
    a, b, c, d, *g = coefficients[:, :, None, None, None].unbind(1)
    z_prev, x0 = a * z_bchw + b * output_bchw, c * z_bchw + d * output_bchw
    return z_prev + g[0] * previous_x0 if g else z_prev, x0


def initial_state(z_bchw: Tensor, step: Step) -> Tensor:
    """What the first step reads: z_T, with zeros where a multistep solver has a previous x0."""
    return torch.cat([z_bchw, torch.zeros_like(z_bchw)], dim=1) if step.is_multistep else z_bchw


def latents_of(state: Tensor, step: Step) -> Tensor:
    """The z of a state."""
    return state.chunk(2, dim=1)[0] if step.is_multistep else state


@dataclass(frozen=True)
class StepGraph:
    """One step's outputs with the graph that leads from ``variables`` to them.

    variables: the leaves z (B, C, h, w), cond (B, L, D) and, with guidance, null (B, L, D).
    """

    variables: tuple[Tensor, ...]
    z_prev: Tensor
    x0: Tensor


class StepFunctions:
    """What the loop asks of one step. engine/compiled.py has the same, compiled.

    The arguments of a step are z (B, C, h, w), cond (B, L, D), null (B, L, D) or None, and Step.
    """

    def __init__(self, model: LatentDiffusion):
        self.model = model

    def forward(self, z, cond, null, step: Step) -> tuple[Tensor, Tensor]:
        """(z_prev, x0), without a graph."""
        with torch.no_grad():
            return guided_step(self.model, z, cond, null, step)

    @torch.enable_grad()
    def forward_with_graph(self, z, cond, null, step: Step) -> StepGraph:
        """The same with a graph, for ``vjp``."""
        variables = [x.detach().requires_grad_() for x in (z, cond, null) if x is not None]
        z_prev, x0 = guided_step(self.model, *variables, *([None] if null is None else []), step)
        return StepGraph(tuple(variables), z_prev, x0)

    def vjp(
        self, graph: StepGraph, grad_z_prev: Tensor | None, grad_x0: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The vector-Jacobian product: gradients of z, cond and, with guidance, null.

        Consumes the graph. Where the network computes in another precision, the gradient is near 1
        on its way through it (``rescaled``).
        """
        pairs = [
            (output, gradient)
            for output, gradient in ((graph.z_prev, grad_z_prev), (graph.x0, grad_x0))
            if gradient is not None
        ]
        outputs, gradients = zip(*pairs, strict=True)
        if self.model.dtype == graph.variables[0].dtype:
            return torch.autograd.grad(outputs, graph.variables, gradients)
        return rescaled(
            lambda scaled: torch.autograd.grad(outputs, graph.variables, scaled), *gradients
        )

    def joint(self, z, cond, null, step: Step, grad_z_prev, grad_x0) -> tuple[Tensor, ...]:
        """The gradients of a step that kept no graph: a recompute and its ``vjp``."""
        return self.vjp(self.forward_with_graph(z, cond, null, step), grad_z_prev, grad_x0)


@dataclass(frozen=True)
class Forward:
    """What the loop leaves behind: inputs (T states), the last K x0, and the last z.

    kept: the graphs of the last steps that the gradient goes through, as many as were asked for.
    """

    inputs: Sequence[Tensor]
    x0s: Sequence[Tensor]
    last: Tensor
    kept: Sequence[StepGraph] = ()


@torch.no_grad()
def unrolled_forward(
    functions: StepFunctions,
    z_bchw: Tensor,
    cond_btld: Tensor,
    null_btld: Tensor | None,
    steps: Sequence[Step],
    last_steps: int,
    kept_steps: int = 0,
    path: Sequence[Leap] | None = None,
) -> Forward:
    """Runs the loop; cond and null are (B, T, L, D).

    The last steps are the ones to keep: attention injected into the first would add to what a
    graph holds, and the graphs that are made last are the first to be consumed. path: that of the
    gradient (leaps.py); None is the exact one.
    """
    inputs, x0s, kept = [], [], []
    path = exact_path(len(steps)) if path is None else path
    keeps = {leap.start for leap in path[len(path) - kept_steps :]}
    z_bchw = initial_state(z_bchw, steps[0])
    for i, step in enumerate(steps):
        inputs.append(z_bchw)
        step_inputs = z_bchw, cond_btld[:, i], _at(null_btld, i), step
        if i in keeps:
            graph = functions.forward_with_graph(*step_inputs)
            kept.append(graph)
            z_bchw, x0 = graph.z_prev.detach(), graph.x0.detach()
        else:
            z_bchw, x0 = functions.forward(*step_inputs)
        if i >= len(steps) - last_steps:
            x0s.append(x0)
    return Forward(inputs, x0s, latents_of(z_bchw, steps[0]), kept)


def unrolled_backward(
    functions: StepFunctions,
    forward_inputs: Sequence[Tensor],
    cond_btld: Tensor,
    null_btld: Tensor | None,
    steps: Sequence[Step],
    grad_x0s: Sequence[Tensor],
    grad_last: Tensor | None = None,
    kept: Sequence[StepGraph] = (),
    path: Sequence[Leap] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients for (z_T, cond, null) from those of the last K x0 and of the last z.

    The graphs in ``kept`` are consumed: each is freed as soon as it has served. path: as of the
    forward.
    """
    path = exact_path(len(steps)) if path is None else path
    grad_cond = torch.zeros_like(cond_btld)
    grad_null = None if null_btld is None else torch.zeros_like(null_btld)
    grad_z = None if grad_last is None else initial_state(grad_last, steps[0])
    first_loss_step = len(steps) - len(grad_x0s)
    first_kept = len(path) - len(kept)
    for n, leap in reversed(list(enumerate(path))):
        i = leap.start
        grad_x0 = grad_x0s[i - first_loss_step] if i >= first_loss_step else None
        if leap.on_x0:
            grad_z, grad_x0 = leap.on_z * grad_z, leap.on_x0 * grad_z
        if n >= first_kept:
            found = functions.vjp(kept[n - first_kept], grad_z, grad_x0)
        else:
            step_inputs = forward_inputs[i], cond_btld[:, i], _at(null_btld, i), steps[i]
            found = functions.joint(*step_inputs, grad_z, grad_x0)
        grad_z, *texts = found
        for gradient, part in zip((grad_cond, grad_null), texts, strict=False):
            shared = part if leap.end - i == 1 else part / (leap.end - i)
            gradient[:, i : leap.end] = shared[:, None]
    return latents_of(grad_z, steps[0]), grad_cond, grad_null


def _at(text_btld: Tensor | None, i: int) -> Tensor | None:
    return None if text_btld is None else text_btld[:, i]


class UnrolledSampler(torch.autograd.Function):
    """``apply(functions, steps, last_steps, kept_steps, z, cond, null)``.

    Returns (last z, x0s (K, B, C, h, w)). Steps are only kept where a gradient is wanted.
    """

    @staticmethod
    def forward(ctx, functions, steps, last_steps, kept_steps, z, cond, null):
        kept_steps = kept_steps if any(ctx.needs_input_grad) else 0
        run = unrolled_forward(functions, z, cond, null, steps, last_steps, kept_steps)
        ctx.functions, ctx.steps, ctx.kept = functions, steps, run.kept
        ctx.save_for_backward(cond, null, *run.inputs)
        return run.last, torch.stack(list(run.x0s))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_last, grad_x0s):
        cond, null, *inputs = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, ()  # another backward (retain_graph) recomputes every step
        grads = unrolled_backward(
            ctx.functions, inputs, cond, null, ctx.steps, list(grad_x0s), grad_last, kept
        )
        return (None, None, None, None, *grads)
