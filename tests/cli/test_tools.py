"""status, retry, merge and --dry-run: what they say of a folder, and what they change in it."""

import json
import os
import time

import pytest
from cli_commands import (
    CF,
    DISAGREE,
    NCF,
    NEURONS,
    PHOTO,
    QUICK,
    TARGET,
    records,
    run,
    save_copy,
    start_process,
)

from fastdigin.results.store import read_lines


@pytest.fixture
def photos(tmp_path):
    """Two good ones and a bad one between them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    save_copy(folder / "a.png")
    (folder / "b.png").write_text("broken")
    save_copy(folder / "c.png")
    return folder


@pytest.fixture
def command(photos):
    return [*CF, photos, "--target", TARGET, "--source", PHOTO.garment, *QUICK]


def printed(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def files(out):
    return {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_status(command, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*command, "--out", out, "--shard", "1/2") == 0  # a and c
    capsys.readouterr()
    assert run("status", out, "--json") == 0
    (state,) = printed(capsys)
    assert (state["task"], state["done"], state["failed"], state["left"]) == (
        "counterfactual", 2, 0, 1,
    )  # fmt: skip
    assert run(*command, "--out", out, "--shard", "2/2") == 1
    now = time.time()
    for age, record in zip((7200, 3600), records(out), strict=False):
        os.utime(out / record["image"], (now - age, now - age))
    capsys.readouterr()
    assert run("status", out, "--json") == 1
    (state,) = printed(capsys)
    assert (state["done"], state["failed"], state["left"]) == (2, 1, 0)
    assert state["images_per_hour"] == pytest.approx(1) and state["hours_left"] == 0
    assert state["seconds_since_last"] == pytest.approx(3600, abs=60)
    assert "b.png" in state["errors"][0]["error"]
    assert run("status", out) == 1
    shown = capsys.readouterr().out
    assert "2 done, 1 failed, 0 left" in shown and "60 minutes ago" in shown
    assert f"failed: b-to-{TARGET}" in shown


def test_status_of_what_is_no_run(tmp_path, capsys):
    assert run("status", tmp_path) == run("status", tmp_path / "nowhere") == 2
    assert "holds no results" in capsys.readouterr().err


def test_retry_does_the_failed_jobs_only(command, photos, tmp_path, capsys, monkeypatch):
    """From another folder too, and those that the run has not come to stay undone."""
    monkeypatch.chdir(tmp_path)
    relative = [*CF, "photos", *command[len(CF) + 1 :]]
    assert run(*relative, "--out", "out", "--limit", 2) == 1
    save_copy(photos / "b.png")
    save_copy(photos / "d.png")
    before = records(tmp_path / "out")
    monkeypatch.chdir(photos)
    capsys.readouterr()
    assert run("retry", tmp_path / "out", "--json") == 0
    assert [r["id"] for r in printed(capsys)] == [f"b-to-{TARGET}"]
    after = records(tmp_path / "out")
    assert after[: len(before)] == before and len(after) == len(before) + 1
    assert run("retry", tmp_path / "out") == 0 and records(tmp_path / "out") == after


def test_what_cannot_be_retried(command, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("retry", tmp_path) == 2
    assert "holds no command.json" in capsys.readouterr().err
    assert run(*command, "--out", out) == 1
    kept = json.loads((out / "command.json").read_text())
    for changed, words in (
        ("{", "cannot be read"),
        (json.dumps([]), "cannot be read"),
        (json.dumps(kept | {"arguments": ["status", 3]}), "not from fastdigin"),
        (json.dumps(kept | {"arguments": ["status", "x"]}), "no command of a task"),
        (json.dumps(kept | {"folder": "/nowhere"}), "'/nowhere' of that command is gone"),
    ):
        (out / "command.json").write_text(changed)
        assert run("retry", out) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "changed",
    [
        {"folder": "a\0b"}, {"folder": "\ud800"}, {"folder": None}, {"arguments": "status"},
        {"arguments": ["counterfactual", "a\0b"]}, {"arguments": ["counterfactual", "\ud800"]},
        {"jobs": {"counterfactual": "x"}}, {"jobs": {"counterfactual": float("inf")}},
        {"jobs": {"counterfactual": float("nan")}}, {"jobs": {"counterfactual": -1}},
        {"jobs": {"counterfactual": True}}, {"jobs": []},
    ],
)  # fmt: skip
@pytest.mark.parametrize("reads", ["retry", "status"])
def test_a_foreign_command_is_refused_by_name(tmp_path, capsys, reads, changed):
    """Once ValueError, UnicodeEncodeError and TypeError; or "nan left"."""
    (tmp_path / "run.json").write_text(json.dumps({"counterfactual": {}}))
    own = {"arguments": [*CF, "photos"], "folder": "/", "jobs": {"counterfactual": 3}}
    (tmp_path / "command.json").write_text(json.dumps(own | changed))
    assert run(reads, tmp_path) == 2
    assert "command.json' is not from fastdigin: remove it" in capsys.readouterr().err


def test_a_clock_that_goes_back_gives_no_negative_age(command, photos, tmp_path, capsys):
    assert run(*command, "--out", tmp_path / "out", "--limit", 1) == 0
    (record,) = records(tmp_path / "out")
    os.utime(tmp_path / "out" / record["image"], (4e9, 4e9))
    capsys.readouterr()
    assert run("status", tmp_path / "out", "--json") == 0
    assert printed(capsys)[0]["seconds_since_last"] == 0


def test_merge(command, photos, tmp_path, capsys):
    """Parts give what one run gives; a job that failed gives way to one that is done."""
    out, parts = tmp_path / "whole", [tmp_path / "one", tmp_path / "two"]
    assert run(*command, "--out", parts[0], "--limit", 2) == 1
    save_copy(photos / "b.png")
    assert run(*command, "--out", parts[1], "--shard", "2/2") == 0
    capsys.readouterr()
    assert run("merge", *parts, "--out", out, "--json") == 0
    (summary,) = printed(capsys)
    assert (summary["done"], summary["failed"]) == (2, 0)
    ids = [f"{name}-to-{TARGET}" for name in "ab"]
    assert {r["id"]: r["status"] for r in read_lines(out)} == dict.fromkeys(ids, "done")
    for part in parts:
        for record in (r for r in records(part) if r["status"] == "done"):
            assert (out / record["image"]).read_bytes() == (part / record["image"]).read_bytes()
    assert (out / "report.html").is_file()
    run_file, of_part = (json.loads((x / "run.json").read_text()) for x in (out, parts[0]))
    assert run_file == of_part and run_file["environments"]
    before = (out / "results.jsonl").read_bytes()
    assert run("merge", *parts, "--out", out) == 0  # nothing is added twice
    assert (out / "results.jsonl").read_bytes() == before
    assert run(*command, "--out", out) == 0 and len(read_lines(out)) == 3  # and it goes on
    assert run("merge", *parts) == 0  # into the first
    assert sorted(r["id"] for r in read_lines(parts[0])) == ids


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("loss", ["gone", "empty", "a folder"])
def test_a_job_whose_pictures_are_lost_gives_way_to_a_whole_one(tmp_path, loss, order):
    good, poor, out = tmp_path / "good", tmp_path / "poor", tmp_path / "out"
    command = [*CF, PHOTO.path, "--target", TARGET, *QUICK, "--out"]
    assert run(*command, good) == run(*command, poor) == 0
    (line,) = records(good)
    lost = poor / line["image"]
    lost.unlink()
    if loss != "gone":
        lost.mkdir() if loss == "a folder" else lost.touch()
    assert run("merge", *(good, poor)[::order], "--out", out) == 0
    assert (out / line["image"]).read_bytes() == (good / line["image"]).read_bytes()
    assert run("merge", poor, "--out", out) == 0 and len(records(out)) == 1


def test_what_cannot_be_merged(command, photos, tmp_path, capsys):
    (photos / "b.png").unlink()
    command = [*command, "--slots", 1]  # in other batches the last bits would differ
    one, other, out = tmp_path / "one", tmp_path / "other", tmp_path / "out"
    assert run(*command, "--out", one) == run(*command, "--out", other, "--limit", 1) == 0
    line = records(other)[0]
    (other / "results.jsonl").write_text(json.dumps(line | {"background_l1": 0.5}) + "\n")
    for folders, words in (
        ([one, other], "different results of 'a-to-"),
        ([one], "two at least"),
        ([one, one], "two at least"),
        ([one, photos], "holds no results"),
    ):
        assert run("merge", *folders) == 2
        assert words in capsys.readouterr().err
    picture = other / line["image"]
    (other / "results.jsonl").write_text(json.dumps(line | {"seconds": 9.0}) + "\n")
    save_copy(picture)
    assert run("merge", one, other, "--out", out) == 2  # the pictures differ
    picture.write_bytes((one / line["image"]).read_bytes())
    assert run("merge", one, other, "--out", out) == 0
    third = tmp_path / "third"
    assert run(*command, "--out", third, "--limit", 1, "--seed", 1) == 0
    capsys.readouterr()
    assert run("merge", one, third, "--out", tmp_path / "none") == 2
    assert "with other settings" in capsys.readouterr().err and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [*CF, "embedded:pairs", "--limit", 3],
        [*DISAGREE, "--classes", "bag", "--seeds", 3],
        [*NEURONS, "--neurons", "3,76,9"],
        [*NCF, "embedded:photos", "--neuron", 3, "--direction", "max", "--limit", 3],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_dry_run_says_what_a_run_takes(arguments, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--slots", 2, "--steps", 2, "--iterations", 4, "--out", out, "--json"]
    start = time.perf_counter()
    assert run(*arguments, *options, "--dry-run") == 0
    assert not out.exists()
    (plan,) = printed(capsys)
    assert (plan["jobs"], plan["done"], plan["left"]) == (3, 0, 3)
    assert (plan["slots"], plan["iterations"], plan["missing"]) == (2, 4, [])
    assert 0 < plan["hours"] * 3600 < 50 * (time.perf_counter() - start)
    assert plan["hours"] * 3600 == pytest.approx(3 * plan["seconds_per_image"])


def test_a_dry_run_says_what_is_missing(command, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*command, "--out", out, "--limit", 1) == 0
    table = tmp_path / "table.csv"
    rows = [f"{photos}/{name},{TARGET},{PHOTO.garment}" for name in ("a.png", "no.png", "b.png")]
    table.write_text("\n".join(["image,target,source", *rows]))
    before = files(out)
    capsys.readouterr()
    again = [*CF, table, *QUICK, "--out", out, "--dry-run"]
    assert run(*again, "--json") == 1
    captured = capsys.readouterr()
    plan = json.loads(captured.out)
    assert (plan["done"], plan["left"]) == (1, 2) and "no.png" in plan["missing"][0]
    assert "would fail: b-to-" in captured.err and plan["hours"] is None
    assert run(*again) == 1
    assert "3 jobs, 1 done, 2 left" in capsys.readouterr().out
    assert files(out) == before


def test_a_dry_run_refuses_what_the_run_would(tmp_path, capsys):
    """Other settings, and another photo or prompt of the same name."""
    out = tmp_path / "out"
    command = [*CF, save_copy(tmp_path / "a.png"), "--target", TARGET, "--out", out, *QUICK]
    assert run(*command) == 0
    capsys.readouterr()
    for more in (["--seed", 1], ["--guidance-scale", 2], ["--prompt", "a {} on grass"]):
        said = []
        for dry in ([], ["--dry-run"]):
            assert run(*command, *more, *dry) == 2
            said.append(capsys.readouterr().err)
        assert said[0] == said[1] and str(out) in said[0]


STEERING = "\x1b]0;title\x07\x9b31m"


@pytest.mark.parametrize("way", ["retry", "retry of another", "merge", "dry run", "failed"])
def test_no_name_steers_the_terminal(tmp_path, capsys, way):
    out = tmp_path / f"out{STEERING}"
    photo = tmp_path / f"{STEERING}.png"
    command = [*CF, photo, "--target", TARGET, "--out", out, *QUICK]
    if way in ("dry run", "failed"):
        photo.write_text("no picture")
        run(*command, *(["--dry-run"] if way == "dry run" else []))
    else:
        save_copy(photo)
        assert run(*command) == 0
        if way == "retry of another":
            (out / "command.json").write_text(json.dumps(
                {"arguments": [*CF, "x.png", STEERING], "folder": "/", "jobs": {}}
            ))  # fmt: skip
        run(way.split()[0], out, *(["--out", tmp_path / "all"] if way == "merge" else []))
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert "title" in said and not {"\x1b", "\x07", "\x9b"} & set(said)


@pytest.mark.slow
def test_a_dry_run_says_how_to_get_a_model(tmp_path):
    process = start_process(
        *CF, PHOTO.path, "--out", tmp_path / "out", "--model", "nobody/nothing", "--dry-run",
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    shown, _ = process.communicate(timeout=200)
    assert process.returncode == 1 and "hf download nobody/nothing" in shown
