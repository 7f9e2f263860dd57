"""fastdigin bench truth: what it prints, keeps and continues. One slow test runs it for real."""

import json
from types import SimpleNamespace

import pytest

from fastdigin import cli
from fastdigin.errors import UserError
from fastdigin_bench import truth
from fastdigin_bench.command import TRUTH_PARTS
from fastdigin_bench.figures import at_least, rate
from fastdigin_bench.truth_part import Measured, Setup


def flips(failed=0):
    """A part that costs nothing: whatever is done flips."""

    def part(setup, out):
        jobs = setup.at_most(4)
        figure = rate("flips", [True] * (jobs - failed), at_least(0.95))
        return Measured(jobs, failed, [figure])

    return part


def interrupted(setup, out):
    raise KeyboardInterrupt


@pytest.fixture
def measure(tmp_path):
    """Runs parts; returns the exit code and the file's content."""
    file = tmp_path / "truth.json"

    def measure(jobs=None, **parts):
        setup = Setup(SimpleNamespace(slots=8), {}, jobs)
        parts = {name.replace("_", "-"): part for name, part in parts.items()}
        try:
            code = truth.measure(parts, setup, tmp_path, file, {"jobs": jobs})
        except KeyboardInterrupt:
            code = 130
        return code, json.loads(file.read_text())

    return measure


def test_the_names_of_the_parts():
    assert tuple(truth.PARTS) == TRUTH_PARTS


def test_tables_then_one_line_of_json(measure, capsys):
    code, kept = measure(3, neurons=flips(), world=flips())
    *tables, last = capsys.readouterr().out.splitlines()
    assert code == 0 and json.loads(last) == kept
    assert list(kept["parts"]) == ["world", "neurons"]  # always in the order of PARTS
    assert kept["conditions"] == {"jobs": 3}
    assert kept["parts"]["world"]["figures"][0]["n"] == 3
    assert "world: 3 jobs" in tables
    assert sum("at least 95.0%" in line and "yes" in line for line in tables) == 2


def test_figures_are_kept_after_every_part(measure):
    code, kept = measure(world=flips(), neurons=interrupted)
    assert code == 130 and list(kept["parts"]) == ["world"]
    code, kept = measure(neurons=flips())
    assert code == 0 and list(kept["parts"]) == ["world", "neurons"]
    code, kept = measure(1, disagreement=flips())  # other conditions: never in one file
    assert list(kept["parts"]) == ["disagreement"]


def test_failed_jobs_are_said(measure, capsys):
    code, kept = measure(world=flips(failed=1), neurons=flips())
    assert code == 1 and kept["parts"]["world"]["failed"] == 1
    assert "world: 4 jobs, 1 failed" in capsys.readouterr().out


def test_results_of_other_weights_are_not_continued(tmp_path):
    truth.check_same_world(tmp_path, {"embedded": "one"})
    truth.check_same_world(tmp_path, {"embedded": "one"})
    with pytest.raises(UserError, match="name another --out"):
        truth.check_same_world(tmp_path, {"embedded": "two"})


def test_the_fingerprint_is_the_worlds(tmp_path):
    weights = tmp_path / "model" / "unet.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    before = truth.fingerprint_of(tmp_path)
    (tmp_path / "MODEL_CARD.md").write_text("about it")
    assert truth.fingerprint_of(tmp_path) == before
    weights.write_bytes(b"others")
    assert truth.fingerprint_of(tmp_path) != before
    weights.rename(weights.with_stem("vae"))
    weights.with_stem("vae").write_bytes(b"weights")
    assert truth.fingerprint_of(tmp_path) != before


def test_a_file_for_a_folder(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("x")
    assert cli.main(["bench", "truth", "--out", str(file), "--results", str(tmp_path)]) == 2
    assert f"--out '{file}'" in capsys.readouterr().err


@pytest.mark.slow
def test_one_job_of_each_part(tmp_path, capsys):
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    command = ["bench", "truth", "--jobs", "1", *folders]
    assert cli.main(command) == 0
    first = capsys.readouterr().out
    kept = json.loads((tmp_path / "results" / "truth.json").read_text())
    assert json.loads(first.splitlines()[-1]) == kept
    assert tuple(kept["parts"]) == TRUTH_PARTS
    assert all(part["jobs"] == 1 and part["failed"] == 0 for part in kept["parts"].values())
    assert (tmp_path / "out" / "world" / "contact-sheet.png").exists()
    records = {f: f.read_bytes() for f in tmp_path.rglob("results.jsonl")}
    assert len(records) == len(TRUTH_PARTS) - 1
    assert cli.main(command) == 0  # all is there: only read again
    assert capsys.readouterr().out == first
    assert {f: f.read_bytes() for f in tmp_path.rglob("results.jsonl")} == records
