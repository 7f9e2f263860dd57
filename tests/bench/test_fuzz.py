"""A few hostile inputs of every kind, and a fuzzer that notices what goes wrong."""

import json
import sys
import time
from collections import Counter

import pytest
from hypothesis import strategies as st

from fastdigin.errors import UserError
from fastdigin_bench import fuzz


@pytest.mark.parametrize("target", fuzz.TARGETS, ids=lambda target: target.__name__)
def test_hostile_inputs_are_read_or_refused(target, monkeypatch):
    monkeypatch.setattr(fuzz, "BATCH", 8)
    counts = Counter()
    fuzz.one_round(target, 12345, counts)
    assert counts[target.__name__] >= 2


def refused(draw, folder):
    raise UserError(f"{draw(st.integers())} is no good")


def crash(draw, folder):
    if draw(st.integers()) > 9:
        raise KeyError("a")


def wrong(draw, folder):
    assert draw(st.integers()) < 10


def hang(draw, folder):
    time.sleep(9)


def test_what_goes_wrong_is_counted(monkeypatch):
    monkeypatch.setattr(fuzz, "PATIENCE", 0.1)
    found = fuzz.fuzz(1e-9, targets=(refused, crash, wrong, hang))
    assert (found["tracebacks"], found["hangs"], found["rounds"]) == (2, 1, 1)
    assert [fault.split(":")[0] for fault in found["faults"]] == ["crash", "wrong"]


def test_the_last_line_is_json(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fuzz", "--minutes", "0.001", "--only", "caches"])
    assert fuzz.main() == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["inputs"] == last["by_target"]["caches"] > 0
