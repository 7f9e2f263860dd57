"""What a record shows of itself: in the console's table, on its card, and in the summary.

A record class declares a view of each attribute (field or property) that people shall see; labels
and units come from the fields' keys. A class that declares none shows all its simple fields.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastdigin.results.keys import Key, Unit, keys_of
from fastdigin.results.numbers import number, percent, times, wilson_interval

Place = Literal["table", "card", "summary"]
_SHOWN = {"share": percent, "number": number, "multiple": times, "text": str}


@dataclass(frozen=True)
class Figure:
    """One figure of a summary."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class View:
    """One value of a record.

    Its figure in the summary is a rate for a yes or no, the mean for a number, both means for a
    change; a record without the value does not count.

    name: of the attribute. label, unit: by default those of its key. note: what the figure means.
    before: the attribute with the value before the optimisation, which makes it a change.
    reconstruction: the attribute with the value for the picture that a photo's editing starts from,
        where that is not the photo. pictures: shows the values below the pictures they belong to.
    by: the attribute that tells apart records whose means must not be mixed.
    badge: the words for yes and no at the head of a card. The first view that has one tells
        whether a job succeeded.
    """

    name: str
    label: str | None = None
    unit: Unit | None = None
    note: str = ""
    places: tuple[Place, ...] = ("table", "card", "summary")
    before: str | None = None
    reconstruction: str | None = None
    pictures: bool = False
    by: str | None = None
    badge: tuple[str, str] | None = None

    def title(self, record_class: type) -> str:
        """The label."""
        return self.label or self._key(record_class).label

    def text(self, record: Any) -> str | None:
        """The value for people, None where it is not known."""
        after = self.show(record, self.name)
        if self.before is None:
            return after
        before = self.show(record, self.before)
        return None if before is after is None else f"{before or '-'} → {after or '-'}"

    def figures(self, records: Sequence[Any]) -> list[Figure]:
        """What the records amount to."""
        groups: dict[str, list[Any]] = {}
        for record in records:
            group = getattr(record, self.by) if self.by else None
            groups.setdefault("" if group is None else f", {group}", []).append(record)
        found = (self._figure(group, members) for group, members in groups.items())
        return [figure for figure in found if figure is not None]

    def _figure(self, group: str, records: Sequence[Any]) -> Figure | None:
        names = [name for name in (self.before, self.name) if name]
        rows = [[getattr(record, name) for name in names] for record in records]
        rows = [row for row in rows if None not in row]
        if not rows or isinstance(rows[0][0], str):
            return None
        n, title = len(rows), self.title(type(records[0]))
        label = title[:1].upper() + title[1:] + group
        note = self.note or ("" if self.before else self._key(type(records[0])).doc)
        if isinstance(rows[0][0], bool):
            return _rate(label, [row[0] for row in rows], note)
        unit = self._unit(records[0])
        if unit == "text":
            return None
        means = [sum(column) / n for column in zip(*rows, strict=True)]
        value = " → ".join(map(_SHOWN[unit], means))
        told = [note, "mean, before → after" if self.before else "mean", f"n = {n}"]
        return Figure(label, value, ", ".join(filter(None, told)))

    def show(self, record: Any, name: str) -> str | None:
        """An attribute of a record in the unit of this view."""
        value = getattr(record, name)
        if isinstance(value, bool):
            return "yes" if value else "no"
        return None if value is None else _SHOWN[self._unit(record)](value)

    def _unit(self, record: Any) -> Unit:
        return self.unit or self._key(type(record)).unit

    def _key(self, record_class: type) -> Key:
        """The key of the attribute; what a property has in place of one."""
        words = self.name.replace("_", " ")
        property_key = Key(self.name, self.name, "", words, "text", object, Any)
        return keys_of(record_class).get(self.name, property_key)


@dataclass(frozen=True)
class Cross:
    """A mapping that every record of a task has, as one table: a row a record, a column a name.

    own: the attribute with the name that is the row's own. also: another attribute, shown beside
    it. caption: what the table tells.
    """

    name: str
    own: str
    also: str
    caption: str


def _rate(label: str, values: Sequence[bool], note: str) -> Figure:
    k, n = sum(values), len(values)
    low, high = wilson_interval(k, n)
    told = ": ".join(filter(None, (f"{k} of {n}", note)))
    interval = f"95% interval {percent(low)} to {percent(high)}"
    return Figure(label, percent(k / n), f"{told}; {interval}")


def suggested(keys: Mapping[str, Key]) -> list[View]:
    """A view of each simple key; x_before and x are a change, the first of which has pictures."""
    views: list[View] = []
    for name, key in keys.items():
        before = f"{name}_before" if f"{name}_before" in keys else None
        first = not any(view.pictures for view in views)
        if key.kind is not object and name.removesuffix("_before") not in keys.keys() - {name}:
            views.append(View(name, before=before, pictures=before is not None and first))
    return views


def summarise(records: Sequence[Any]) -> list[Figure]:
    """The figures of one task from its records; failed ones count in the first one only."""
    done = [record for record in records if record.status == "done"]
    failed = len(records) - len(done)
    note = f"done, {failed} failed" if failed else "done, none failed"
    views = [view for view in done[0].views() if "summary" in view.places] if done else []
    figures = [figure for view in views for figure in view.figures(done)]
    return [Figure("Images", f"{len(done)}", note), *figures]


def badge(record: Any) -> tuple[bool, str] | None:
    """Whether a job shows what its task asks for, and the words for it; None where unknown."""
    for view in record.views():
        if view.badge:
            good = getattr(record, view.name)
            return None if good is None else (good, view.badge[not good])
    return None


def below_pictures(record: Any) -> Mapping[str, str]:
    """Picture -> the figure that belongs to it."""
    view = next((view for view in record.views() if view.pictures), None)
    if view is None:
        return {}
    names = {"initial_image": view.before, "image": view.name}
    if view.reconstruction:
        names |= {"input_image": view.before, "initial_image": view.reconstruction}
    shown = {picture: view.show(record, name) for picture, name in names.items() if name}
    return {picture: text for picture, text in shown.items() if text is not None}
