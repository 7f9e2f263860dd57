"""``Record``: what a task yields for each job, and a line of results.jsonl.

A task has one subclass, whose fields are the keys of its lines beside the common ones. The store,
the console, the report, resuming and the table of keys derive from it; ``register`` makes a class
known by its task's name.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from fastdigin.results.card import card_html
from fastdigin.results.keys import aside, fits, key, keys_of
from fastdigin.results.pictures import difference_picture, read_picture
from fastdigin.results.store import (
    IMAGE_KEYS,
    SCHEMA,
    ResultStore,
    jsonable,
    picture_path,
    read_lines,
)
from fastdigin.results.views import Cross, View, suggested

if TYPE_CHECKING:  # results lie below the engine
    from typing_extensions import Self

    from fastdigin.engine.job import Result


log = logging.getLogger(__name__)


def _picture(name: str) -> property:
    doc = f"{IMAGE_KEYS[name].capitalize()}, or None."
    return property(lambda record: record.picture(name), doc=doc)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished (or failed) job of a task.

    A subclass declares ``task`` (the name in results.jsonl), ``title``, ``question`` and
    ``explanation`` (the report's section), its fields, and in ``shows`` what the table, the card
    and the summary show of them; ``crossed`` are tables of all records of the task; records that
    agree in all attributes of ``beside`` are explanations of one photo, shown in a row.

    pictures: name -> image (3, H, W) or mask (H, W) in [0, 1]; the names are IMAGE_KEYS. Those of
    a record that was read lie in ``folder`` at ``paths``. settings: those that affect the result,
    for run.json. result: the engine's, with latents and texts; None if it never got there. extra:
    keys of a line that the class does not know.
    """

    task: ClassVar[str]
    title: ClassVar[str] = ""
    question: ClassVar[str] = ""
    explanation: ClassVar[str] = ""
    shows: ClassVar[Sequence[View]] = ()
    crossed: ClassVar[Sequence[Cross]] = ()
    beside: ClassVar[Sequence[str]] = ()

    id: str = key("names the job among those of its task", MISSING)
    status: Literal["done", "failed"] = key('"done" or "failed"', "done")
    error: str | None = key("why the job failed; only a failed job has it")
    seed: int = key("of the job's random draws", 0)
    iterations: int = key("updates made", 0)
    seconds: float = key("the job's share of its batches' iterations", 0.0)
    caption: str = key("one sentence for people", "")
    history: Sequence[Mapping[str, float | None]] = key(
        'a {"total": loss, name: value, ...} per iteration from 0, of the plain image; names with '
        '"confidence" or "activation" in them are drawn as curves', (),
    )  # fmt: skip
    best_iteration: int | None = key("the iteration that the image is of")

    pictures: Mapping[str, Tensor] = aside(default_factory=dict)
    settings: Mapping[str, Any] = aside(default_factory=dict)
    result: Any = aside(default=None)
    extra: Mapping[str, Any] = aside(default_factory=dict)
    paths: Mapping[str, str] = aside(default_factory=dict)
    folder: Path | None = aside(default=None)

    @classmethod
    def of(
        cls,
        result: Result,
        *,
        settings: Mapping[str, Any],
        before: Tensor | None,
        input_image: Tensor | None = None,
        mask: Tensor | None = None,
        **own: Any,
    ) -> Self:
        """The record of an engine Result.

        Args:
            settings: those that affect the result, for run.json.
            before: (3, H, W), what the image is compared with.
            input_image: (3, H, W), the user's photo. mask: (H, W), its foreground.
            own: the caption and the fields of the class.
        """
        images = {"image": result.image, "initial_image": before, "input_image": input_image}
        if result.image is not None and before is not None:
            images["difference"] = difference_picture(before, result.image)
        images["mask"] = mask
        return cls(
            id=result.id,
            status=result.status,
            error=result.error,
            seed=result.job.seed,
            iterations=result.iterations,
            seconds=round(result.seconds, 3),
            history=list(result.history),
            best_iteration=result.best_iteration,
            pictures={name: x.float().cpu() for name, x in images.items() if x is not None},
            settings=settings,
            result=result,
            **own,
        )

    @classmethod
    def failure(cls, id: str, seed: int, error: str, settings: Mapping[str, Any]) -> Self:
        """The record of a job that could not even be set up."""
        told = {"error": error, "caption": "This job failed before it started."}
        return cls(id=id, status="failed", seed=seed, settings=settings, **told)

    @classmethod
    def from_dict(cls, line: Mapping[str, Any], folder: Path | None = None) -> Record:
        """The record of a line of results.jsonl in ``folder``; the line names its class."""
        cls = record_class(line["task"])
        names = {key.name: attribute for attribute, key in keys_of(cls).items()}
        rest = line.keys() - names - {"schema", "task", *IMAGE_KEYS}
        return cls(
            **{names[name]: line[name] for name in names.keys() & line.keys()},
            extra={name: line[name] for name in line if name in rest},
            paths={name: line[name] for name in IMAGE_KEYS if line.get(name)},
            folder=folder,
        )

    @classmethod
    def views(cls) -> Sequence[View]:
        """What is shown of a record: as declared, or else by the types of the fields."""
        common = keys_of(Record)
        own = {name: key for name, key in keys_of(cls).items() if name not in common}
        return cls.shows or suggested(own)

    def picture(self, name: str) -> Tensor | None:
        """A picture, read from the folder where it is not at hand; None where there is none."""
        if name in self.pictures:
            return self.pictures[name]
        file = self.file(name)
        return None if file is None else read_picture(file)

    def file(self, name: str) -> Path | None:
        """Where a saved picture lies; None where it is missing, or was never saved."""
        return picture_path(self.folder, self.paths.get(name)) if self.folder else None

    image = _picture("image")
    initial_image = _picture("initial_image")
    input_image = _picture("input_image")
    difference = _picture("difference")
    mask = _picture("mask")

    @property
    def complete(self) -> bool:
        """Whether all pictures of a saved record are there, none of them empty."""
        return all(self.file(name) is not None for name in self.paths)

    def _repr_html_(self) -> str:
        """The record's card, which a notebook shows."""
        return card_html(self)

    @property
    def record(self) -> dict[str, Any]:
        """Deprecated: the fields are attributes, and ``to_dict()`` gives the line."""
        message = "record is deprecated: read the attributes, or use to_dict()"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """The line of results.jsonl: plain values, null for a picture that is not saved."""
        keys = keys_of(type(self)).values()
        own = {key.name: getattr(self, key.attribute) for key in keys}
        if self.error is None:
            del own["error"]
        pictures = {name: self.paths.get(name) for name in IMAGE_KEYS}
        return jsonable({"schema": SCHEMA, "task": self.task, **own, **pictures, **self.extra})

    def save(self, out: str | Path | ResultStore) -> dict[str, Any]:
        """Writes the pictures and appends the record to a folder; returns its line."""
        store = out if isinstance(out, ResultStore) else ResultStore(out, self.task, self.settings)
        paths = {n: store.save_image(f"{self.id}-{n}", x) for n, x in self.pictures.items()}
        line = replace(self, paths=paths).to_dict()
        store.append(line)
        return line


_CLASSES: dict[str, type[Record]] = {}


def register(record_class: type[Record]) -> type[Record]:
    """Makes a record class known by its task's name; for use as a decorator."""
    if not record_class.title:
        record_class.title = record_class.task.replace("-", " ").capitalize()
    known = _CLASSES.setdefault(record_class.task, record_class)
    if known is not record_class:
        raise ValueError(f"task {record_class.task!r} has a record class already: {known.__name__}")
    return record_class


def record_class(task: str) -> type[Record]:
    """The class of a task's records; one without fields of its own where nobody has registered."""
    return _CLASSES.get(task) or _unknown(task)


def tasks() -> tuple[str, ...]:
    """The tasks whose record classes are registered, in the order of registering."""
    return tuple(_CLASSES)


@cache
def _unknown(task: str) -> type[Record]:
    return type("UnknownRecord", (Record,), {"task": task, "title": task})


def read_records(out: Path | str) -> list[Record]:
    """The last record of every (task, id) in OUT/results.jsonl, in the order of appearance.

    Args:
        out: the folder of a run.

    Returns:
        The records; none where the folder holds no results.

    Raises:
        UserError: a newer version of fastdigin wrote the file.

    Example:
        >>> confidences = [record.target_confidence for record in fd.read_records("out")]
    """
    lines = read_lines(out)
    ours = [line for line in lines if _is_ours(line)]
    if len(ours) < len(lines):
        log.warning(
            "%d records in '%s' are skipped: their values are not of fastdigin's kinds",
            len(lines) - len(ours), out,
        )  # fmt: skip
    return [Record.from_dict(line, Path(out)) for line in ours]


def _is_ours(line: Mapping[str, Any]) -> bool:
    kinds = {key.name: key.annotation for key in keys_of(record_class(line["task"])).values()}
    kinds |= dict.fromkeys(IMAGE_KEYS, str)
    return all(fits(line.get(name), kind) for name, kind in kinds.items())


def describe() -> str:
    """The table of keys, per task, as Markdown."""
    common = {key.name: key.doc for key in keys_of(Record).values()}
    line = {"schema": f"the version of the keys: {SCHEMA}", "task": "the task's name"}
    files = {name: f"file below the folder, or null: {doc}" for name, doc in IMAGE_KEYS.items()}
    tables = {"every task": line | common | files}
    for task, cls in _CLASSES.items():
        own = {key.name: key.doc for key in keys_of(cls).values() if key.name not in common}
        tables[task] = own
    lines = []
    for title, docs in tables.items():
        rows = [f"| `{name}` | {doc} |" for name, doc in docs.items()]
        lines += [f"| {title} | |", "|---|---|", *rows, ""]
    return "\n".join(lines).rstrip()
