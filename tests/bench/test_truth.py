"""fastdigin bench truth: what it prints, keeps and continues. One slow test runs it for real."""

import json
from types import SimpleNamespace

import pytest

from fastdigin import cli
from fastdigin_bench import truth
from fastdigin_bench.command import TRUTH_PARTS
from fastdigin_bench.figures import at_least, rate
from fastdigin_bench.truth_part import Measured, Setup


@pytest.fixture
def measured(monkeypatch):
    """Parts that cost nothing: a list of those that ran, and what to do instead of some."""
    ran, instead = [], {}

    def fake(name):
        def measure(setup, out):
            ran.append(name)
            if name in instead:
                raise instead[name]
            jobs = setup.at_most(4)
            return Measured(jobs, 0, [rate("flips", [True] * jobs, at_least(0.95))])

        return measure

    monkeypatch.setattr(truth, "PARTS", {name: fake(name) for name in TRUTH_PARTS})
    monkeypatch.setattr(truth, "load", lambda limit: Setup(SimpleNamespace(slots=8), {}, limit))
    monkeypatch.setattr(truth, "embedded_fingerprint", lambda: "one")
    return SimpleNamespace(ran=ran, instead=instead)


@pytest.fixture
def bench(tmp_path):
    def bench(*arguments):
        folders = ("--out", tmp_path / "out", "--results", tmp_path / "results")
        return cli.main([str(a) for a in ("bench", "truth", *folders, *arguments)])

    return bench


@pytest.fixture
def kept(tmp_path):
    return lambda: json.loads((tmp_path / "results" / "truth.json").read_text())


def test_the_names_of_the_parts():
    assert tuple(truth.PARTS) == TRUTH_PARTS


@pytest.mark.parametrize("jobs", [1, 2])
def test_tables_then_one_line_of_json(measured, bench, kept, jobs, capsys):
    assert bench("--jobs", jobs) == 0
    *tables, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == kept()
    assert tuple(kept()["parts"]) == TRUTH_PARTS
    assert kept()["conditions"]["jobs"] == jobs
    assert kept()["parts"]["world"]["figures"][0]["n"] == jobs
    assert [line for line in tables if line.endswith(" jobs")][0] == f"world: {jobs} jobs"
    assert sum("at least 95.0%" in line and "yes" in line for line in tables) == len(TRUTH_PARTS)


def test_figures_are_kept_after_every_part(measured, bench, kept):
    measured.instead["disagreement"] = KeyboardInterrupt()
    assert bench() == 130
    assert tuple(kept()["parts"]) == TRUTH_PARTS[:3]
    measured.instead.clear()
    assert bench() == 0
    assert tuple(kept()["parts"]) == TRUTH_PARTS


def test_one_part_leaves_the_others_figures_alone(measured, bench, kept):
    assert bench("--only", "neurons") == 0
    assert bench("--only", "world") == 0
    assert measured.ran == ["neurons", "world"]
    assert tuple(kept()["parts"]) == ("world", "neurons")
    assert bench("--only", "world", "--jobs", 1) == 0  # other conditions: never in one file
    assert tuple(kept()["parts"]) == ("world",)


def test_failed_jobs_are_said(measured, bench, kept, monkeypatch, capsys):
    monkeypatch.setitem(truth.PARTS, "world", lambda *_: Measured(3, 1, [rate("x", [True] * 2)]))
    assert bench("--only", "world") == 1
    assert "world: 3 jobs, 1 failed" in capsys.readouterr().out
    assert kept()["parts"]["world"]["failed"] == 1


def test_results_of_other_weights_are_not_continued(measured, bench, monkeypatch, capsys):
    assert bench("--only", "world") == 0
    monkeypatch.setattr(truth, "embedded_fingerprint", lambda: "two")
    assert bench("--only", "world") == 2
    assert "name another --out" in capsys.readouterr().err
    assert measured.ran == ["world"]


def test_a_file_for_a_folder(measured, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for option in ("--out", "--results"):
        other = {"--out": "--results", "--results": "--out"}[option]
        assert cli.main(["bench", "truth", option, str(tmp_path / "file"), other,
                         str(tmp_path / "fine")]) == 2  # fmt: skip
        assert f"{option} '{tmp_path / 'file'}'" in capsys.readouterr().err
    assert measured.ran == []


def test_the_fingerprint_is_the_worlds(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(truth.embedded, "model_folder", lambda: tmp_path / "model")
    (tmp_path / "model" / "unet.safetensors").write_bytes(b"weights")
    before = truth.embedded_fingerprint()
    (tmp_path / "MODEL_CARD.md").write_text("about it")
    assert truth.embedded_fingerprint() == before
    (tmp_path / "model" / "unet.safetensors").write_bytes(b"others")
    assert truth.embedded_fingerprint() != before


@pytest.mark.slow
def test_one_job_of_each_part(bench, kept, tmp_path, capsys):
    assert bench("--jobs", 1) == 0
    first = capsys.readouterr().out
    assert json.loads(first.splitlines()[-1]) == kept()
    parts = kept()["parts"]
    assert tuple(parts) == TRUTH_PARTS
    assert all(part["jobs"] == 1 and part["failed"] == 0 for part in parts.values())
    assert (tmp_path / "out" / "world" / "contact-sheet.png").exists()
    records = {f: f.read_bytes() for f in tmp_path.rglob("results.jsonl")}
    assert len(records) == len(TRUTH_PARTS) - 1
    assert bench("--jobs", 1) == 0  # all is there: only read again
    assert capsys.readouterr().out == first
    assert {f: f.read_bytes() for f in tmp_path.rglob("results.jsonl")} == records
