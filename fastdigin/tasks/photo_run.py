"""The run of a task that edits photos: check, prepare a batch, let the engine work, explain."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
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
    plans: Sequence[tuple],
    check: Callable[[tuple], Any],
    make_jobs: Callable[..., Iterable[Job]],
    explain_result: Callable[[Result], Explanation],
    settings: Mapping[str, Any],
    *,
    skip: Collection[str],
    on_progress: Callable[[float], None] | None,
) -> Iterator[Explanation]:
    """Explanations as jobs finish, and of those that fail their checks.

    plans: tuples that begin with the job's id; those in ``skip`` are not looked at. check: turns a
    plan into what make_jobs takes, or raises UserError.
    make_jobs: called as make_jobs(checked, batch=, on_step=) for as many as the engine has slots,
    when the engine is ready for them: photos are checked, read and inverted a batch at a time,
    however many there are. Every batch has the width of the first, so that an image's result does
    not depend on how many follow it. settings: for run.json.
    Raises UserError at once where every plan fails its check.
    """
    todo = [plan for plan in plans if plan[0] not in skip]
    outcomes = _outcomes(todo, check)
    head = []
    for outcome in outcomes:
        head.append(outcome)
        if outcome[1] is None:
            break
    else:
        if len(head) == len(plans):
            raise head[0][1]
    share = 1 / (settings["optimisation"]["iterations"] + 1 + PREPARATION)
    failed: deque[tuple[str, UserError]] = deque()

    def progress(weight: float) -> Callable[[float], None] | None:
        return on_progress and (lambda count: on_progress(weight * share * count))

    def jobs() -> Iterator[Job]:
        batch = min(engine.slots, len(todo))
        waiting = []
        for id, error, checked in chain(head, outcomes):
            if error is not None:
                failed.append((id, error))
                continue
            waiting.append(checked)
            if len(waiting) == batch:
                yield from make_jobs(waiting, batch=batch, on_step=progress(PREPARATION))
                waiting = []
        if waiting:
            yield from make_jobs(waiting, batch=batch, on_step=progress(PREPARATION))

    def failures() -> Iterator[Explanation]:
        while failed:
            id, error = failed.popleft()
            yield failure(task, id, settings["seed"], str(error), settings)

    def explanations() -> Iterator[Explanation]:
        for result in engine.run(jobs(), progress(1)):
            yield from failures()
            yield explain_result(result)
        yield from failures()

    return explanations()


def _outcomes(
    plans: Iterable[tuple], check: Callable[[tuple], Any]
) -> Iterator[tuple[str, UserError | None, Any]]:
    """(id, error, what was checked), one at a time."""
    for plan in plans:
        try:
            yield plan[0], None, check(plan)
        except UserError as error:
            yield plan[0], error, None
