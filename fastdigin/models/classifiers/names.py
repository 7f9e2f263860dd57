"""Names of classes: their synonyms, and everyday words for the classes of well-known data sets."""

from __future__ import annotations

from collections.abc import Sequence

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


def word_classes(name: str, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that are other words for ``name``, the nearest first."""
    return [word for word in other_words(name) if word in names]


def same_name(a: str, b: str) -> bool:
    """Whether two class names share a synonym, or are words for the same."""
    return bool(synonyms(a) & synonyms(b)) or bool(set(other_words(a)) & set(other_words(b)))
