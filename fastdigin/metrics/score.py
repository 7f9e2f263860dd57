"""All figures of an explanation method, from its cases."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fastdigin.errors import UserError
from fastdigin.metrics.cases import Case
from fastdigin.metrics.distances import masked_l1, masked_l2
from fastdigin.metrics.extractors import Extractor
from fastdigin.metrics.features import (
    SAME,
    changed_attributes,
    correlation_difference,
    cosine_distance,
    cosines,
    cout,
    diversity,
    frechet_distance,
    jackknifed,
    kernel_distance,
    split_frechet_distances,
)
from fastdigin.metrics.figures import Figure, Value, figure
from fastdigin.models.classifier import Classifier

BATCH = 32
LEAST = 4
"""Photos and explanations that distances of sets need: two in each half."""

Cohort = Literal["all", "flipped", "correct"]
"""flipped: the explanations that reach their target. correct: of photos that were read right."""


@dataclass(frozen=True)
class Networks:
    """What looks at the pictures; figures of those that are None are left out.

    classifier: the explained one; flips and confidences are then its own, whatever is recorded.
    judge: likewise. extractor: for FID, KID, sFID, S3 and diversity. faces: for FVA and FS.
    attributes: networks whose classes are attributes, for MNAC and CD. lpips: from ``load_lpips``.
    """

    classifier: Classifier | None = None
    judge: Classifier | None = None
    extractor: Extractor | None = None
    faces: Extractor | None = None
    attributes: Sequence[Classifier] = ()
    lpips: nn.Module | None = None


@dataclass(frozen=True)
class Score:
    """A figure, the cases that it is of, and the network that it is by (None: no network)."""

    figure: Figure
    cohort: Cohort
    network: str | None = None

    def plain(self) -> dict[str, Any]:
        """JSON values, rounded to four digits; n is the number of cases."""
        value, interval = self.figure.value, self.figure.interval
        return {
            "name": self.figure.name,
            "value": None if value is None else _rounded(value),
            "interval": interval and [_rounded(end) for end in interval],
            "n": self.figure.n,
            "cohort": self.cohort,
            "network": self.network,
        }


@dataclass
class _Seen:
    """What was found, a value a case, in their order. features: kind -> before and after."""

    rows: list[dict[str, Value]] = field(default_factory=list)
    features: dict[str, tuple[list[Tensor], list[Tensor]]] = field(
        default_factory=lambda: defaultdict(lambda: ([], []))
    )

    def column(self, name: str, keep: Sequence[bool]) -> list[Value]:
        return [row.get(name) for row, kept in zip(self.rows, keep, strict=True) if kept]

    def pair(self, kind: str) -> tuple[Tensor, Tensor]:
        before, after = self.features[kind]
        return torch.cat(before), torch.cat(after)


@torch.no_grad()
def score(
    cases: Sequence[Case],
    networks: Networks,
    *,
    query: str | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> list[Score]:
    """The figures of a method, each with n, its 95% interval, its cohort and its network.

    Args:
        cases: the explanations.
        networks: what looks at them.
        query: the attribute that the explanations shall change, for CD.
        on_progress: called with the number of cases that were just looked at.

    Returns:
        The scores, as the docstring of the room lists them; without those that nothing is known
        of.

    Raises:
        UserError: no cases, pictures that cannot be read or differ in size, or an unknown class.

    Example:
        >>> networks = Networks(judge=judge, extractor=load_extractor("embedded:judge"))
        >>> scores = score(cases_of(fd.read_records("out")), networks)
    """
    if not cases:
        raise UserError("cases is empty: give at least one explanation")
    seen = _Seen()
    for batch in _batches(cases):
        _look(batch, networks, seen)
        if on_progress is not None:
            on_progress(len(batch))
    flips = [row.get("flip rate") for row in seen.rows]
    every: Cohort = "all"
    # Explanations that fail say nothing of how good a change is, where flips are known at all.
    reached: Cohort = "all" if set(flips) == {None} else "flipped"
    keep = {
        "all": [True] * len(cases),
        "flipped": [flip is True for flip in flips],
        "correct": [case.correct is not False for case in cases],
    }
    right: Cohort = "all" if all(keep["correct"]) else "correct"

    def rows(name: str, cohort: Cohort, network: str | None = None, of: str = "") -> Score:
        return Score(figure(name, seen.column(of or name, keep[cohort])), cohort, network)

    classifier, judge = (_name(x) for x in (networks.classifier, networks.judge))
    found = [
        rows("flip rate", every, classifier),
        rows("confidence change", every, classifier),
        rows("judge agreement", every, judge),
        rows("transfer", reached, judge, of="judge agreement"),
        *(rows(f"{norm}{where}", every) for norm in ("L1", "L2") for where in _REGIONS),
        *(rows(f"LPIPS{where}", every, "lpips") for where in _REGIONS),
        rows("COUT", right, classifier),
    ]
    if networks.extractor is not None:
        found += _of_sets(*seen.pair("extractor"), keep, reached, networks.extractor.name)
        found.append(_alike("S3", seen.pair("extractor"), keep, right, networks.extractor.name))
    found += _diversities(cases, networks, seen)
    if networks.faces is not None:
        name, pair = networks.faces.name, seen.pair("faces")
        found += [_alike(metric, pair, keep, reached, name) for metric in ("FVA", "FS")]
    if networks.attributes:
        found += _of_attributes(seen.pair("attributes"), keep, reached, networks, query)
    return [one for one in found if one.figure.n]


_REGIONS = {"": None, ", foreground": True, ", background": False}
"""Name -> whether it is the mask's inside; None for all of the picture."""

_Batch = list[tuple[Case, Tensor, Tensor, "Tensor | None"]]


def _batches(cases: Sequence[Case]) -> Iterator[_Batch]:
    """The cases with their pictures, some of equal size at a time."""
    batch: _Batch = []
    for case in cases:
        read = case.read()
        if len(batch) == BATCH or (batch and batch[0][1].shape != read[0].shape):
            yield batch
            batch = []
        batch.append((case, *read))
    yield batch


def _look(batch: _Batch, networks: Networks, seen: _Seen) -> None:
    """Adds a row and the features of each case."""
    cases = [case for case, *_ in batch]
    before, after = (torch.stack([one[k] for one in batch]) for k in (1, 2))
    rows = [
        {
            "flip rate": case.flipped,
            "confidence change": case.confidence and abs(case.confidence[1] - case.confidence[0]),
            "judge agreement": case.judged,
            **_distances(*one, networks.lpips),
        }
        for case, *one in batch
    ]
    if networks.classifier is not None:
        for row, own in zip(rows, _asked(cases, before, after, networks.classifier), strict=True):
            row |= own
    for row, sees in zip(rows, _sees_target(cases, after, networks.judge), strict=True):
        row["judge agreement"] = row["judge agreement"] if sees is None else sees
    seen.rows += rows
    kinds = {"extractor": networks.extractor, "faces": networks.faces}
    looks = {kind: known.features for kind, known in kinds.items() if known is not None}
    if networks.attributes:
        looks["attributes"] = partial(_attributes, networks.attributes)
    for kind, look in looks.items():
        for kept, images in zip(seen.features[kind], (before, after), strict=True):
            kept.append(look(images).double().cpu())


def _distances(
    before: Tensor, after: Tensor, mask: Tensor | None, lpips: nn.Module | None
) -> dict[str, Value]:
    row: dict[str, Value] = {}
    for where, inside in _REGIONS.items():
        if inside is not None and mask is None:
            continue
        region = None if inside is None else mask if inside else 1 - mask
        row[f"L1{where}"] = masked_l1(after, before, region)
        row[f"L2{where}"] = masked_l2(after, before, region)
        if lpips is not None:  # the other region is the photo's
            changed = after if region is None else before + region * (after - before)
            row[f"LPIPS{where}"] = _lpips(lpips, before, changed)
    return row


def _lpips(network: nn.Module, a_3hw: Tensor, b_3hw: Tensor) -> float:
    device = next(network.parameters()).device
    pair = (x[None].to(device) for x in (a_3hw, b_3hw))
    return float(network(*pair, normalize=True))


def _asked(
    cases: Sequence[Case], before: Tensor, after: Tensor, classifier: Classifier
) -> Iterator[dict[str, Value]]:
    """The classifier's own flips, confidences and COUT."""
    probabilities = [
        classifier.probabilities(x.to(classifier.device)).cpu() for x in (before, after)
    ]
    for n, case in enumerate(cases):
        if case.target is None:
            yield {}
            continue
        target = classifier.class_index(case.target)
        at_first, found = (p[n] for p in probabilities)
        already = classifier.sees(at_first, target)
        row: dict[str, Value] = {
            "flip rate": None if already else classifier.sees(found, target),
            "confidence change": float((found - at_first)[target].abs()),
        }
        if case.source is not None:
            source = classifier.class_index(case.source)
            pair = (x[n].to(classifier.device) for x in (before, after))
            row["COUT"] = cout(*pair, classifier.probabilities, source, target)
        yield row


def _sees_target(
    cases: Sequence[Case], after: Tensor, judge: Classifier | None
) -> Iterator[bool | None]:
    """Whether the judge sees the target of each case."""
    if judge is None:
        yield from [None] * len(cases)
        return
    for case, found in zip(cases, judge.probabilities(after.to(judge.device)), strict=True):
        target = case.target
        yield None if target is None else judge.sees(found, judge.class_index(target))


def _attributes(networks: Sequence[Classifier], images_b3hw: Tensor) -> Tensor:
    """The probabilities of all networks' classes, side by side."""
    found = [network.probabilities(images_b3hw.to(network.device)).cpu() for network in networks]
    return torch.cat(found, dim=1)


def _of_sets(
    before: Tensor, after: Tensor, keep: dict[Cohort, list[bool]], cohort: Cohort, name: str
) -> list[Score]:
    """FID, KID and sFID of all photos and the explanations of a cohort."""
    kept = torch.tensor(keep[cohort])
    n = int(kept.sum())
    if n < LEAST or len(before) < 2 * LEAST:
        return []
    found = []
    for metric, distance in (("FID", frechet_distance), ("KID", kernel_distance)):

        def statistic(which: Tensor, distance=distance) -> float:
            return distance(before[which], after[which[kept[which]]])

        value, interval = jackknifed(statistic, len(before))
        found.append(Score(Figure(metric, value, n, interval), cohort, name))
    try:
        halves = split_frechet_distances(before, torch.where(kept[:, None], after, torch.nan))
    except ValueError:  # a half has too few of the cohort
        return found
    interval = tuple(np.percentile(halves, [2.5, 97.5]).tolist())
    return [*found, Score(Figure("sFID", fmean(halves), n, interval), cohort, name)]


def _alike(
    metric: str,
    pair: tuple[Tensor, Tensor],
    keep: dict[Cohort, list[bool]],
    cohort: Cohort,
    name: str,
) -> Score:
    kept = torch.tensor(keep[cohort])
    values: list[Value] = list(cosines(*(x[kept] for x in pair)))
    if metric == "FVA":
        values = [value > SAME for value in values]
    return Score(figure(metric, values), cohort, name)


def _diversities(cases: Sequence[Case], networks: Networks, seen: _Seen) -> list[Score]:
    """Of the photos that have several explanations; n is the number of photos."""
    groups: dict[str, list[int]] = defaultdict(list)
    for n, case in enumerate(cases):
        if case.photo is not None:
            groups[case.photo].append(n)
    members = [own for own in groups.values() if len(own) > 1]
    found = []
    if networks.extractor is not None:
        _, features = seen.pair("extractor")
        values = [diversity(list(features[own]), cosine_distance) for own in members]
        found.append(Score(figure("diversity", values), "all", networks.extractor.name))
    if networks.lpips is not None:
        by_lpips = partial(_lpips, networks.lpips)
        images = ([cases[n].read()[1] for n in own] for own in members)
        values = [diversity(own, by_lpips) for own in images]
        found.append(Score(figure("diversity, LPIPS", values), "all", "lpips"))
    return found


def _of_attributes(
    pair: tuple[Tensor, Tensor],
    keep: dict[Cohort, list[bool]],
    cohort: Cohort,
    networks: Networks,
    query: str | None,
) -> list[Score]:
    """MNAC, and CD where the query attribute is named."""
    kept, (before, after) = torch.tensor(keep[cohort]), pair
    name = ", ".join(network.name for network in networks.attributes)
    found = [Score(figure("MNAC", changed_attributes(before[kept], after[kept])), cohort, name)]
    if query is not None and kept.any():
        names = [one for network in networks.attributes for one in network.classes]
        if query not in names:
            raise UserError(f"query {query!r} is no attribute: write one of {', '.join(names)}")

        def statistic(which: Tensor) -> float:
            own = which[kept[which]]
            return correlation_difference(
                before[which], before[own], after[own], names.index(query)
            )

        value, interval = jackknifed(statistic, len(before))
        found.append(Score(Figure("CD", value, int(kept.sum()), interval), cohort, name))
    return found


def _name(network: Classifier | None) -> str | None:
    return None if network is None else network.name


def _rounded(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}")
