"""The functions of a step, compiled: one graph each, and no more than are declared.

A graph belongs to a ``GraphKey``: what it computes (the forward of a step, the joint recomputation
and vector-Jacobian product, or a kept step with its autograd graph), whether attention is injected,
whether there is a null branch, and the number of rows. Nothing else may vary:

- What differs from step to step and from job to job is a tensor: timestep, coefficients, guidance,
  weights. Shapes are static, and every tensor is handed over with the strides of a contiguous one.
- Blending, a solver's noise and offsets are always there, as zeros where a step has none: they
  touch latents alone, which costs nothing beside a U-Net call, and would else make eight graphs of
  each. So are the gradients of z_prev and x0. z + 0 is z, and 0 * source + 1 * z too.
- Injection is a graph of its own, because it doubles the work of its attention layers, and so is
  self-attention's; so is guidance, because without it the U-Net has half the rows.
- Another number of rows than those declared is left to the functions of ``StepFunctions``.

The joint step is an inference graph: torch.func.vjp is called and consumed inside the compiled
region. A kept step is an ordinary compiled autograd graph.
"""

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fastdigin.engine.graphs import Graphs, recorded
from fastdigin.engine.sampler import (
    Step,
    StepFunctions,
    StepGraph,
    guided_step,
    latents_of,
)
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.models.precision import rescaled

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GraphKey:
    """What a graph is for. rows: of z; the U-Net has twice as many where there is guidance."""

    role: Literal["forward", "joint", "kept"]
    rows: int
    guided: bool
    injected: bool
    injected_self: bool = False


class DeclaredStepFunctions(StepFunctions, ABC):
    """Does what ``StepFunctions`` does by a function of its own for each GraphKey.

    Args:
        rows: how many samples a batch may have; others are left to ``StepFunctions``. None is any.
    """

    def __init__(self, model: LatentDiffusion, rows: Collection[int] | None = None):
        super().__init__(model)
        self.rows = None if rows is None else frozenset(rows)
        self._made: dict[GraphKey, Callable] = {}

    @abstractmethod
    def make(self, key: GraphKey) -> Callable:
        """The function for a key: of the model, z, cond, null, Step and, if joint, gradients."""

    def forward(self, z, cond, null, step: Step) -> tuple[Tensor, Tensor]:
        if self._undeclared(z):
            return super().forward(z, cond, null, step)
        function = self._function("forward", z, null, step)
        with torch.no_grad():
            return function(self.model, *self._given(z, cond, null), self._filled(step, z))

    def forward_with_graph(self, z, cond, null, step: Step) -> StepGraph:
        if self._undeclared(z):
            return super().forward_with_graph(z, cond, null, step)
        function = self._function("kept", z, null, step)
        z, cond, null = self._given(z, cond, null)
        variables = tuple(x.requires_grad_() for x in (z, cond, null) if x is not None)
        with torch.enable_grad():
            z_prev, x0 = function(self.model, z, cond, null, self._filled(step, z))
        return StepGraph(variables, z_prev, x0)

    def joint(self, z, cond, null, step: Step, grad_z_prev, grad_x0) -> tuple[Tensor, ...]:
        if self._undeclared(z):
            return super().joint(z, cond, null, step, grad_z_prev, grad_x0)
        function = self._function("joint", z, null, step)
        outputs = (z, grad_z_prev), (latents_of(z, step), grad_x0)
        gradients = [torch.zeros_like(x) if g is None else g for x, g in outputs]
        with torch.no_grad():
            return function(
                self.model,
                *self._given(z, cond, null),
                self._filled(step, z),
                *self._given(*gradients),
            )

    def _function(self, role, z: Tensor, null: Tensor | None, step: Step) -> Callable:
        injected = step.injected is not None, step.injected_self is not None
        return self.function(GraphKey(role, len(z), null is not None, *injected))

    def function(self, key: GraphKey) -> Callable:
        """What ``make`` made, once."""
        if key not in self._made:
            self._made[key] = self.make(key)
        return self._made[key]

    def _given(self, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """The tensors as functions take them."""
        return _plain(*tensors)

    def _filled(self, step: Step, z: Tensor) -> Step:
        """The step with the tensors that a graph always has."""
        z = latents_of(z, step)
        weight, source = step.blend or (z.new_zeros(len(z), 1, *z.shape[2:]), torch.zeros_like(z))
        names = ("timestep", "coefficients", "guidance", "vector")
        values = self._given(*(getattr(step, name) for name in names))
        added = [torch.zeros_like(z) if x is None else x for x in (step.noise, step.offset)]
        weight, source, noise, offset = self._given(weight, source, *added)
        known = dict(zip(names, values, strict=True))
        return replace(step, **known, blend=(weight, source), noise=noise, offset=offset)

    def _undeclared(self, z: Tensor) -> bool:
        return self.rows is not None and len(z) not in self.rows


class CompiledStepFunctions(DeclaredStepFunctions):
    """Compiles what ``StepFunctions`` does, for batches of ``rows`` samples.

    backend: of torch.compile. ``graphs`` counts the graphs that were compiled for each key: one,
    if all is well; a second one is logged as a warning.
    """

    def __init__(
        self, model: LatentDiffusion, rows: Collection[int], backend: str | Callable = "inductor"
    ):
        super().__init__(model, rows)
        self.graphs: Counter[GraphKey] = Counter()
        self._backend = backend

    def make(self, key: GraphKey) -> Callable:
        # Of its own, so that no key's guards are looked through for another's.
        return torch.compile(
            _ROLES[key.role],
            fullgraph=True,
            dynamic=False,
            backend=self._counting(key),
            isolate_recompiles=True,
        )

    def _counting(self, key: GraphKey) -> Callable:
        """The backend, with a note of what it compiles."""

        def compile_graph(graph: torch.fx.GraphModule, example_inputs) -> Callable:
            self.graphs[key] += 1
            if self.graphs[key] > 1:
                log.warning("compiling graph %d of %s; one was expected", self.graphs[key], key)
            else:
                log.info("compiling %s", key)
            backend = self._backend
            if isinstance(backend, str):
                backend = torch._dynamo.lookup_backend(backend)
            return backend(graph, example_inputs)

        return compile_graph


class RecordedStepFunctions(DeclaredStepFunctions):
    """Replays what ``StepFunctions`` does, or what ``compiled`` made of it (graphs.py)."""

    def __init__(
        self, model: LatentDiffusion, graphs: Graphs, compiled: CompiledStepFunctions | None = None
    ):
        super().__init__(model, None if compiled is None else compiled.rows)
        self._graphs, self.compiled = graphs, compiled

    def _given(self, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        if self.compiled is not None:
            return super()._given(*tensors)
        return tuple(None if x is None else x.detach() for x in tensors)  # in any layout

    def make(self, key: GraphKey) -> Callable:
        if self.compiled is None:
            return recorded(self._graphs, ("step", key), _EAGER[key.role])
        return recorded(self._graphs, ("compiled", key), self.compiled.function(key))


def _eager_joint(model, z, cond, null, step: Step, grad_z_prev, grad_x0) -> tuple[Tensor, ...]:
    return StepFunctions(model).joint(z, cond, null, step, grad_z_prev, grad_x0)


def _joint(model, z, cond, null, step: Step, grad_z_prev, grad_x0) -> tuple[Tensor, ...]:
    """Gradients of z, cond and, with guidance, null."""
    variables = (z, cond) if null is None else (z, cond, null)

    def run(z, cond, null=None):
        return guided_step(model, z, cond, null, step)

    _, pull_back = torch.func.vjp(run, *variables)
    if model.dtype == z.dtype:
        return pull_back((grad_z_prev, grad_x0))
    return rescaled(lambda scaled: pull_back(tuple(scaled)), grad_z_prev, grad_x0)


_ROLES = {"forward": guided_step, "kept": guided_step, "joint": _joint}
_EAGER = {**_ROLES, "joint": _eager_joint}


def _plain(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Each without history and with the strides of its shape, copied only where it is not dense.

    ``contiguous`` and ``reshape`` keep any strides of dimensions of size 1 (0 after ``expand``),
    and a compiled graph looks at those.
    """
    return tuple(None if x is None else _with_strides_of_shape(x.detach()) for x in tensors)


def _with_strides_of_shape(x: Tensor) -> Tensor:
    strides = torch.empty(x.shape, device="meta").stride()
    return x if x.stride() == strides else x.contiguous().as_strided(x.shape, strides)
