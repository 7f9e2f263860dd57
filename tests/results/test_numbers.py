"""Numbers and curves for people."""

import re

import pytest

from fastdigin.results.curves import BOTTOM, LEFT, RIGHT, TOP, curve
from fastdigin.results.numbers import number, percent, wilson_interval


def test_wilson_interval_against_published_values():
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):  # fmt: skip
        assert wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_numbers_for_people():
    assert [percent(v) for v in (0, 0.0001, 0.034, 0.5, 0.97, 0.9999, 1, None)] == [
        "0%", "<0.1%", "3.4%", "50%", "97%", ">99.9%", "100%", "n/a",
    ]  # fmt: skip
    assert [number(v) for v in (0, 0.0123, 1.234, -12.34, 1234.5, 1e-7, None)] == [
        "0", "0.0123", "1.23", "-12.3", "1234", "1.0e-07", "n/a",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [[1.0], [2.0, 2.0], [0.0, 0.0], [None, 3.0, None], [1e9, -1e9], [1e-9, 2e-9],
     list(range(500))],
)  # fmt: skip
def test_curves_stay_inside_their_frame(values):
    chart = curve("loss", {"total": values}, 0)
    ((_, path, dot),) = chart.lines
    points = [tuple(map(float, p)) for p in re.findall(r"[ML](\S+) (.+?)(?=h0|[ML]|$)", path)]
    assert len(points) == sum(value is not None for value in values)
    assert all(LEFT <= x <= RIGHT for x, _ in points)
    assert all(TOP <= y <= BOTTOM for y in [*(y for _, y in points), *(y for y, _ in chart.ticks)])
    assert (dot is None) == (values[0] is None) and len({y for y, _ in chart.ticks}) == 3


def test_a_share_has_its_own_axis():
    chart = curve("confidence", {"f": [0.5], "g": [0.4]}, 5, share=True)
    assert [text for _, text in chart.ticks] == ["0%", "50%", "100%"]
    assert [y for y, _ in chart.ticks] == [BOTTOM, (TOP + BOTTOM) / 2, TOP]
    assert [name for name, _, _ in chart.lines] == ["f", "g"]
    assert chart.best is None, "there is no iteration 5"


@pytest.mark.parametrize("series", [{"total": [None, None]}, {}])
def test_without_values_there_is_no_curve(series):
    assert curve("loss", series, 0) is None
