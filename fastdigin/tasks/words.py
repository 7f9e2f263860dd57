"""Class names as words of a prompt."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.classifiers.names import folded, other_words, same_name, synonyms

T = TypeVar("T")


def class_word(classifier: Classifier, index: int) -> str:
    """The first synonym of a class name: "robin, American robin" gives "robin"."""
    return classifier.classes[index].split(",")[0].replace("_", " ").strip()


def shared_words(classifier: Classifier) -> set[str]:
    """The first words that several classes have: two of ImageNet's are a crane."""
    words = Counter(class_word(classifier, n) for n in range(len(classifier.classes)))
    return {word for word, count in words.items() if count > 1}


def id_of(word: str, index: int, shared: Collection[str]) -> str:
    """A class in the id of an image: its word, with its index where others have that too."""
    name = word.replace(" ", "_")
    return f"{name}-{index}" if word in shared else name


def words_for(classifier: Classifier, index: int, said: str | None) -> list[str]:
    """Words for a class in prompts, the first one preferred: what its user said, its names.

    What was said as an index or a list of synonyms is no word.
    """
    said = (said or "").strip()
    name = classifier.classes[index]
    names = [alias.replace("_", " ").strip() for alias in name.split(",")]
    first = [] if not said or said.isdecimal() or "," in said else [said]
    return list(dict.fromkeys([*first, *names, *other_words(name)]))


def user_word(classifier: Classifier, index: int | None, said: str | int | None) -> str | None:
    """What a user says for a class where that is not the class's own word: prompts then differ."""
    if index is None or not isinstance(said, str):
        return None
    word = words_for(classifier, index, said)[0]
    return None if folded(word) == folded(class_word(classifier, index)) else word


def first_that_fits(words: Sequence[str], use: Callable[[str], T], option: str) -> T:
    """What ``use`` makes of the first word that it takes: a text encoder reads short prompts only.

    Raises UserError that is the first word's own, with the option that names another word.
    """
    errors = []
    for word in words:
        try:
            return use(word)
        except UserError as error:
            errors.append(error)
    flag = option.replace("_", "-")
    raise UserError(f"{errors[0]}; another word can be given as --{flag} ({option})")


def same_classes(f: Classifier, g: Classifier) -> bool:
    """Whether an index means the same to both: most names at the same index share a synonym.

    Libraries spell ImageNet's classes differently, and two of them are a "crane": there names alone
    would lead to another class.
    """
    if len(f.classes) != len(g.classes):
        return False
    shared = sum(bool(synonyms(a) & synonyms(b)) for a, b in zip(f.classes, g.classes, strict=True))
    return 2 * shared > len(f.classes)


def same_class(f: Classifier, f_class: int, g: Classifier, g_class: int) -> bool:
    """Whether a class of one classifier is a class of the other: "boot" is "boot, cowboy boot"."""
    if same_classes(f, g):
        return f_class == g_class
    return same_name(f.classes[f_class], g.classes[g_class])


def check_text(name: str, text: str | None) -> None:
    """Raises UserError for what no tokenizer reads: lone surrogates, NUL, other types."""
    if text is not None and not isinstance(text, str):
        raise UserError(f"{name} is {text!r:.80}, wanted a text")
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text or ""):
        raise UserError(f"{name} is {text!r}, which holds a character that is no text: remove it")


@torch.no_grad()
def find_class(classifier: Classifier, image_3hw: Tensor, name: str | None) -> int:
    """The class called ``name``, or what the classifier sees where no name is given."""
    if name is not None:
        return classifier.class_index(name)
    return int(classifier.logits(image_3hw[None].to(classifier.device)).argmax())
