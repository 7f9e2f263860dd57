"""What a record shows of itself: in the console's table, on its card, and in the summary.

A record class declares views of its attributes (fields or properties); labels and units come from
the fields' keys. A class that declares none is shown by the types of its fields (``suggested``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastdigin.results.keys import Key, Unit, keys_of
from fastdigin.results.numbers import number, percent, times, wilson_interval


@dataclass(frozen=True)
class Figure:
    """One figure of a summary: text for people, and the numbers for the track beside it.

    change: before and after; interval: low, rate, high; each in [0, 1]. tone: 1 for the colour of
    the second of two quantities.
    """

    label: str
    value: str
    note: str
    change: tuple[float, float] | None = None
    interval: tuple[float, float, float] | None = None
    tone: int = 0


@dataclass(frozen=True)
class Meter:
    """A quantity's way from ``start`` to ``end`` on a track; they and ``mark`` lie in [0, 1].

    marks: what the mark stands for.
    """

    label: str
    text: str
    start: float
    end: float
    mark: float | None = None
    marks: str = ""
    tone: int = 0


@dataclass(frozen=True)
class View:
    """A value of a record.

    name: of the attribute. label, unit: by default those of its key. table, card, summary: where
    it is shown.
    """

    name: str
    label: str | None = None
    unit: Unit | None = None
    table: bool = True
    card: bool = True
    summary: bool = True

    def text(self, record: Any) -> str | None:
        """The value for people, None where it is not known."""
        return self.show(record, self.name)

    def meter(self, record: Any) -> Meter | None:
        """The value on a track, where it has a scale."""
        return None

    def figures(self, records: Sequence[Any]) -> list[Figure]:
        """What the records amount to; a record without the value counts in no figure."""
        return []

    def title(self, record_class: type) -> str:
        """The label."""
        key = keys_of(record_class).get(self.name)
        return self.label or (key.label if key else self.name.replace("_", " "))

    def show(self, record: Any, name: str) -> str | None:
        """The attribute ``name`` in this view's unit."""
        value = getattr(record, name)
        if value is None:
            return None
        if isinstance(value, bool):
            return "yes" if value else "no"
        return _SHOWN[self.unit_of(type(record))](value)

    def unit_of(self, record_class: type) -> Unit:
        """The unit of the value."""
        key = keys_of(record_class).get(self.name)
        return self.unit or (key.unit if key else "text")


_SHOWN = {"share": percent, "number": number, "multiple": times, "text": str}


@dataclass(frozen=True)
class Fact(View):
    """A value as it is."""


@dataclass(frozen=True, kw_only=True)
class Mean(View):
    """A number whose mean over all records is a figure. note: what it is, for the summary."""

    note: str = ""

    def figures(self, records: Sequence[Any]) -> list[Figure]:
        values = _known(records, self.name)
        if not values:
            return []
        cls = type(records[0])
        key = keys_of(cls).get(self.name)
        note = self.note or (key.doc if key else "") or "mean"
        shown = _SHOWN[self.unit_of(cls)](sum(values) / len(values))
        return [Figure(_capital(self.title(cls)), shown, f"{note}, n = {len(values)}")]


@dataclass(frozen=True, kw_only=True)
class Rate(View):
    """A yes or no whose rate is a figure. note: what a yes means.

    badge: the words for yes and no at the head of a card. The first rate that has one tells
    whether a job succeeded.
    """

    note: str = ""
    badge: tuple[str, str] | None = None

    def figures(self, records: Sequence[Any]) -> list[Figure]:
        values = _known(records, self.name)
        if not values:
            return []
        k, n = sum(map(bool, values)), len(values)
        low, high = wilson_interval(k, n)
        told = f"{k} of {n}{': ' * bool(self.note)}{self.note}"
        note = f"{told}; 95% interval {percent(low)} to {percent(high)}"
        label = _capital(self.title(type(records[0])))
        return [Figure(label, percent(k / n), note, interval=(low, k / n, high))]


@dataclass(frozen=True, kw_only=True)
class Change(View):
    """A value before and after: ``name`` is the attribute with the latter.

    reconstruction: the attribute with the value for the picture that a photo's editing starts
        from, where that picture is not the photo itself. mark: the attribute with a value to be
        marked on the track. by: the attribute that tells apart records whose means must not be
        mixed. pictures: shows the values below the pictures they belong to. note: what it is.
    """

    before: str
    reconstruction: str | None = None
    mark: str | None = None
    by: str | None = None
    pictures: bool = False
    note: str = ""
    tone: int = 0

    def text(self, record: Any) -> str | None:
        before, after = self.show(record, self.before), self.show(record, self.name)
        if before is None and after is None:
            return None
        return f"{before or '-'} → {after or '-'}"

    def meter(self, record: Any) -> Meter | None:
        unit = self.unit_of(type(record))
        start, end = getattr(record, self.before), getattr(record, self.name)
        if unit not in ("share", "number") or start is None or end is None:
            return None
        mark = getattr(record, self.mark) if self.mark else None
        low, high = 0.0, 1.0
        if unit == "number":
            known = [0.0, start, end, *([] if mark is None else [mark])]
            low, high = min(known), max(known)

        def place(value: float) -> float:
            return min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))

        marked, marks = None, ""
        if mark is not None:
            marked, marks = place(mark), keys_of(type(record))[self.mark].doc
        label, text = self.title(type(record)), self.text(record) or ""
        return Meter(label, text, place(start), place(end), marked, marks, self.tone)

    def figures(self, records: Sequence[Any]) -> list[Figure]:
        groups: dict[str, list[Any]] = {}
        for record in records:
            group = getattr(record, self.by) if self.by else None
            groups.setdefault("" if group is None else f", {group}", []).append(record)
        return [f for name, group in groups.items() for f in self._figure(name, group)]

    def _figure(self, group: str, records: Sequence[Any]) -> list[Figure]:
        pairs = [(getattr(r, self.before), getattr(r, self.name)) for r in records]
        pairs = [pair for pair in pairs if None not in pair]
        cls = type(records[0])
        unit = self.unit_of(cls)
        if not pairs or unit == "text":
            return []
        n = len(pairs)
        start, end = sum(b for b, _ in pairs) / n, sum(a for _, a in pairs) / n
        show = _SHOWN[unit]
        note = f"{self.note}{', ' * bool(self.note)}mean, before → after, n = {n}"
        scaled = unit == "share" and min(start, end) >= 0 and max(start, end) <= 1
        return [
            Figure(
                _capital(self.title(cls)) + group, f"{show(start)} → {show(end)}", note,
                change=(start, end) if scaled else None, tone=self.tone,
            )
        ]  # fmt: skip

    def below_pictures(self, record: Any) -> dict[str, str]:
        """Picture -> the value that belongs to it."""
        values = {"initial_image": self.before, "image": self.name}
        if self.reconstruction:
            values |= {"input_image": self.before, "initial_image": self.reconstruction}
        shown = {picture: self.show(record, name) for picture, name in values.items()}
        return {picture: text for picture, text in shown.items() if text is not None}


@dataclass(frozen=True, kw_only=True)
class Cross(View):
    """A mapping that every record of a task has, as one table: a row a record, a column a name.

    own: the attribute with the name that is the row's own. also: another attribute, shown beside
    it. caption: what the table tells.
    """

    own: str
    also: str
    caption: str
    table: bool = False
    card: bool = False


def suggested(keys: Mapping[str, Key]) -> list[View]:
    """Views by the types of the fields; x_before and x are a change."""
    views: list[View] = []
    for name, key in keys.items():
        before = f"{name}_before"
        if key.kind is bool:
            views.append(Rate(name, note=key.doc))
        elif key.kind is float and before in keys:
            views.append(Change(name, before=before, pictures=not _changes(views)))
        elif key.kind is float and name.removesuffix("_before") not in keys.keys() - {name}:
            views.append(Mean(name))
        elif key.kind in (str, int):
            views.append(Fact(name))
    return views


def _changes(views: Sequence[View]) -> list[Change]:
    return [view for view in views if isinstance(view, Change)]


def summarise(records: Sequence[Any]) -> list[Figure]:
    """The figures of one task from its records; failed ones count in the first one only."""
    done = [record for record in records if record.status == "done"]
    failed = len(records) - len(done)
    note = f"done, {failed} failed" if failed else "done, none failed"
    figures = [Figure("Images", f"{len(done)}", note)]
    for view in done[0].views() if done else ():
        if view.summary:
            figures += view.figures(done)
    return figures


def badge(record: Any) -> tuple[bool, str] | None:
    """Whether a job shows what its task asks for, and the words for it; None where unknown."""
    for view in record.views():
        if isinstance(view, Rate) and view.badge:
            good = getattr(record, view.name)
            return None if good is None else (good, view.badge[not good])
    return None


def below_pictures(record: Any) -> Mapping[str, str]:
    """Picture -> the figure that belongs to it."""
    for view in _changes(record.views()):
        if view.pictures:
            return view.below_pictures(record)
    return {}


def _known(records: Sequence[Any], name: str) -> list:
    values = (getattr(record, name) for record in records)
    return [value for value in values if value is not None]


def _capital(label: str) -> str:
    return label[:1].upper() + label[1:]
