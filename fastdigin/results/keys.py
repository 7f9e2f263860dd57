"""The keys of a record: their names in results.jsonl, what they mean, what their values are.

A record class is a dataclass, and its fields are the keys of its lines. ``key`` says more about a
field; one that is declared without it is a key all the same.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Unit = Literal["share", "number", "multiple", "text"]
"""share: in [0, 1], shown as a percentage. multiple: of a reference, shown as 1.37×."""


@dataclass(frozen=True)
class Key:
    """One key of a record class.

    attribute: of the record; name: in results.jsonl. label: for people. kind: the type of its
    values beside None, ``object`` where that is no simple type. annotation: the field's.
    """

    attribute: str
    name: str
    doc: str
    label: str
    unit: Unit
    kind: type
    annotation: Any


def key(
    doc: str,
    default: Any = None,
    *,
    name: str | None = None,
    label: str | None = None,
    unit: Unit | None = None,
) -> Any:
    """A field of a record class.

    doc: what the value means, for the documentation. default: where the value is not known. name:
    in results.jsonl, where it differs from the field's. label: for people, by default the name.
    unit: by default "share" for a confidence, "number" for every other float.
    """
    told = {"doc": doc, "name": name, "label": label, "unit": unit}
    return dataclasses.field(default=default, metadata=told)


def aside(**default: Any) -> Any:
    """A field of a record class that is no key: results.jsonl does not hold it."""
    return dataclasses.field(**default, repr=False, compare=False, metadata={"aside": True})


@cache
def keys_of(record_class: type) -> dict[str, Key]:
    """Attribute -> Key, in the order of the fields."""
    hints = typing.get_type_hints(record_class)
    return {
        field.name: _key(field, hints[field.name])
        for field in dataclasses.fields(record_class)
        if "aside" not in field.metadata
    }


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value of JSON is of a field's type. null always is, and what has no JSON type."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if value is None or annotation is Any:
        return True
    if origin is typing.Literal:
        return value in inner
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, kind) for kind in inner if kind is not type(None))
    if origin in (Mapping, dict):
        return isinstance(value, dict) and all(fits(item, inner[1]) for item in value.values())
    if origin in (Sequence, list, tuple):
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if annotation in (int, float):
        known = isinstance(value, (int, annotation)) and not isinstance(value, bool)
        return known and abs(value) < 1e300  # larger integers are no floats
    return isinstance(value, annotation) if annotation in (str, bool) else True


def _key(field: dataclasses.Field, annotation: Any) -> Key:
    told = field.metadata
    kinds = [k for k in typing.get_args(annotation) or (annotation,) if k is not type(None)]
    kind = kinds[0] if len(kinds) == 1 and kinds[0] in (str, bool, int, float) else object
    name = told.get("name") or field.name
    usual = "text" if kind is not float else "share" if "confidence" in name else "number"
    label = told.get("label") or name.replace("_", " ")
    unit = told.get("unit") or usual
    return Key(field.name, name, told.get("doc", ""), label, unit, kind, annotation)
