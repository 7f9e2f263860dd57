"""Running the requests of tasks: all through one queue of their engine, so that its slots are full.

Small tasks that run one after the other leave most slots empty. A job's result does not depend on
its neighbours, so jobs of several tasks may share a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from fastdigin.engine.job import Job
from fastdigin.engine.queue import Stage
from fastdigin.errors import UserError
from fastdigin.results import Record

if TYPE_CHECKING:
    from fastdigin.engine.engine import Engine
    from fastdigin.tasks.task import Request, Task


def run_together(
    tasks: Sequence[Task],
    skips: Sequence[Collection[str]],
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[tuple[Task, Record]]:
    """(task, record) as jobs of any of the tasks finish, failed ones included.

    Args:
        tasks: of one engine.
        skips: ids not to do again, of each task.
        on_progress: called with the share of one image's work that was just done.

    Raises:
        UserError: at once, where every request of a task fails its check, or an id is that of
            requests of two tasks.
    """
    shares, engine = [], tasks[0].engine
    for task, skip in zip(tasks, skips, strict=True):
        todo = [request for request in task.requests if request.id not in skip]
        outcomes = _outcomes(task, todo)
        head: list[_Outcome] = []
        for outcome in outcomes:
            head.append(outcome)
            if outcome.error is None:
                break
        else:
            if head and len(head) == len(task.requests):
                raise head[0].error
        width = min(engine.slots, len(todo))
        shares.append(_Share(task, todo, chain(head, outcomes), width))
    _check_ids(shares)
    progress = _Progress(on_progress)
    for share in shares:
        progress.expect(share)
    return _records(engine, shares, sum(len(share.todo) for share in shares), progress.advance)


def run_stream(
    engine: Engine,
    work: Iterable[tuple[Task, Sequence[Request]]],
    expected: int,
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[tuple[Task, Record]]:
    """(task, record) of some requests as jobs finish, failed ones included.

    For runs that come by their requests bit by bit (fastdigin.scale). Batches are as wide as the
    engine has slots, however few the requests are: how they were shared out must not change a
    result.

    Args:
        engine: of all tasks.
        work: requests of a task, with ids that differ from all that are under way. Read when slots
            are free, so that it may come to know of more while the first are done.
        expected: about how many requests there will be, for the engine's plans.
        on_progress: as for :func:`run_together`.
    """
    progress = _Progress(on_progress)

    def shares() -> Iterator[_Share]:
        for task, todo in work:
            share = _Share(task, todo, _outcomes(task, todo), engine.slots)
            progress.expect(share)
            yield share

    return _records(engine, shares(), max(expected, engine.slots), progress.advance)


@dataclass(frozen=True)
class _Outcome:
    """What came of checking a request."""

    request: Request
    checked: Any = None
    error: UserError | None = None


@dataclass(frozen=True)
class _Share:
    """What is asked of one task. width: see ``Task.jobs``."""

    task: Task
    todo: Sequence[Request]
    outcomes: Iterator[_Outcome]
    width: int

    def work(self, failures: deque[tuple[Task, Record]]) -> Iterator[Job | Stage]:
        """The work of a batch of requests at a time; requests that fail their check come aside."""
        checked = []
        for outcome in self.outcomes:
            if outcome.error is not None:
                failure = self.task.failure(outcome.request.id, str(outcome.error))
                failures.append((self.task, failure))
                continue
            checked.append(outcome.checked)
            if self.task.fills(checked, self.width):
                yield from self.task.jobs(checked, self.width)
                checked = []
        if checked:
            yield from self.task.jobs(checked, self.width)

    @property
    def iterations(self) -> float:
        """All its work, in iterations of one job."""
        each = self.task.settings.optimisation.iterations + 1
        return len(self.todo) * each + self.task.preparation(self.todo)


@dataclass(frozen=True)
class _Work:
    """Work that is made when its turn comes. count: how many jobs it is, for the engine's plans."""

    items: Iterator[Job | Stage]
    count: int

    def __iter__(self) -> Iterator[Job | Stage]:
        return self.items

    def __length_hint__(self) -> int:
        return self.count


def _records(
    engine: Engine,
    shares: Iterable[_Share],
    count: int,
    advance: Callable[[float], None],
) -> Iterator[tuple[Task, Record]]:
    """Feeds the engine while slots are free, and explains what comes out."""
    owners: dict[str, Task] = {}
    failures: deque[tuple[Task, Record]] = deque()

    def items() -> Iterator[Job | Stage]:
        for share in shares:
            owners.update(dict.fromkeys((request.id for request in share.todo), share.task))
            yield from share.work(failures)

    for result in engine.run(_Work(items(), count), advance):
        while failures:
            yield failures.popleft()
        owner = owners.pop(result.id)
        yield owner, owner.record(result)
    yield from failures


def _check_ids(shares: Sequence[_Share]) -> None:
    """Raises UserError where two tasks have an image of one id."""
    owners: dict[str, Task] = {}
    for share in shares:
        for request in share.todo:
            other = owners.setdefault(request.id, share.task)
            if other is not share.task:
                raise UserError(
                    f"tasks {other.name} and {share.task.name} both have an image "
                    f"{request.id!r}: run them one by one"
                )


def _outcomes(task: Task, requests: Sequence[Request]) -> Iterator[_Outcome]:
    for request in requests:
        try:
            yield _Outcome(request, task.check(request))
        except UserError as error:
            yield _Outcome(request, error=error)


class _Progress:
    """Turns iterations of a job into shares of an image's work."""

    def __init__(self, on_progress: Callable[[float], None] | None):
        self._on_progress, self._images, self._iterations = on_progress, 0, 0.0

    def expect(self, share: _Share) -> None:
        """There is this to do as well."""
        self._images += len(share.todo)
        self._iterations += share.iterations

    def advance(self, iterations: float) -> None:
        """So many of a job are done."""
        if self._on_progress is not None:
            self._on_progress(iterations * self._images / self._iterations)
