"""Names of classes: their synonyms, and everyday words for the classes of well-known data sets."""

import difflib
import logging
import operator
from collections.abc import Mapping, Sequence

from fastdigin.errors import UserError

log = logging.getLogger(__name__)

WORDS = (
    ("tshirt", "t-shirt", "tee shirt", "t-shirt/top", "jersey"),
    ("trousers", "trouser", "pants", "jeans", "jean", "blue jean"),
    ("pullover", "sweater", "jumper", "sweatshirt"),
    ("dress", "gown"),
    ("sandal", "sandals"),
    ("sneaker", "sneakers", "trainer", "running shoe"),
    ("bag", "handbag", "purse"),
    ("boot", "boots", "ankle boot", "cowboy boot"),
)
"""Words for the same: of the packaged photos, of Fashion-MNIST and of ImageNet."""


def folded(name: str) -> str:
    """Upper and lower case, and "_" and " ", are not told apart."""
    return " ".join(name.replace("_", " ").casefold().split())


def synonyms(name: str) -> set[str]:
    """A whole name, folded, and each of the synonyms that it lists: "robin, American robin"."""
    return {folded(alias) for alias in (name, *name.split(","))}


def other_words(name: str) -> list[str]:
    """Everyday words for a class: those of WORDS in which any of its synonyms stands."""
    return [word for words in WORDS if synonyms(name) & set(words) for word in words]


def same_name(a: str, b: str) -> bool:
    """Whether two class names share a synonym, or are words for the same."""
    return bool(synonyms(a) & synonyms(b)) or bool(set(other_words(a)) & set(other_words(b)))


def class_number(value: object, count: int, classifier: str) -> int:
    """A class by its index. UserError for what is no whole number, or none of ``count`` classes."""
    try:
        index = operator.index(value)
    except TypeError:
        index = None
    if index is None or isinstance(value, bool):
        raise UserError(f"class {value!r} of {classifier} is neither a name nor a whole number")
    if not 0 <= index < count:
        raise UserError(f"class {index} does not exist: {classifier} has classes 0 to {count - 1}.")
    return index


def class_called(
    name: str,
    known: Mapping[str, Sequence[int]],
    classes: Sequence[str],
    owner: str,
    told: set[str],
) -> int:
    """A class by its name; UserError for one that no class, or that several classes have.

    known: folded names and synonyms -> the classes that have them. told: the names that were taken
    for others with a warning, once for one photo after another.
    """
    found = known.get(folded(name), [])
    if not found and name.strip().isdecimal():
        return class_number(int(name), len(classes), owner)
    if not found and "," in name:  # a data set's synonyms, of which this classifier has some
        found = sorted({index for alias in synonyms(name) for index in known.get(alias, ())})
    others = [] if found else other_words(name)
    if word := next((word for word in others if word in known), None):
        found = known[word]
        if name not in told:
            log.warning("class %r of %s is taken to be %r", name, owner, word)
            told.add(name)
    if len(found) != 1:
        raise _not_a_class(name, found, known, classes, owner)
    return found[0]


def _not_a_class(name, found, known, classes, owner) -> UserError:
    """As of class_called. found: those that have the name."""
    if found:
        choices = "; ".join(f"{index} ({classes[index]})" for index in found)
        return UserError(
            f"class {name!r} of {owner} is ambiguous: give one of the indices {choices}."
        )
    close = difflib.get_close_matches(folded(name), known, n=3)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else "."
    all_of_them = f" Its classes: {', '.join(classes)}." if len(classes) <= 20 else ""
    return UserError(f"class {name!r} is not a class of {owner}{hint}{all_of_them}")
