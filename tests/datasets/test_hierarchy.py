"""ImageNet's classes, and who is near whom."""

import pytest

from fastdigin.datasets.hierarchy import classes, nearest_classes, synsets


def wnid(index):
    return classes()[index].wnid


def test_the_classes_are_those_of_timm():
    """Names and order, against another package's copy of them."""
    data = pytest.importorskip("timm.data")
    info = data.ImageNetInfo()
    assert [c.wnid for c in classes()] == info.label_names()
    assert [c.names for c in classes()] == info.label_descriptions()


def test_everything_has_its_parents_up_to_the_root():
    known = synsets()
    roots = {wnid for wnid, synset in known.items() if not synset.parents}
    assert [known[root].names for root in roots] == ["entity"]
    assert all(parent in known for synset in known.values() for parent in synset.parents)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (207, {205, 206, 208, 209}),  # golden retriever: the other retrievers
        (281, {282, 283, 284, 285}),  # tabby: the other domestic cats
        (817, {407, 436, 468, 511, 609, 627, 656, 661, 751}),  # sports car: the other cars
    ],
)
def test_clusters(index, expected):
    assert {synsets()[w].index for w in nearest_classes(wnid(index))} == expected


def test_every_class_has_neighbours_below_a_common_synset():
    known = synsets()

    def above(w):
        return {w} | {a for parent in known[w].parents for a in above(parent)}

    for synset in classes()[::37]:
        near = nearest_classes(synset.wnid)
        assert len(near) >= 4 and synset.wnid not in near and len(set(near)) == len(near)
        common = set.intersection(*(above(w) for w in (synset.wnid, *near)))
        assert common - {"n00001740"}


def test_the_nearest_come_first():
    """Of the microphone's cluster, the other transducer before all other devices."""
    names = [synsets()[w].word for w in nearest_classes(wnid(650))]
    assert names[0] == "loudspeaker" and len(names) > 100
