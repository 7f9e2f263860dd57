"""Figures: values, intervals, targets, how they are shown."""

import pytest

from fastdigin.metrics.figures import at_least, at_most, figure, figures_of, share
from fastdigin_bench.output import figures_table


def test_a_share_has_wilsons_interval():
    found = figure("flips", [True] * 9 + [False, None])
    assert (found.value, found.n, found.unit) == (0.9, 10, "share")
    assert found.interval == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert found.met is None
    assert share("flips", 0.9, 10) == found  # counted elsewhere


def test_a_mean_and_its_interval():
    values = [0.0, 1.0] * 50
    found = figure("L1", values)
    low, high = found.interval
    assert found.value == 0.5 and found.n == 100
    # The normal interval of 100 fair coins is 0.40 to 0.60.
    assert low == pytest.approx(0.40, abs=0.02) and high == pytest.approx(0.60, abs=0.02)
    assert found == figure("L1", values)  # the same draws every time


def test_a_ratio_is_that_of_the_means():
    found = figure("x", [(1.0, 2.0), (5.0, 2.0)])
    assert found.value == 1.5 and found.interval == (0.5, 2.5)
    proportional = figure("x", [(3.0, 2.0), (6.0, 4.0), (9.0, 6.0)])  # leave no doubt
    assert proportional.interval == pytest.approx((1.5, 1.5))


@pytest.mark.parametrize(
    ("target", "met"),
    [(at_least(0.75), True), (at_least(0.76), False), (at_most(0.75), True), (at_most(0.7), False)],
)
def test_targets(target, met):
    assert figure("x", [True, True, True, False], target).met is met


def test_nothing_measured_is_neither_met_nor_missed():
    found = figure("x", [None], at_least(0.5))
    assert (found.value, found.n, found.interval, found.met) == (None, 0, None, None)
    assert found.show() == "-"


@pytest.mark.parametrize(
    ("found", "shown", "wanted"),
    [
        (figure("x", [True] * 9 + [False], at_least(0.96)), "90.0% (59.6% to 98.2%, n = 10)",
         "at least 96.0%"),
        (figure("x", [27.0], at_least(27), "dB"), "27.0 dB (n = 1)", "at least 27.0 dB"),
        (figure("x", [1.0], at_most(1.5)), "1.00 (n = 1)", "at most 1.50"),
    ],
)  # fmt: skip
def test_shown(found, shown, wanted):
    assert (found.show(), found.show_target()) == (shown, wanted)


def test_a_table_of_rows():
    rows = [{"flips": True, "L1": 0.5}, {"flips": True, "L1": None}]
    figures = figures_of(rows, {"flips": at_least(0.9), "L1": at_most(0.1)})
    titles, _, flips, l1 = figures_table(figures).splitlines()
    assert titles.split() == ["figure", "value", "target", "met"]
    assert "n = 2" in flips and flips.endswith("yes") and l1.endswith("NO")
