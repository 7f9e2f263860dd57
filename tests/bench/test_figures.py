"""Figures: values, intervals, targets, how they are shown."""

import pytest

from fastdigin_bench.figures import (
    at_least,
    at_most,
    figures_table,
    mean,
    rate,
    ratio,
    share,
)


def test_rate_is_the_share_of_hits_with_wilsons_interval():
    figure = rate("flips", [True] * 9 + [False])
    assert (figure.value, figure.n, figure.unit) == (0.9, 10, "share")
    assert figure.interval == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert figure.met is None


def test_share_counted_elsewhere_equals_the_rate():
    assert share("x", 0.75, 8) == rate("x", [True] * 6 + [False] * 2)


def test_mean_and_its_interval():
    values = [0.0, 1.0] * 50
    figure = mean("L1", values)
    low, high = figure.interval
    assert figure.value == 0.5 and figure.n == 100
    # The normal interval of 100 fair coins is 0.40 to 0.60.
    assert low == pytest.approx(0.40, abs=0.02) and high == pytest.approx(0.60, abs=0.02)
    assert figure == mean("L1", values)  # the same draws every time


def test_ratio_is_that_of_the_means():
    figure = ratio("x", [1.0, 5.0], [2.0, 2.0])
    assert figure.value == 1.5
    assert figure.interval == (0.5, 2.5)


def test_pairs_that_are_proportional_leave_no_doubt_about_their_ratio():
    assert ratio("x", [3.0, 6.0, 9.0], [2.0, 4.0, 6.0]).interval == pytest.approx((1.5, 1.5))


@pytest.mark.parametrize(
    ("target", "met"),
    [(at_least(0.75), True), (at_least(0.76), False), (at_most(0.75), True), (at_most(0.7), False)],
)
def test_targets(target, met):
    assert rate("x", [True, True, True, False], target).met is met


def test_nothing_measured_is_neither_met_nor_missed():
    for figure in (rate("x", [], at_least(0.5)), mean("x", [], at_least(0.5))):
        assert (figure.value, figure.n, figure.interval, figure.met) == (None, 0, None, None)
        assert figure.show() == "-"


def test_shown():
    assert rate("x", [True] * 9 + [False]).show() == "90.0% (59.6% to 98.2%, n = 10)"
    assert mean("x", [27.0], at_least(27), "dB").show() == "27.0 dB (n = 1)"  # no interval
    assert rate("x", [True], at_least(0.96)).show_target() == "at least 96.0%"
    assert mean("x", [27.0], at_least(27), "dB").show_target() == "at least 27.0 dB"
    assert mean("x", [1.0], at_most(1.5)).show_target() == "at most 1.50"


def test_plain_values_are_rounded():
    assert rate("flips", [True, True, False], at_least(0.95)).plain() == {
        "name": "flips", "value": 0.6667, "n": 3, "interval": [0.2077, 0.9385],
        "target": "at least 95.0%", "met": False,
    }  # fmt: skip


def test_table():
    figures = [rate("flips", [True] * 4, at_least(0.9)), mean("L1", [0.5], at_most(0.1))]
    titles, _, flips, l1 = figures_table(figures).splitlines()
    assert titles.split() == ["figure", "value", "target", "met"]
    assert "n = 4" in flips and flips.endswith("yes") and l1.endswith("NO")
