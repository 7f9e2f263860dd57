"""fastdigin bench memory: its command on few points, and the figures that have a limit."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest

from fastdigin_bench import memory


def row(steps, slots, kept, measured, predicted, state=0):
    return {
        "steps": steps, "slots": slots, "kept_steps": kept, "measured_bytes": measured,
        "predicted_bytes": predicted, "state_bytes": state,
    }  # fmt: skip


def test_targets_by_hand():
    rows = [
        row(5, 1, 0, 100, 104, state=10), row(50, 1, 0, 190, 190, state=97),
        row(5, 4, 0, 400, 400, state=40), row(50, 4, 0, 760, 760, state=390),
        row(20, 1, 20, 900, 1000),
    ]  # fmt: skip
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
    growth, error, budget, slot, step = memory.find_targets(rows, budgets, counted)
    assert growth["value"] == pytest.approx(93 / 90, abs=1e-4) and growth["met"]
    assert error["value"] == pytest.approx(0.1) and error["met"]
    assert budget["value"] == pytest.approx(1.01) and not budget["met"]
    assert slot["value"] == 1.2e9 and slot["met"] and step["value"] == 1.1e9 and not step["met"]


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "GRID", [(1, 1, 0), (3, 1, 0), (3, 1, 3)])
    monkeypatch.setattr(memory, "BUDGETS", ("1MiB", "1GiB"))
    monkeypatch.setattr(memory, "BUDGET_SLOTS", (1,))
    monkeypatch.setattr(memory, "BUDGET_STEPS", 2)
    monkeypatch.setattr(memory, "_resident_bytes", lambda *point: 2**28)
    options = Namespace(results=tmp_path, one_process=None, account=False)
    assert memory.run(options) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads((tmp_path / "memory.json").read_text())
    assert (tmp_path / "memory.png").stat().st_size > 1000
    assert [(r["steps"], r["slots"], r["kept_steps"]) for r in last["rows"]] == memory.GRID
    assert last["rows"][2]["measured_bytes"] > last["rows"][1]["measured_bytes"]
    assert all(target["met"] for target in last["targets"]), last["targets"]
    refused, run = last["budgets"]
    assert "do not hold 1 slot" in refused["refused"] and run["kept_steps"] == 2


@pytest.mark.slow
def test_the_size_of_a_fresh_process():
    """Python and its libraries alone are some hundred MiB."""
    assert 2**27 < memory._resident_bytes(1, 1, 0) < 2**32
