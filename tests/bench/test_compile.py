"""fastdigin bench compile on a tiny model, with a backend that compiles nothing."""

import json
from argparse import Namespace
from types import SimpleNamespace

import pytest
from tiny import build_tiny

from fastdigin.engine import compile_choice
from fastdigin.errors import UserError
from fastdigin_bench import compile as bench


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_choice, "BACKEND", "eager")
    tiny = SimpleNamespace(model=build_tiny(levels=1).model)
    monkeypatch.setattr(bench, "load_engine", lambda *args, **named: tiny)
    return Namespace(results=tmp_path, slots=1, repeats=2)


def test_every_role_is_a_row(options, capsys):
    assert bench.run(options) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["role"] for row in last["rows"]] == ["forward", "joint", "kept"]
    for row in last["rows"]:
        assert row["error"] < 1e-12
        assert row["ratio_low"] <= row["ratio_high"] and row["milliseconds"] > 0
    assert (options.results / "compile.json").is_file()


def test_no_speed_of_other_results(options, monkeypatch):
    monkeypatch.setattr(bench, "_error", lambda actual, expected: 2 * bench.TOLERANCE)
    with pytest.raises(UserError, match="compiled forward differs by"):
        bench.run(options)
