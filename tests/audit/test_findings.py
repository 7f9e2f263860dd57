"""The statistics of findings, by hand, and the lines that the command prints."""

import json
import math

import pytest
import torch
from scipy import stats

from fastdigin.audit import findings
from fastdigin.audit.findings import Effect, Explanation, Finding


def finding(ends=("grass", "grass", "brick"), mean=0.4, error=0.02, **changes):
    pixel = torch.zeros(3, 8, 8)
    made = tuple(
        Explanation(f"p{n}", pixel, pixel + 1, "plain", end, 0.1, 0.9) for n, end in enumerate(ends)
    )
    effect = Effect(mean, error, 30, {"grass": 0.9, "brick": 0.5}, "boot", {})
    values = {"class_": "sneaker", "attribute": "background", "feature": "grass"} | changes
    return Finding(effect=effect, explanations=made, **values)


def test_mean_and_error_agree_with_scipy():
    values = [0.1, 0.4, 0.2, 0.9]
    mean, error = findings.mean_and_error(values)
    assert mean == pytest.approx(0.4) and error == pytest.approx(stats.sem(values))
    assert findings.mean_and_error([0.5]) == (0.5, math.inf)


def test_surely_above():
    assert findings.surely_above(0.15, 0.15, 0.1) == pytest.approx(0.5)
    assert findings.surely_above(0.15, 0.25, 0.1) == pytest.approx(stats.norm.cdf(1))
    assert findings.surely_above(0.15, 0.2, 0.0) == 1 and findings.surely_above(0.15, 0.1, 0) == 0
    assert findings.surely_above(0.15, 9.0, math.inf) == 0


def test_confidence_falls_with_explanations_that_name_something_else():
    assert finding().confidence == pytest.approx(3 / 4)
    assert finding(ends=("grass",) * 3).confidence == pytest.approx(1)
    assert finding(ends=("brick",) * 3).confidence == pytest.approx(1 / 4)
    assert finding(mean=0.0).confidence < 1e-6 and not finding(mean=0.0).found
    assert finding(mean=0.15).confidence == pytest.approx(3 / 8) and finding().found


def test_the_correlation_is_welchs():
    having, others = [0.9, 0.8, 1.0], [0.2, 0.4, 0.3, 0.1]
    found = findings.correlation("bag", "colour", "red", having, others)
    welch = stats.ttest_ind(having, others, equal_var=False)
    assert found.effect / found.error == pytest.approx(welch.statistic)
    assert found.photos == 7 and found.confidence > 0.99


def test_lines_keep_the_contract():
    line = json.loads(json.dumps(findings.plain(finding())))
    assert {"kind", "class", "attribute", "feature", "effect", "evidence", "confidence"} == set(
        line
    )
    assert line["kind"] == "shortcut" and line["effect"] == 0.4 and line["confidence"] == 0.75
    assert line["evidence"]["explanations_naming_it"] == 2
    alone = findings.plain(findings.correlation("bag", "colour", "red", [0.5], [0.1, 0.2]))
    assert alone["kind"] == "correlation" and alone["evidence"]["standard_error"] is None
