"""Running the requests of tasks: all through one queue of their engine, so that its slots are full.

Small tasks that run one after the other leave most slots empty, and a batch of two takes nearly
three times as long an image as a batch of eight. A job's result does not depend on its neighbours,
so jobs of several tasks may share a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from fastdigin.engine.job import Job
from fastdigin.engine.queue import Stage
from fastdigin.errors import UserError
from fastdigin.results import Record

if TYPE_CHECKING:
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
    shares = []
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
        width = min(task.engine.slots, len(todo))
        shares.append(_Share(task, todo, chain(head, outcomes), width))
    return _records(shares, _owners(shares).__getitem__, on_progress)


def run_some(
    task: Task,
    requests: Sequence[Request],
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[Record]:
    """Records of some of a task's requests as jobs finish, failed ones included.

    Batches are as wide as the engine has slots, however few the requests are: how they were shared
    out must not change a result.
    """
    share = _Share(task, requests, _outcomes(task, requests), task.engine.slots)
    return (record for _, record in _records([share], lambda id: task, on_progress))


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
    shares: Sequence[_Share],
    owner_of: Callable[[str], Task],
    on_progress: Callable[[float], None] | None,
) -> Iterator[tuple[Task, Record]]:
    """Feeds the engine while slots are free, and explains what comes out."""
    failures: deque[tuple[Task, Record]] = deque()
    items = chain.from_iterable(share.work(failures) for share in shares)
    work = _Work(items, sum(max(len(share.todo), share.width) for share in shares))
    for result in shares[0].task.engine.run(work, _progress(shares, on_progress)):
        while failures:
            yield failures.popleft()
        owner = owner_of(result.id)
        yield owner, owner.record(result)
    yield from failures


def _owners(shares: Sequence[_Share]) -> dict[str, Task]:
    """The task of each request, by its id."""
    owners: dict[str, Task] = {}
    for share in shares:
        for request in share.todo:
            other = owners.setdefault(request.id, share.task)
            if other is not share.task:
                raise UserError(
                    f"tasks {other.name} and {share.task.name} both have an image "
                    f"{request.id!r}: run them one by one"
                )
    return owners


def _outcomes(task: Task, requests: Sequence[Request]) -> Iterator[_Outcome]:
    for request in requests:
        try:
            yield _Outcome(request, task.check(request))
        except UserError as error:
            yield _Outcome(request, error=error)


def _progress(
    shares: Sequence[_Share], on_progress: Callable[[float], None] | None
) -> Callable[[float], None] | None:
    """Turns iterations of a job into shares of an image's work."""
    images = sum(len(share.todo) for share in shares)
    if on_progress is None or not images:
        return None
    one = images / sum(share.iterations for share in shares)
    return lambda iterations: on_progress(one * iterations)
