"""What is scored: a photo, its explanation, and what is known of both."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.results import Record, read_records
from fastdigin.results.pictures import read_picture


@dataclass(frozen=True, kw_only=True)
class Case:
    """One explanation of any method. What nobody knows is None.

    id: names it in errors. before, after: (3, H, W) in [0, 1], or their files. mask: the foreground
    (H, W), or its file. photo: cases of one photo and target share it. source, target: names or
    indices of classes. flipped: whether the classifier answers with the target now, and did not
    before. correct: whether it was right about the photo. confidence: in the target, before and
    after. judged: whether an independent classifier sees the target.
    """

    id: str
    before: Tensor | Path
    after: Tensor | Path
    mask: Tensor | Path | None = None
    photo: str | None = None
    source: str | int | None = None
    target: str | int | None = None
    flipped: bool | None = None
    correct: bool | None = None
    confidence: tuple[float, float] | None = None
    judged: bool | None = None

    def read(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """before, after and mask. UserError for files that cannot be read, or differ in size."""
        before, after = (_pixels(x, self.id) for x in (self.before, self.after))
        before, after = (x.expand(3, *x.shape[-2:]) for x in (before, after))  # grey ones
        mask = None if self.mask is None else _pixels(self.mask, self.id)
        if before.shape != after.shape or (mask is not None and mask.shape != before.shape[1:]):
            shapes = [tuple(x.shape) for x in (before, after, mask) if x is not None]
            raise UserError(
                f"the pictures of {self.id!r} differ in size ({shapes}): give each explanation in "
                "the size of its photo"
            )
        return before, after, mask


def cases_of(records: Iterable[Record]) -> list[Case]:
    """The cases of the records that are done and have both pictures.

    The photo is the user's (``input_image``); a task without one compares with ``initial_image``.
    """
    return [
        _case(record)
        for record in records
        if record.status == "done"
        and None not in (_picture(record, "image"), _picture(record, _before(record)))
    ]


def read_cases(out: Path) -> dict[str, list[Case]]:
    """Task -> its cases, of the results in a folder.

    Raises UserError where there are none.
    """
    found: dict[str, list[Record]] = {}
    for record in read_records(out):
        found.setdefault(record.task, []).append(record)
    cases = {task: cases_of(records) for task, records in found.items()}
    cases = {task: own for task, own in cases.items() if own}
    if not cases:
        raise UserError(f"'{out}' holds no results with pictures: name the --out of a run")
    return cases


def _case(record: Record) -> Case:
    known = {name: getattr(record, name, None) for name in ("source", "target", "flipped")}
    confidence = tuple(
        getattr(record, name, None) for name in ("target_confidence_before", "target_confidence")
    )
    input, target = getattr(record, "input", None), known["target"]
    return Case(
        id=record.id,
        before=_picture(record, _before(record)),
        after=_picture(record, "image"),
        mask=_picture(record, "mask"),
        photo=None if None in (input, target) else f"{input}-{target}",
        confidence=None if None in confidence else confidence,
        judged=getattr(record, "judge_agrees", None),
        **known,
    )


def _before(record: Record) -> str:
    """The picture to compare with: a reconstruction does not stand for a photo that is lost."""
    named = {*record.paths, *(n for n, x in record.pictures.items() if x is not None)}
    return "input_image" if "input_image" in named else "initial_image"


def _picture(record: Record, name: str) -> Tensor | Path | None:
    return record.pictures[name] if name in record.pictures else record.file(name)


def _pixels(picture: Tensor | Path, id: str) -> Tensor:
    if isinstance(picture, Tensor):
        return picture
    try:
        return read_picture(picture)
    except OSError as error:
        raise UserError(f"a picture of {id!r}, '{picture}', cannot be read ({error})") from None
