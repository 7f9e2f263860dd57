"""The run of a task that edits photos: prepare a batch, let the engine work, explain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job, Result
from fastdigin.errors import UserError
from fastdigin.tasks.explanation import Explanation, failure

# How much of an image's work preparing it is, in iterations; for the progress bar only.
PREPARATION = 2


def run_photo_jobs(
    engine: Engine,
    task: str,
    requests: Sequence[Any],
    failures: Sequence[tuple[str, UserError]],
    make_jobs: Callable[..., Iterable[Job]],
    explain_result: Callable[[Result], Explanation],
    settings: Mapping[str, Any],
    on_progress: Callable[[float], None] | None,
) -> Iterator[Explanation]:
    """Explanations as jobs finish, those that failed the checks first.

    make_jobs: called as make_jobs(requests, batch=, on_step=) for as many requests as the engine
    has slots, when the engine is ready for them: photos are read and inverted a batch at a time,
    however many there are. Every batch has the width of the first, so that an image's result does
    not depend on how many follow it. settings: for run.json.
    """
    share = 1 / (settings["optimisation"]["iterations"] + 1 + PREPARATION)
    batch = min(engine.slots, len(requests))

    def progress(weight: float) -> Callable[[float], None] | None:
        return on_progress and (lambda count: on_progress(weight * share * count))

    def jobs() -> Iterator[Job]:
        for start in range(0, len(requests), engine.slots):
            part = requests[start : start + engine.slots]
            yield from make_jobs(part, batch=batch, on_step=progress(PREPARATION))

    for id, error in failures:
        yield failure(task, id, settings["seed"], str(error), settings)
    for result in engine.run(jobs(), on_iteration=progress(1)):
        yield explain_result(result)
