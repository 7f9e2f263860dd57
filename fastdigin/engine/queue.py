"""What waits for a slot: jobs, and stages that make jobs when their turn comes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import length_hint
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fastdigin.engine.job import Job, Result
from fastdigin.engine.progress import EVALUATION, Told
from fastdigin.errors import UserError

if TYPE_CHECKING:
    from fastdigin.engine.engine import Engine


@runtime_checkable
class Stage(Protocol):
    """Work that comes before jobs, and ends in jobs: an inversion, a search.

    A stage waits in the engine's queue and is run when it stands at the head and a slot is free.
    The slots keep their jobs meanwhile and do not advance.

    count: how many jobs the stage will become.

    A stage may have a method ``parts(out_of_memory)`` as well: stages that do the same, which take
    its place when ``run`` has failed. Where memory ran out, each needs half of it; else each makes
    one job, so that the guilty one fails alone. Where there are none, the stage has failed.
    """

    count: int

    def run(
        self, engine: Engine, advance: Callable[[float], None]
    ) -> Sequence[Job | Stage | Result]:
        """Does the work.

        Args:
            engine: for ``engine.evaluate``, ``engine.run`` and ``engine.functions``, which leave
                the batch that waits as it is. ``engine.step`` may not be called.
            advance: may be called with the work that was just done, in iterations of one job.

        Returns:
            What takes the stage's place at the head of the queue. A Result among it is one that
            is known already: of a photo that cannot be read, say.

        Raises:
            Exception: any, and the stage has failed; nothing else has.
        """

    def failed(self, error: str) -> Sequence[Result]:
        """The failed Results of the stage's jobs, after ``run`` has raised."""


@dataclass(frozen=True)
class Search:
    """The stage that looks for the best start: of each group of jobs, one is optimised.

    It is the one with the smallest plain loss before any update. All candidates are evaluated in
    the same batches. One that fails counts as the worst; one that is alone is not evaluated.

    Args:
        groups: candidates, at least one a group.
        by: the loss that decides, as the history names it.
        tries: how many evaluations a group is expected to take, for progress only.

    Example:
        engine.submit([Search([[gentle_job, strong_job]])])
    """

    groups: Sequence[Sequence[Job]]
    by: str = "total"
    tries: int = 0

    @property
    def count(self) -> int:
        return len(self.groups)

    def run(self, engine: Engine, advance: Callable[[float], None]) -> list[Job]:
        """The best job of each group, in the order of the groups."""
        candidates = [job for group in self.groups if len(group) > 1 for job in group]
        told = Told(advance, self.count * self.tries * EVALUATION, len(candidates))
        results = iter(engine.evaluate(candidates, told.add))
        return [
            group[0] if len(group) == 1 else self._best(group, [next(results) for _ in group])
            for group in self.groups
        ]

    def parts(self, out_of_memory: bool) -> list[Search]:
        if out_of_memory or self.count == 1:
            return []
        return [replace(self, groups=[group]) for group in self.groups]

    def failed(self, error: str) -> list[Result]:
        return [Result.failure(group[0], error) for group in self.groups]

    def _best(self, group: Sequence[Job], results: Sequence[Result]) -> Job:
        losses = [r.history[0][self.by] if r.history else float("inf") for r in results]
        return group[losses.index(min(losses))]


KINDS = (Job, Stage)
"""What a user may put into the queue."""


class Queue:
    """Jobs and stages in order. Whatever is read lazily comes after what was submitted.

    Args:
        lazy: read one at a time, when the queue is empty otherwise. Its length hint, if it has one,
            counts jobs.
    """

    def __init__(self, lazy: Iterable[Job | Stage] = ()):
        self._items: deque[Job | Stage | Result] = deque()
        self._lazy, self._expected = checked(lazy, KINDS, "jobs"), length_hint(lazy)

    def submit(self, items: Iterable[Job | Stage]) -> None:
        """Appends all, or nothing where one of them is neither a job nor a stage: UserError."""
        self._items.extend(list(checked(items, KINDS, "jobs")))

    @property
    def waiting(self) -> int:
        """How many jobs are known to follow."""
        return sum(map(_jobs_of, list(self._items))) + max(self._expected, 0)

    def __bool__(self) -> bool:
        """Whether anything is left; reads one more if it must."""
        if not self._items and (item := next(self._lazy, None)) is not None:
            self._items.append(item)
            self._expected -= _jobs_of(item)
        return bool(self._items)

    def head(
        self, run_stage: Callable[[Stage], Iterable[Job | Stage | Result]]
    ) -> Job | Result | None:
        """The next job, or the result of one that has failed already; None at the end.

        Stages that stand before it are run, and make place for what they return.
        """
        while self:
            item = self._items[0]
            if not isinstance(item, Stage):
                return item
            self._items.popleft()
            self._items.extendleft(reversed(list(run_stage(item))))
        return None

    def pop(self) -> None:
        """Takes the head away."""
        self._items.popleft()


def _jobs_of(item: Job | Stage | Result) -> int:
    return item.count if isinstance(item, Stage) else 1


def checked(items: Iterable, kinds: tuple[type, ...], name: str) -> Iterator:
    """The items, one at a time; UserError for the first that is of none of the kinds."""
    wanted = " or ".join(kind.__name__ for kind in kinds)
    if not isinstance(items, Iterable):
        raise UserError(f"{name} is {items!r:.80}, wanted a list, each a {wanted}")

    def one_each() -> Iterator:
        for position, item in enumerate(items):
            if not isinstance(item, kinds):
                raise UserError(
                    f"{name}[{position}] is {item!r:.80}, wanted a {wanted}: leave out what has "
                    "none"
                )
            yield item

    return one_each()
