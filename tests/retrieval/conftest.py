"""A folder of photos, and the networks that look at them."""

from pathlib import Path

import pytest
import torch
from photos import as_tensor, photo

from fastdigin.models.classifier import Classifier
from fastdigin.photos import ImageInput
from fastdigin.retrieval import features, find_similar, load_embedding, most_activating

COUNT = 12
NAMES = {f"class-{n % 3}/{n:02d}.png": n for n in range(COUNT)}


def image(number: int):
    """The photo of that number: each has a shape of its own."""
    return photo(60 + number, 70, seed=number)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twelve photos of several shapes, in subfolders."""
    root = tmp_path / "photos"
    for name, number in NAMES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image(number).save(root / name)
    return root


@pytest.fixture
def query() -> ImageInput:
    return ImageInput("query", as_tensor(photo(64, 64, seed=4))[0])


@pytest.fixture(scope="session")
def judge() -> Classifier:
    return load_embedding("embedded:judge")


@pytest.fixture(scope="session")
def spurious() -> Classifier:
    return Classifier.load("embedded:spurious")


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """How many photos of each block went through the network; a block has four."""
    seen, whole = [], features.embed
    monkeypatch.setattr(features, "LARGEST_BLOCK", 4)
    monkeypatch.setattr(
        features, "embed", lambda network, x: seen.append(len(x)) or whole(network, x)
    )
    return seen


@pytest.fixture(params=["similar", "activating"])
def look(request, judge, spurious, query):
    """Looks at photos; returns what was found, how many were seen, and what was unreadable."""

    def similar(photos, network=judge, **options):
        found = find_similar(query, photos, network, **options)
        ranked = [(match.photo, match.similarity) for match in found.matches]
        return ranked, found.compared, found.unreadable

    def activating(photos, network=spurious, **options):
        found = most_activating(network, [3], photos, **options)
        return found.top, found.seen, found.unreadable

    return {"similar": similar, "activating": activating}[request.param]


@pytest.fixture
def by_hand():
    """Of a network: photo's id -> activations of all neurons, one photo at a time."""

    @torch.no_grad()
    def activations(network: Classifier) -> dict[str, torch.Tensor]:
        return {id: network.activations(as_tensor(image(n)))[0] for id, n in NAMES.items()}

    return activations
