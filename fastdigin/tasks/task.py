"""What all tasks share: inputs become requests, requests jobs, results records.

A task is one file: its settings, its record (:class:`fastdigin.results.Record`), and a subclass of
:class:`Task` with ``requests``, ``jobs`` and ``explain``. The command line, the report, resuming,
progress and the settings in run.json follow from these (tasks/__init__.py registers it).
"""

from __future__ import annotations

import dataclasses
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch

from fastdigin.configuration import COUNT, check_value, plain
from fastdigin.engine.checks import check_mode
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job, Result, Unmade
from fastdigin.engine.leaps import leaping_path
from fastdigin.engine.queue import Stage
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.classifiers.checks import Differentiable, check_classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.results import Record
from fastdigin.storage import fingerprint
from fastdigin.tasks.running import run_together

log = logging.getLogger(__name__)

_INPUT = "fastdigin input"


@dataclass(frozen=True)
class Input:
    """What is known of an input of a task beside its type and its default.

    help: for people, without a full stop. kind: how the command line reads it
    (commands/inputs.py). flag: of the command line, where it is not the field's name. metavar: of
    the value in help texts. embedded: the text that stands for the value where the model is the
    packaged one and the user says nothing. layer: of a classifier whose neurons are meant; --layer
    names them. optimised: what of a classifier has to have a gradient; None if it is only asked.
    affects: whether it belongs to the settings of run.json. name, default: the field's.
    """

    help: str
    name: str = ""
    default: Any = None
    kind: str = "text"
    flag: str = ""
    metavar: str | None = None
    embedded: str | None = None
    layer: bool = False
    optimised: Differentiable | None = "logits"
    affects: bool = True


def given(help: str, *, default: Any = dataclasses.MISSING, **known: Any) -> Any:
    """A field of a task that its user gives; the command line makes an argument of it."""
    return field(default=default, kw_only=True, metadata={_INPUT: Input(help, **known)})


def inputs_of(task: type[Task]) -> list[Input]:
    """What is known of the fields made by :func:`given`."""
    return [
        replace(f.metadata[_INPUT], name=f.name, default=f.default)
        for f in dataclasses.fields(task)
        if _INPUT in f.metadata
    ]


@dataclass(frozen=True)
class Request:
    """One image that a task is asked for. id: names its result, whatever runs beside it."""

    id: str


@dataclass(kw_only=True)
class Task(ABC):
    """One explanation method with all that it needs, checked and ready to run.

    Subclasses are dataclasses too. They add their inputs by :func:`given` and say:

    name: of the task in results and on the command line. record_type: of its records.
    settings_type: a frozen dataclass with a field ``optimisation`` (:class:`fastdigin.Settings`).
    embedded_settings: the defaults for the packaged model, where they are not those of the class.

    Args:
        engine: runs the jobs.
        settings: of settings_type; None takes the defaults for the engine's model.
        seed: of all that is random.

    Raises:
        UserError: for anything that would fail later, before any work starts.

    Example:
        >>> @fd.register
        ... @dataclass(kw_only=True)
        ... class Brightness(fd.Task):
        ...     "Makes images brighter."
        ...     name = "brightness"
        ...     record_type, settings_type = BrightnessRecord, BrightnessSettings
    """

    name: ClassVar[str]
    record_type: ClassVar[type[Record]]
    settings_type: ClassVar[type]
    embedded_settings: ClassVar[Any] = None

    engine: Engine
    settings: Any = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_mode()
        if self.settings is None:
            self.settings = self.default_settings(self.model)
        for known in inputs_of(type(self)):
            value = getattr(self, known.name)
            if known.kind == "count":
                check_value(known.name, value, int, COUNT)
            if isinstance(value, Classifier):
                check_classifier(value.to(self.model.device), known.optimised)
        settings = self.settings.optimisation
        table = self.model.ddim_table(settings.steps)  # raises where there are too many
        leaping_path(table, settings.last_steps, settings.leap)  # raises likewise
        self.prepare()
        self.requests: Sequence[Request] = self.make_requests()

    @property
    def model(self) -> LatentDiffusion:
        return self.engine.model

    @property
    def classifiers(self) -> list[Classifier]:
        """All classifiers among the inputs."""
        values = (getattr(self, known.name) for known in inputs_of(type(self)))
        return [value for value in values if isinstance(value, Classifier)]

    @classmethod
    def default_settings(cls, model: LatentDiffusion) -> Any:
        """The paper's, with the model's usual steps and guidance, or the packaged model's own."""
        if model.name == "embedded" and cls.embedded_settings is not None:
            return cls.embedded_settings
        settings = cls.settings_type()
        usual = {"steps": model.usual_steps, "guidance_scale": model.usual_guidance_scale}
        return replace(settings, optimisation=replace(settings.optimisation, **usual))

    @cached_property
    def run_settings(self) -> dict[str, Any]:
        """Settings that affect the results, as JSON values, for run.json."""
        found = plain(self.settings) | {"model": self.model.name, "seed": self.seed}
        found |= {"dtype": _unusual(self.model.dtype), **self.model.unusual()}
        for known in inputs_of(type(self)):
            if known.affects:
                found |= _described(getattr(self, known.name), known)
        if self.classifiers:  # the classes of a zero-shot classifier are the user's
            found["classes"] = fingerprint(*(c.classes for c in self.classifiers))
        return found | self.measured()

    def prepare(self) -> None:  # noqa: B027 - most tasks have nothing to add
        """Checks the inputs, and does whatever is needed before the requests are known."""

    def measured(self) -> dict[str, Any]:
        """What ``prepare`` found that affects the results, for run.json."""
        return {}

    @abstractmethod
    def make_requests(self) -> Sequence[Request]:
        """All images that are asked for, in their order, with ids that differ.

        Cheap: no photo is opened. Called once; ``requests`` keeps what it returned.
        """

    def check(self, request: Request) -> Any:
        """What ``jobs`` takes for a request, made when its turn comes. UserError fails it alone."""
        return request

    @abstractmethod
    def jobs(self, checked: Sequence[Any], width: int) -> Sequence[Job | Stage]:
        """The work of some requests, as :meth:`check` returned them.

        width: how many requests a batch holds when it is full. Work that runs in batches of its own
        takes this width for a last batch that is not full too, so that an image's result does not
        depend on how many others there are.
        """

    @abstractmethod
    def explain(self, result: Result) -> Record:
        """The record of a finished or failed job."""

    def record(self, result: Result) -> Record:
        """What ``explain`` makes of a result; a failed record where there is nothing to explain.

        An exception of ``explain``, such as one of a judge of the user's, fails this job alone.
        """
        if isinstance(result.job, Unmade):
            return self.failure(result.id, result.error)
        try:
            return self.explain(result)
        except Exception as error:
            known = isinstance(error, UserError)
            log.warning("%s: %s", result.id, error, exc_info=not known)
            return self.failure(
                result.id, str(error) if known else f"{type(error).__name__}: {error}"
            )

    def preparation(self, requests: Sequence[Request]) -> float:
        """The work before the iterations of these requests, in iterations of one job."""
        return 0.0

    def run(
        self,
        *,
        skip: Collection[str] = (),
        on_progress: Callable[[float], None] | None = None,
    ) -> Iterator[Record]:
        """Records as jobs finish, failed ones included.

        Args:
            skip: ids not to do again.
            on_progress: called with the share of one image's work that was just done.

        Raises:
            UserError: at once, where every request fails its check.
        """
        return (record for _, record in run_together([self], [skip], on_progress))

    def fills(self, checked: Sequence[Any], width: int) -> bool:
        """Whether these requests are enough work for ``width`` slots."""
        return len(checked) == width

    def failure(self, id: str, error: str) -> Record:
        """The record of a request that came to nothing."""
        return self.record_type.failure(id, self.seed, error, self.run_settings)


@dataclass(frozen=True)
class Preparation:
    """The stage that makes the jobs of some requests.

    ids: of the requests. make: takes what tells progress, as a stage's ``advance``. parts: see
    :class:`fastdigin.Stage`; none by default.
    """

    ids: Sequence[str]
    make: Callable[[Callable[[float], None]], Sequence[Job | Stage]]
    parts: Callable[[bool], Sequence[Stage]] = lambda out_of_memory: ()

    @property
    def count(self) -> int:
        return len(self.ids)

    def run(self, engine: Engine, advance: Callable[[float], None]) -> Sequence[Job | Stage]:
        return self.make(advance)

    def failed(self, error: str) -> list[Result]:
        return [Result.failure(Unmade(id), error) for id in self.ids]


def _unusual(dtype: torch.dtype) -> str | None:
    """Its name; None for fp32, the only one of older versions, which did not write it."""
    return None if dtype is torch.float32 else str(dtype).removeprefix("torch.")


def _described(value: Any, known: Input) -> dict[str, Any]:
    if isinstance(value, Classifier):
        own = {known.name: value.name, f"{known.name}_dtype": _unusual(value.dtype)}
        return own | ({"layer": value.layer} if known.layer else {})
    if hasattr(value, "described"):
        return value.described()
    return {known.name: getattr(value, "__name__", str(value)) if callable(value) else plain(value)}
