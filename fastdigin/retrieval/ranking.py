"""The photos most similar to an image, and what classifiers make of them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.photos import ImageInput, read_any_image
from fastdigin.retrieval.features import best_of, embed, feature_blocks
from fastdigin.storage import TensorCache


@dataclass(frozen=True)
class Label:
    """A classifier's first choice for an image, and its confidence in the class asked about.

    asked is None where the classifier does not know that class.
    """

    name: str
    confidence: float
    asked: float | None


@dataclass(frozen=True)
class Match:
    """A photo, its cosine similarity with the query in [-1, 1], and a label per classifier."""

    photo: ImageInput
    similarity: float
    labels: dict[str, Label]


@dataclass(frozen=True)
class Search:
    """What a search found: matches, most similar first.

    query: the labels of the image that was asked about. asked: the class whose confidence labels
    tell. compared: how many photos were looked at. unreadable: photo -> why it was not.
    """

    query: dict[str, Label]
    asked: str | None
    matches: tuple[Match, ...]
    compared: int
    unreadable: dict[str, str]

    def shares(self, classifier: str) -> list[tuple[str, float]]:
        """The classes that the classifier sees in the matches, the most frequent first."""
        counts = Counter(match.labels[classifier].name for match in self.matches)
        return [(name, count / len(self.matches)) for name, count in counts.most_common()]

    def mean_asked(self, classifier: str) -> float | None:
        """The classifier's mean confidence over the matches in the class asked about."""
        values = [match.labels[classifier].asked for match in self.matches]
        return None if not values or None in values else sum(values) / len(values)


def find_similar(
    query: ImageInput,
    photos: Sequence[ImageInput],
    embedding: Classifier,
    classifiers: Sequence[Classifier] = (),
    *,
    top: int = 20,
    asked: str | None = None,
    cache: TensorCache | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Search:
    """The ``top`` photos whose embeddings have the largest cosine with that of ``query``.

    DiG-IN checks a systematic error this way: real photos that resemble a generated image should
    be misread as well. Photos stream through in blocks, whatever their number.

    Args:
        query: the image, a generated one for example.
        photos: see ``photo_files``.
        embedding: see ``load_embedding``.
        classifiers: label the query and the photos that were found.
        top: at least 1.
        asked: a class whose confidence is told; by default the first classifier's first choice for
            the query.
        cache: keeps features between runs.
        on_progress: called with the number of photos that were just done.

    Returns:
        The photos, the most similar first, with their labels.

    Raises:
        UserError: the query cannot be read, no classifier knows the class, or no photo can be read.

    Example:
        >>> query = fd.ImageInput("result", Path("result.png"))
        >>> search = fd.find_similar(query, photos, fd.load_embedding("embedded:judge"), [spurious])
        >>> [(match.photo.id, match.similarity) for match in search.matches]
    """
    if top < 1:
        raise UserError(f"top must be at least 1, got {top}")
    image = read_any_image(query)
    asked = _asked(classifiers, image, asked)
    query_labels = _labels(classifiers, image, asked)
    query_f = embed(embedding, [embedding.prepare(image[None].to(embedding.device))[0]])[0]
    query_f = normalize(query_f, dim=0)
    best: list[tuple[float, ImageInput]] = []
    compared = 0
    unreadable: dict[str, str] = {}
    for block in feature_blocks(embedding, photos, cache, on_progress):
        unreadable |= block.unreadable
        compared += len(block.photos)
        best = best_of(top, best, block.photos, normalize(block.features_nf, dim=1) @ query_f)
    if not compared:
        raise UserError(f"none of the {len(photos)} photos can be read: check the folder")
    matches = tuple(
        Match(photo, similarity, _labels(classifiers, read_any_image(photo), asked))
        for similarity, photo in best
    )
    return Search(query_labels, asked, matches, compared, unreadable)


def _asked(classifiers: Sequence[Classifier], image: Tensor, asked: str | None) -> str | None:
    if not classifiers:
        return None
    if asked is None:
        return next(iter(_labels(classifiers[:1], image, None).values())).name
    errors = [error for c in classifiers if isinstance(error := _index(c, asked), UserError)]
    if len(errors) == len(classifiers):
        raise errors[0]
    return asked


def _index(classifier: Classifier, name: str) -> int | UserError:
    try:
        return classifier.class_index(name)
    except UserError as error:
        return error


@torch.no_grad()
def _labels(
    classifiers: Sequence[Classifier], image: Tensor, asked: str | None
) -> dict[str, Label]:
    labels = {}
    for classifier in classifiers:
        probabilities = classifier.probabilities(image[None].to(classifier.device))[0]
        first = int(probabilities.argmax())
        index = None if asked is None else _index(classifier, asked)
        labels[classifier.name] = Label(
            classifier.classes[first],
            float(probabilities[first]),
            float(probabilities[index]) if isinstance(index, int) else None,
        )
    return labels
