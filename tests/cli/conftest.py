"""Fixtures of the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cli_commands import QUICK, run, words_file


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer candidates and shorter inversions than the defaults, for which there is no option."""
    from fastdigin.tasks import counterfactual as cf
    from fastdigin.tasks import neuron_counterfactual as ncf
    from fastdigin.tasks import neurons as neu

    less = {"injection_fractions": (0.5,), "blending_fractions": (0.5,), "null_text_steps": 1}
    monkeypatch.setattr(cf, "EMBEDDED", replace(cf.EMBEDDED, **less))
    monkeypatch.setattr(ncf, "EMBEDDED", replace(ncf.EMBEDDED, null_text_steps=1))
    monkeypatch.setattr(neu, "EMBEDDED", replace(neu.EMBEDDED, samples_per_word=2))


@pytest.fixture
def words(tmp_path):
    return words_file(tmp_path / "words.txt", "sneaker on grass", "bag")


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command that must be refused before anything is written; returns its one message."""

    def refused(*arguments, out=None):
        out = tmp_path / "refused" if out is None else out
        assert run(*arguments, "--out", out, *QUICK) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and "Traceback" not in captured.err
        if isinstance(out, Path) and out.is_dir():
            assert not list(out.iterdir())
        return captured.err

    return refused
