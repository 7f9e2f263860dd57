"""fastdigin bench memory: a few points of a tiny model, and the figures that have a limit."""

import pytest
from tiny import build_classifier

from fastdigin_bench import memory
from fastdigin_bench.processes import in_processes


def row(steps, slots, kept, measured, predicted, state=0):
    return {
        "steps": steps, "slots": slots, "kept_steps": kept, "measured_bytes": measured,
        "predicted_bytes": predicted, "state_bytes": state,
    }  # fmt: skip


ROWS = [
    row(5, 1, 0, 100, 104, state=10), row(50, 1, 0, 190, 190, state=97),
    row(5, 4, 0, 400, 400, state=40), row(50, 4, 0, 760, 760, state=390),
    row(20, 1, 20, 900, 1000),
]  # fmt: skip


def test_targets_by_hand():
    budgets = [
        {"budget": "32MiB", "refused": "too small"},
        {"measured_bytes": 90, "predicted_bytes": 96, "budget_bytes": 100},
        {"measured_bytes": 101, "predicted_bytes": 99, "budget_bytes": 100},
    ]
    counted = [
        {"model": "SDXL", "resolution": 512, "marginal_bytes_per_slot": 9e9,
         "saved_bytes_per_step": 9e9},
        {"model": "SD 1.4", "resolution": 512, "marginal_bytes_per_slot": 1.2e9,
         "saved_bytes_per_step": 1.1e9},
    ]  # fmt: skip
    growth, error, budget, slot, step = memory.find_targets(ROWS, budgets, counted)
    assert growth["value"] == pytest.approx(93 / 90, abs=1e-4) and growth["met"]
    assert error["value"] == pytest.approx(0.1) and error["met"]
    assert budget["value"] == pytest.approx(1.01) and not budget["met"]
    assert slot["value"] == 1.2e9 and slot["met"] and step["value"] == 1.1e9 and not step["met"]


def test_peaks_of_a_tiny_model(tiny):
    """A kept step costs memory, a recomputed one none; predictions are near."""
    classifier = build_classifier()
    few, many, kept = (
        memory.measured_row(tiny.model, classifier, *point)
        for point in [(1, 1, 0), (3, 1, 0), (3, 1, 3)]
    )
    two_steps = many["measured_bytes"] - few["measured_bytes"]
    assert kept["measured_bytes"] - many["measured_bytes"] > 5 * two_steps
    for each in (few, many, kept):
        assert each["measured_bytes"] == pytest.approx(each["predicted_bytes"], rel=0.1)


def test_budgets_of_a_tiny_model(tiny):
    small, large = (
        memory.budget_row(tiny.model, build_classifier(), budget, 1, 2)
        for budget in ("1MiB", "1GiB")
    )
    assert "do not hold 1 slot" in small["refused"]
    assert large["kept_steps"] == 2 and large["measured_bytes"] < large["budget_bytes"] == 2**30


@pytest.mark.slow
def test_the_size_of_a_fresh_process():
    """Python and its libraries are some hundred MiB; what this process holds does not count."""
    held = bytearray(b"x") * 2**32
    (found,) = in_processes(memory.resident_bytes, [(1, 1, 0)])
    assert 2**27 < found < len(held)
