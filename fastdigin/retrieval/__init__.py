"""Real photos that resemble a result, or that activate a neuron, found in any number of photos."""

from fastdigin.retrieval.activating import Activating, most_activating
from fastdigin.retrieval.features import load_embedding, photo_files
from fastdigin.retrieval.ranking import Label, Match, Search, find_similar

__all__ = [
    "Activating",
    "Label",
    "Match",
    "Search",
    "find_similar",
    "load_embedding",
    "most_activating",
    "photo_files",
]
