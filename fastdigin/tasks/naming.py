"""Words for what a neuron's most activating images show: where its visualisation starts from."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin.models.captioner import Captioner
from fastdigin.models.classifier import Classifier
from fastdigin.storage import fingerprint
from fastdigin.tasks.words import class_word

WORDS = 5
"""Per neuron: each costs some samples of the diffusion model."""

QUESTION = "Name the objects in the image in a few words each, separated by commas."
MOST_WORDS = 3  # of an object's name

_FUNCTION_WORDS = """
a an the this that these those there it its is are was be being been of in on at to from by with
without for and or but as into onto over under up down out off near next behind front between around
beside above below top side left right one two three four some several many few other another each
his her their your my he she they you i we who which what while very has have had can photo
photograph picture image close view background
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words of captions that name no object."""


@dataclass(frozen=True)
class RankedWords:
    """The classes that a classifier finds likeliest, on average over the images.

    A zero-shot classifier of the user's word list ranks that list (CLIP, Radford et al. 2021).

    Args:
        classifier: ranks its classes, by their mean probability.
        count: how many of them are returned.

    Example:
        >>> words = fd.RankedWords(fd.Classifier.load("embedded:judge"), count=3)
        >>> fd.visualise_neurons(engine, spurious, [76], words, found)
    """

    classifier: Classifier
    count: int = WORDS

    def __str__(self) -> str:
        classes = fingerprint(self.classifier.classes)
        return f"the {self.count} likeliest classes of {self.classifier.name} ({classes})"

    @torch.no_grad()
    def __call__(self, neuron: int, images: Sequence[Tensor]) -> list[str]:
        device = self.classifier.device
        probabilities_nk = torch.cat(
            [self.classifier.probabilities(image[None].to(device)) for image in images]
        )
        order = probabilities_nk.mean(dim=0).argsort(descending=True)
        return [class_word(self.classifier, int(index)) for index in order[: self.count]]


@dataclass(frozen=True)
class CaptionedWords:
    """What a captioner names in most of the images; of two as frequent, what it named first.

    A model that can be asked names the objects; of captions all words count that may name one.

    Args:
        captioner: describes the images, or answers what they show.
        count: how many words are returned.

    Example:
        >>> blip = fd.Captioner.load("Salesforce/blip-image-captioning-base")
        >>> fd.visualise_neurons(engine, spurious, [76], fd.CaptionedWords(blip), found)
    """

    captioner: Captioner
    count: int = WORDS

    def __str__(self) -> str:
        return f"the {self.count} words that {self.captioner.name} says most often"

    def __call__(self, neuron: int, images: Sequence[Tensor]) -> list[str]:
        if self.captioner.processor is not None:
            said = [listed(text) for text in self.captioner.answers(images, QUESTION)]
        else:
            said = [content_words(text) for text in self.captioner.captions(images)]
        counts = Counter(word for words in said for word in dict.fromkeys(words))
        return [word for word, _ in counts.most_common(self.count)]


def content_words(caption: str) -> list[str]:
    """The words of a caption that may name an object, in order, lower case."""
    words = re.findall(r"[^\W\d_][\w'-]*", caption.lower())
    return [word for word in words if word not in FUNCTION_WORDS and len(word) > 1]


def listed(answer: str) -> list[str]:
    """The objects of a list like "A dog, the red frisbee and grass.", without articles."""
    objects = []
    for part in re.split(r"[,;.\n]|\band\b", answer.lower()):
        words = re.findall(r"[^\W\d_][\w'-]*", part)
        while words and words[0] in FUNCTION_WORDS:
            words.pop(0)
        if 0 < len(words) <= MOST_WORDS:
            objects.append(" ".join(words))
    return objects
