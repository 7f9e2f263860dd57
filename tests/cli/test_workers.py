"""One command in several processes: what they share, and what becomes of their troubles."""

import argparse
import json
import signal
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_commands import (
    CF,
    PHOTO,
    QUICK,
    TARGET,
    check_record,
    records,
    run,
    save_copy,
    start_process,
)
from PIL import Image

from fastdigin import embedded
from fastdigin.commands import workers
from fastdigin.commands.shard import WHOLE, Shard


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_share_all_jobs(count):
    ids = [str(n) for n in range(10)]
    parts = [Shard(number, count).of(ids) for number in range(1, count + 1)]
    assert sorted(sum(parts, [])) == ids
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert WHOLE.of(ids) == ids
    for whole in (Shard(number, count) for number in range(1, count + 1)):
        halves = [whole.split(number, 2).of(ids) for number in (1, 2)]
        assert sorted(sum(halves, [])) == whole.of(ids)


@pytest.mark.parametrize("text", ["", "2", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b"])
def test_what_is_no_shard(text):
    with pytest.raises(argparse.ArgumentTypeError, match="K-th of N parts"):
        Shard.parse(text)


def test_two_workers_do_what_one_process_does(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, photo in enumerate(embedded.photos()[5:8]):
        Image.open(photo.path).save(folder / f"{number}.png")
    (folder / "broken.png").write_text("no picture")
    arguments = [*CF, folder, "--target", TARGET, "--source", PHOTO.garment]
    # With two steps two schedules of the search tie, and rounding chooses.
    arguments += ["--steps", "4", "--iterations", "1"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    # In a process of its own too: in this one fewer schedules are searched (conftest.py).
    process = start_process(*arguments, "--out", alone)
    process.communicate()
    assert process.returncode == 1
    assert run(*arguments, "--out", together, "--workers", "2", "--json") == 1
    captured = capsys.readouterr()

    written = records(together)
    assert sorted(captured.out.splitlines()) == sorted(map(json.dumps, written))
    expected = {record["id"]: record for record in records(alone)}
    assert len(written) == 4 and {record["id"] for record in written} == set(expected)
    for record in written:
        check_record(record, together)
        before = expected[record["id"]]
        assert record["status"] == before["status"]
        if record["status"] == "done":
            pictures = [
                np.asarray(Image.open(out / r["image"]), dtype=float)
                for out, r in ((together, record), (alone, before))
            ]
            assert np.abs(pictures[0] - pictures[1]).mean() < 0.5  # of 255; batches differ
    settings = [json.loads((out / "run.json").read_text()) for out in (alone, together)]
    assert settings[0] == settings[1]
    assert (together / "report.html").is_file()

    # Nothing is done again.
    before = (together / "results.jsonl").read_bytes()
    (folder / "broken.png").unlink()
    assert run(*arguments, "--out", together, "--workers", "2") == 0
    assert (together / "results.jsonl").read_bytes() == before
    assert capsys.readouterr().out.count("report:") == 1


def test_one_usage_error_is_said_once(tmp_path, capfd):
    missing = tmp_path / "missing.png"
    arguments = [*CF, missing, "--target", TARGET, "--source", PHOTO.garment]
    assert run(*arguments, "--out", tmp_path / "out", "--workers", "2") == 2
    assert capfd.readouterr().err.count("missing.png") == 1
    assert not (tmp_path / "out").exists()


def test_a_worker_that_dies_is_named(tmp_path, monkeypatch, capsys):
    codes = iter([0, -9])

    class Dying:
        def __init__(self, arguments, environment, messages, relay):
            self.messages = messages
            if messages is not None:
                messages.write_text("its last words\n")

        def wait(self):
            return next(codes)

    monkeypatch.setattr(workers, "_Worker", Dying)
    monkeypatch.setattr(workers, "conclude", lambda tasks, out, as_json: None)
    options = Namespace(workers=2, shard=WHOLE, out=tmp_path, json=False)
    assert workers.run_workers(["demo"], options) == 1
    said = capsys.readouterr().err
    assert "its last words" in said and "worker 2 of 2 ended with code -9" in said


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_whoever_is_ended_ends_the_workers(tmp_path, sent):
    out = tmp_path / "out"
    arguments = [*CF, "embedded:pairs", "--limit", "4", "--steps", "4", "--out", out]
    # A job in the background ignores SIGINT, and so would what it starts.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = start_process(*arguments, "--workers", "2", **heard)
    for _ in range(600):
        if (out / "run.json").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode in (130, 128 + signal.SIGTERM)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not any(str(out).encode() in command for command in commands)


def test_threads_and_memory_are_shared(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert [workers._environment(n, 2)["OMP_NUM_THREADS"] for n in (1, 2)] == ["2", "2"]
    assert workers._environment(1, 8)["OMP_NUM_THREADS"] == "1"
    assert workers.share_of_memory("3MB", workers.sharing(3)) == "1000000"


@pytest.mark.parametrize(("visible", "names"), [(None, "010"), ("4,7", "474")])
def test_each_worker_has_a_gpu(monkeypatch, visible, names):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = [workers._environment(n, 3)["CUDA_VISIBLE_DEVICES"] for n in (1, 2, 3)]
    assert found == list(names)
    assert workers.share_of_memory("4MB", workers.sharing(2)) == "4MB"
    assert workers.share_of_memory("4MB", workers.sharing(3)) == "2000000"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["counterfactual", "a.png"], ["counterfactual", "a.png", "--workers", "1"]),
        (["counterfactual", "--", "-x.png"], ["counterfactual", "--workers", "1", "--", "-x.png"]),
        (["demo", "--workers", "2", "--"], ["demo", "--workers", "2", "--workers", "1", "--"]),
    ],
)
def test_a_workers_own_options_stay_options(given, expected):
    assert workers._with_own(given, ["--workers", "1"]) == expected


def test_a_worker_starts_no_workers(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTDIGIN_COMMAND", "[]")
    assert run(*CF, PHOTO.path, "--target", TARGET, "--workers", 2, "--out", tmp_path) == 2
    assert "told to start workers" in capsys.readouterr().err


@pytest.mark.parametrize("count", [33, 10**6, 10**9])
def test_more_workers_than_a_machine_can_serve(tmp_path, monkeypatch, capsys, count):
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(workers.subprocess, "Popen", None)
    assert run(*CF, PHOTO.path, "--target", TARGET, "--workers", count, "--out", tmp_path) == 2
    assert "at most" in capsys.readouterr().err


def test_photos_whose_names_begin_with_a_dash(tmp_path, monkeypatch):
    """They stand behind "--", where the workers' own options would be names of photos."""
    monkeypatch.chdir(tmp_path)
    for name in ("-x.png", "y.png"):
        save_copy(tmp_path / name)
    options = ["--target", TARGET, "--source", PHOTO.garment, *QUICK, "--workers", "2"]
    assert run(*CF, *options, "--out", "out", "--", "-x.png", "y.png") == 0
    assert {r["id"] for r in records(tmp_path / "out")} == {f"-x-to-{TARGET}", f"y-to-{TARGET}"}
