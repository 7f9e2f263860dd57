"""The bench of diverse counterfactuals: its figures by hand."""

import torch
from records import filled

import fastdigin as fd
from fastdigin_bench import diverse


def record(photo, number, grey, flipped=True, judge_agrees=True):
    pictures = {"image": torch.full((3, 64, 64), grey), "input_image": torch.zeros(3, 64, 64)}
    return filled(
        fd.CounterfactualRecord, f"{photo}-{number}", input=photo, target="bag", variant=number,
        flipped=flipped, judge_agrees=judge_agrees, foreground_l1=grey, pictures=pictures,
    )  # fmt: skip


def test_figures_are_of_photos():
    """Two photos, two variants each: of photo b the second one is not seen by the judge."""
    records = [
        record("a", 1, 0.2), record("b", 2, 0.7, judge_agrees=False), record("a", 2, 0.3),
        record("b", 1, 0.2),
    ]  # fmt: skip
    values = {f.name: (f.value, f.n) for f in diverse.figures_of(records)}
    assert values["variant 1: judge sees the target"] == (1, 2)
    assert values["variant 2: judge sees the target"] == (0.5, 2)
    assert values["judge agrees with all"] == (0.5, 2) and values["all of a photo flip"] == (1, 2)
    assert values["diversity"][1] == 2
    difference, n = values["diversity, L1 inside the mask"]
    assert abs(difference - (0.1 + 0.5) / 2) < 1e-6 and n == 2
    change, n = values["photo to counterfactual, L1 inside the mask"]
    assert abs(change - (0.25 + 0.45) / 2) < 1e-6 and n == 2
    known = diverse.figures_of([*records, record("c", 1, 0.1), record("c", 2, 0.1, flipped=None)])
    assert {f.name: f.n for f in known}["all of a photo flip"] == 2
