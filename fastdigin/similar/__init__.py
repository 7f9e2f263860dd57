"""Real photos that resemble a result: does what was found on generated images hold on real ones?"""

from fastdigin.similar.embeddings import load_embedding, photo_files
from fastdigin.similar.ranking import Label, Match, Search, find_similar

__all__ = ["Label", "Match", "Search", "find_similar", "load_embedding", "photo_files"]
