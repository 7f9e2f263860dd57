"""The figures of a task's results: means and rates of its records, and how different they are."""

from collections.abc import Sequence

from fastdigin.metrics.cases import Case, cases_of
from fastdigin.metrics.distances import masked_l1
from fastdigin.metrics.features import diversity
from fastdigin.metrics.figures import figure
from fastdigin.results import Record
from fastdigin.results.numbers import number
from fastdigin.results.views import Figure, summarise


def summary(records: Sequence[Record]) -> list[Figure]:
    """The figures of one task's records; the diversity where photos have several (--diverse)."""
    values = diversities(records)
    if not values:
        return summarise(records)
    found = figure("diversity", values)
    note = "mean L1 inside the mask between the counterfactuals of one photo"
    if found.interval is not None:
        note += "; 95% interval {} to {}".format(*map(number, found.interval))
    shown = Figure("Diversity", number(found.value), f"{note}, n = {found.n} photos")
    return [*summarise(records), shown]


def diversities(records: Sequence[Record]) -> list[float]:
    """Of each photo with several counterfactuals the mean L1 of pairs, within its mask.

    Pixels lie in [0, 1]. A photo whose mask is empty does not count. Raises UserError for pictures
    that cannot be read.
    """
    photos: dict[str, list[Case]] = {}
    for case in cases_of([r for r in records if getattr(r, "variant", None) is not None]):
        if case.photo is not None:
            photos.setdefault(case.photo, []).append(case)
    found = []
    for own in photos.values():
        if len(own) > 1:
            mask = own[0].read()[2]
            images = [case.read()[1] for case in own]
            if mask is None or mask.sum() >= 1:
                found.append(diversity(images, lambda a, b, mask=mask: masked_l1(a, b, mask)))
    return found
