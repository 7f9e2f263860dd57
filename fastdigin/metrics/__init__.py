"""How good explanations are, by the metrics of the literature; of any method, not only ours.

``fastdigin score DIR`` prints them; :func:`score` takes cases of a folder (:func:`read_cases`), of
records (:func:`cases_of`), in the layout of the ACE scripts (:func:`read_ace`, :func:`write_ace`),
or made by hand (:class:`Case`). Every figure comes with n, a 95% interval, the cases that it is of
and the network that it is by: without these no two figures can be compared.

| figure | what it says | better |
|---|---|---|
| flip rate | share of photos whose explanation the classifier takes for the target; those it took for it before do not count | high |
| confidence change | mean absolute change of the confidence in the target | high |
| judge agreement | share of explanations in which an independent classifier sees the target | high |
| transfer | the same of the explanations that flip the classifier | high |
| L1, L2 | mean absolute and root mean squared change of a pixel in [0, 1]; in all of the picture, within the mask, outside it | low |
| LPIPS | perceptual change; of a region: with the other region put back | low |
| FID, KID | distance of the set of explanations from the set of photos, in an extractor's features | low |
| sFID | FID between photos and the explanations of other photos: ten random halvings | low |
| S3, FS | mean cosine of photo and explanation, in a self-supervised network's and a face network's features | high |
| FVA | share of pairs whose cosine in a face network's features is above 0.5 | high |
| MNAC | mean number of attributes that change, by networks whose classes are attributes | low |
| CD | how far correlations of changes with the query attribute's change are from those in photos | low |
| COUT | area between the target's and the source's probability while the most changed pixels are put in first | high |
| diversity | mean distance (1 - cosine, or LPIPS) between the explanations of one photo | high |

Cohorts are those of the ACE scripts: FID, KID, sFID, FVA, FS, MNAC and CD are of explanations that
flip the classifier ("flipped"), against all photos; COUT and S3 are of photos that it read
correctly ("correct"), where that is known; the others are of all. Intervals: Wilson's for shares,
the bootstrap's for means, the delete-a-group jackknife's for FID, KID and CD; that of sFID is the
middle 95% of its twenty halves. Distances of sets are left out below four explanations, sFID also
where a half has one. FID grows as n falls, and is for equal n and extractor only; KID does not.
An adversarial change gives a high flip rate and small distances as well: look at the judge.
"""  # noqa: E501

from fastdigin.metrics.ace import read_ace, write_ace
from fastdigin.metrics.cases import Case, cases_of, read_cases
from fastdigin.metrics.extractors import Extractor, load_extractor
from fastdigin.metrics.score import Networks, Score, score

__all__ = [
    "Case",
    "Extractor",
    "Networks",
    "Score",
    "cases_of",
    "load_extractor",
    "read_ace",
    "read_cases",
    "score",
    "write_ace",
]
