"""fastdigin bench truth --compare: what counts as equal, who is photographed, one small run."""

import json
from itertools import islice
from math import comb

import pytest

from fastdigin import cli, demo, embedded
from fastdigin_bench import truth_compare, truth_equal
from fastdigin_bench.truth_equal import compared, paired_growth, paired_loss


def test_losses_by_hand():
    before = [True] * 8 + [False] * 2
    found = paired_loss(before, [True] * 6 + [False] * 3 + [True])
    assert (found["value"], found["n"]) == (0.1, 10)  # two lost, one gained
    assert 0.1 < found["upper"] < 0.1 + 1.645 * 0.3**0.5  # of one case of ten that changed
    # Without any change it is Wilson's bound of no loss.
    assert paired_loss([True] * 40, [True] * 40)["upper"] == pytest.approx(
        1.645**2 / (40 + 1.645**2), abs=1e-4
    )
    assert paired_loss([], [])["upper"] == 1.0


@pytest.mark.parametrize(("n", "enough"), [(20, False), (240, True)])
def test_no_change_among_few_cases_proves_nothing(n, enough):
    assert (paired_loss([True] * n, [True] * n)["upper"] <= truth_equal.LOSS_BOUND) == enough


@pytest.mark.parametrize("rate", [0.02, 0.03, 0.06, 0.1])
def test_the_bound_holds_for_19_of_20_samples(rate):
    """Of 200 cases of which each is lost at that rate: exactly, by the binomial distribution."""
    n, held = 200, 0.0
    for lost in range(60):
        upper = paired_loss([True] * n, [False] * lost + [True] * (n - lost))["upper"]
        held += comb(n, lost) * rate**lost * (1 - rate) ** (n - lost) * (upper >= rate)
    assert held >= 0.94


def test_growth_by_hand():
    """The ratio of sums goes from 1.2 to 1.5."""
    found = paired_growth([(1.0, 1.0), (1.4, 1.0)], [(1.2, 1.0), (1.8, 1.0)])
    assert found["value"] == 0.25 and found["n"] == 2
    assert found["interval"][0] <= 0.25 <= found["interval"][1]


def rows(n, flips=1.0, l1=1.0, shown=1.0):
    """Rows of two parts in which so many of n cases are as asked."""
    edits = {
        f"{k}": {
            "flips to the target": k < flips * n, "judge sees the target": True,
            "L1 outside both masks": l1, "L1 outside both masks, autoencoder alone": 1.0,
        }
        for k in range(n)
    }  # fmt: skip
    planted = {
        f"{k}": {
            "raised: planted background appears": k < shown * n if k % 2 else None,
            "lowered: planted background vanishes": None if k % 2 else k < shown * n,
            "L1 inside the true mask": l1,
            "L1 inside the true mask, autoencoder alone": 1.0,
        }
        for k in range(n)
    }
    return {"counterfactual-robust": edits, "neuron-counterfactual": planted}


@pytest.mark.parametrize(
    ("after", "half", "reasons"),
    [
        (rows(240, l1=1.04), "reporting", []),
        (rows(240, flips=0.97), "reporting", ["loss in flips"]),
        (rows(240, shown=0.97), "reporting", ["loss in planted backgrounds"]),
        (rows(240, l1=1.06), "reporting", ["L1 of counterfactual-robust", "L1 of neuron-"]),
        (rows(240), "tuning", ["240 pairs of the tuning photos, wanted 200"]),
        (rows(190), "reporting", ["190 pairs of the reporting photos"]),
        ({"counterfactual-robust": rows(240)["counterfactual-robust"]}, "reporting",
         ["not measured: planted backgrounds"]),
    ],
)  # fmt: skip
def test_what_is_equal(after, half, reasons):
    found = compared(rows(240), after, half)
    assert found["equal"] == (not reasons)
    for reason, why in zip(reasons, found["why"], strict=True):
        assert reason in why
    (flips,) = [
        f for f in found["figures"]["counterfactual-robust"] if f["name"] == "flips to the target"
    ]
    assert flips["interval"][0] < flips["value"] <= flips["interval"][1]


def test_halves_share_no_photo_and_know_none_that_was_looked_at():
    halves = {name: {p.id for p in photos} for name, photos in truth_compare.halves().items()}
    seen = {pair.photo.id for pair in embedded.pairs()}
    seen |= {photo.id for photo, _, _ in islice(demo.neuron_counterfactual_plans(), 48)}
    assert len(halves["reporting"]) == truth_compare.PAIRS >= 2 * len(halves["tuning"]) > 100
    assert not halves["reporting"] & halves["tuning"]
    assert not (halves["reporting"] | halves["tuning"]) & seen
    first = truth_compare.halves()["reporting"][:8]
    assert {photo.garment for photo in first} == set(embedded.GARMENTS)


def test_questions_are_those_of_the_packaged_pairs():
    known = {(pair.source, pair.target) for pair in embedded.pairs()}
    asked = truth_compare.questions(truth_compare.halves()["reporting"])
    assert {(item.source, item.target) for item in asked} == known
    assert all(item.source in item.prompt for item in asked)


QUICK = {"optimisation.steps": 4, "optimisation.iterations": 1, "null_text_steps": 1,
         "injection_fractions": [0.3], "blending_fractions": [0.0]}  # fmt: skip


def test_a_run_is_continued_and_ends_in_one_line(tmp_path, capsys):
    """Two settings of one photo; the second time nothing is left to do."""
    for name, more in (("one", {}), ("two", {"inversion_method": "direct"})):
        settings = {"counterfactual": QUICK | more}
        content = {"about": name, "settings": settings, "notes": []}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    names = ",".join(str(tmp_path / f"{name}.json") for name in ("one", "two"))
    command = [
        "bench", "truth", "--compare", names, "--tuning", "--jobs", "1",
        "--only", "counterfactual-robust", "--out", str(tmp_path / "out"),
        "--results", str(tmp_path),
    ]  # fmt: skip
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    last = json.loads(printed.splitlines()[-1])
    assert last == json.loads((tmp_path / "truth-compare.json").read_text())
    one, two = last["settings"]
    assert last["baseline"] == one["name"] and two["name"].endswith("two.json")
    assert (one["equal"], two["equal"]) == (False, False)  # one photo proves nothing
    for setting in (one, two):
        seconds = setting["seconds"]["counterfactual-robust"]
        assert seconds["preparation"] > 0 and seconds["all"] > seconds["optimisation"] > 0
        assert seconds["search"] < 0.1  # a single candidate is not evaluated
        assert all(f["n"] == 1 for f in setting["figures"]["counterfactual-robust"])
    assert (tmp_path / "truth-compare-pictures.png").stat().st_size > 1000
    records = {f: f.read_bytes() for f in tmp_path.rglob("results.jsonl")}
    assert len(records) == 2
    assert cli.main(command) == 0 and capsys.readouterr().out == printed
    assert {f: f.read_bytes() for f in tmp_path.rglob("results.jsonl")} == records
