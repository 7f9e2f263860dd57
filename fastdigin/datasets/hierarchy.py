"""ImageNet's 1000 classes and WordNet's synsets above them (synsets.tsv, LICENSE.wordnet)."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

SYNSETS = Path(__file__).parent / "synsets.tsv"
CLUSTER = 4
"""Classes that a cluster holds at least, beside the one it is for."""


@dataclass(frozen=True)
class Synset:
    """wnid: "n" and the offset in WordNet 3.0. index: 0 to 999, or None above the classes.

    names: its synonyms, "tench, Tinca tinca". parents: the wnids of its hypernyms.
    """

    wnid: str
    index: int | None
    names: str
    parents: tuple[str, ...]

    @property
    def word(self) -> str:
        """The first synonym."""
        return self.names.split(",")[0]


@lru_cache(maxsize=1)
def synsets() -> dict[str, Synset]:
    """All classes and all that is above them, by wnid."""
    rows = [line.split("\t") for line in SYNSETS.read_text(encoding="utf-8").splitlines()[1:]]
    return {
        wnid: Synset(wnid, int(index) if index else None, names, tuple(parents.split()))
        for wnid, index, parents, names in rows
    }


@lru_cache(maxsize=1)
def classes() -> tuple[Synset, ...]:
    """The 1000 classes in their usual order, which is that of their wnids."""
    found = [synset for synset in synsets().values() if synset.index is not None]
    return tuple(sorted(found, key=lambda synset: synset.index))


@lru_cache(maxsize=1000)
def nearest_classes(wnid: str, at_least: int = CLUSTER) -> tuple[str, ...]:
    """The other classes of the smallest cluster around a class, the nearest first.

    A cluster is whatever lies below one synset; the smallest with ``at_least`` others is taken.
    Near is who shares the smallest cluster with the class.
    """
    below = _classes_below()
    clusters = [below[w] for w in sorted(_above(wnid), key=lambda w: (len(below[w]), w))]
    cluster = next(cluster for cluster in clusters if len(cluster) > at_least)

    def distance(other: str) -> int:
        return next(n for n, cluster in enumerate(clusters) if other in cluster)

    return tuple(sorted(cluster - {wnid}, key=lambda other: (distance(other), other)))


def _above(wnid: str) -> set[str]:
    found, waiting = set(), list(synsets()[wnid].parents)
    while waiting:
        parent = waiting.pop()
        if parent not in found:
            found.add(parent)
            waiting += synsets()[parent].parents
    return found


@lru_cache(maxsize=1)
def _classes_below() -> dict[str, set[str]]:
    below: dict[str, set[str]] = {wnid: set() for wnid in synsets()}
    for synset in classes():
        for wnid in {synset.wnid, *_above(synset.wnid)}:
            below[wnid].add(synset.wnid)
    return below
