"""Do the engine and the plain loop agree? To be asked before their speeds are compared."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import VARIABLES, Job
from fastdigin.errors import UserError
from fastdigin_bench.plain_loop import Gradients, first_gradients
from fastdigin_bench.plain_model import PlainModel

TOLERANCE = 1e-4  # of the first gradients in fp32 (design.md, section 3)


def gradient_errors(engine: Engine, plain: PlainModel, job: Job) -> dict[str, float]:
    """|engine - plain| / |plain| of iteration 0's gradients, in the 2-norm, of each variable."""
    actual, expected = engine_first_gradients(engine, job), first_gradients(plain, job)
    return {
        name: float((actual[name] - gradient).norm() / gradient.norm())
        for name, gradient in expected.items()
    }


def gradient_error(engine: Engine, plain: PlainModel, job: Job) -> float:
    """The largest of ``gradient_errors``. UserError where it is above TOLERANCE."""
    error = max(gradient_errors(engine, plain, job).values())
    if not error <= TOLERANCE:
        raise UserError(
            f"the first gradients differ by {error:.1e}, more than {TOLERANCE}: "
            "speeds of different computations are not compared"
        )
    return error


def engine_first_gradients(engine: Engine, job: Job) -> Gradients:
    """The engine's gradients of iteration 0, named and shaped as the plain loop's.

    They are read where the engine hands them over: torch.optim is called with a job's variables in
    the order of VARIABLES. RuntimeError if the job fails.
    """
    steps: list[list[Tensor]] = []

    def read(optimiser: Optimizer, args, kwargs) -> None:
        parameters = (p for group in optimiser.param_groups for p in group["params"])
        steps.append([p.grad.clone() for p in parameters])

    hook = register_optimizer_step_pre_hook(read)
    try:
        (result,) = engine.run([replace(job, settings=replace(job.settings, iterations=1))])
    finally:
        hook.remove()
    if result.error is not None:
        raise RuntimeError(f"the engine failed at job {job.id!r}: {result.error}")
    (gradients,) = steps
    return dict(zip(VARIABLES, gradients, strict=False))  # without guidance there is no null text
