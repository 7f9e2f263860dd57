"""The figure of diversity, by hand."""

import torch
from records import filled

import fastdigin as fd
from fastdigin.metrics import cases_of
from fastdigin.report.summary import diversities, summary


def variant(number, grey, photo="a", masked=4):
    """A counterfactual whose picture has one grey on the left, where the mask is, and noise on the
    right."""
    mask = torch.zeros(8, 8)
    mask[:, :masked] = 1
    image = torch.rand(3, 8, 8)
    image[..., :4] = grey
    pictures = {"image": image, "input_image": torch.zeros(3, 8, 8), "mask": mask}
    values = {"input": photo, "target": "bag", "variant": number, "pictures": pictures}
    return filled(fd.CounterfactualRecord, f"{photo}-{number}", **values)


def test_diversity_is_the_mean_of_pairs_inside_the_mask():
    three = [variant(1, 0.0), variant(2, 0.3), variant(3, 0.9)]
    (found,) = diversities([*three, variant(1, 0.5, "alone")])
    assert abs(found - (0.3 + 0.9 + 0.6) / 3) < 1e-6
    others = [variant(1, 0.0, "b"), variant(2, 0.2, "b")]
    shown = summary([*three, *others])[-1]
    assert (shown.label, shown.value) == ("Diversity", "0.400")
    assert shown.note.endswith("95% interval 0.200 to 0.600, n = 2 photos")


def test_single_counterfactuals_have_none():
    found = summary([variant(1, 0.0), variant(1, 0.5, "b")])
    assert "Diversity" not in [figure.label for figure in found]


def test_what_cannot_be_compared_does_not_count():
    assert diversities([variant(1, 0.0, masked=0), variant(2, 0.5, masked=0)]) == []
    ways = [filled(fd.NeuronCounterfactualRecord, way, direction=way) for way in ("max", "min")]
    assert [case.photo for case in cases_of(ways)] == [None, None]  # no variants of one answer
