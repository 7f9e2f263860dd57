"""The command line: many inputs, bad ones among them, and resuming."""

import json
import os
import re
import signal
import sys
import time

import pytest
from cli_commands import (
    CF,
    NCF,
    NEURONS,
    PHOTO,
    QUICK,
    TARGET,
    check_record,
    records,
    run,
    save_copy,
    start_process,
    words_file,
)
from PIL import Image

from fastdigin import embedded


def test_one_bad_image_fails_alone(tmp_path, capsys):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    save_copy(folder / "a.png")
    (folder / "b.png").write_text("broken")
    save_copy(folder / "c.jpg", size=128)
    arguments = [*CF, folder, "--target", TARGET, "--source", PHOTO.garment, "--json"]
    assert run(*arguments, "--out", out, *QUICK) == 1
    captured = capsys.readouterr()
    written = records(out)
    assert [json.loads(line) for line in captured.out.splitlines()] == written
    by_id = {r["id"]: r for r in written}
    assert set(by_id) == {f"{name}-to-{TARGET}" for name in "abc"}
    for record in written:
        check_record(record, out)
    failed = by_id[f"b-to-{TARGET}"]
    assert failed["status"] == "failed" and "b.png" in failed["error"]
    assert failed["image"] is None and failed["iterations"] == 0
    assert f"failed: b-to-{TARGET}" in captured.err
    assert "b.png" in (out / "report.html").read_text()

    # Mended, the failed job is done, and only that one.
    pictures = {r["image"]: (out / r["image"]).stat().st_mtime_ns
                for r in written if r["image"]}  # fmt: skip
    save_copy(folder / "b.png")
    assert run(*arguments, "--out", out, *QUICK) == 0
    (again,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert again["id"] == f"b-to-{TARGET}" and again["status"] == "done"
    assert pictures == {name: (out / name).stat().st_mtime_ns for name in pictures}
    assert len(records(out)) == 4


def test_a_failure_stays_a_failure_until_it_is_mended(tmp_path, capsys):
    """The second run finds nothing but the bad image: that is still 1, not bad usage."""
    good, bad, out = save_copy(tmp_path / "good.png"), tmp_path / "bad.png", tmp_path / "out"
    arguments = [*CF, good, bad, "--target", TARGET, "--out", out, *QUICK]
    assert run(*arguments) == 1 and run(*arguments) == 1
    assert [r["status"] for r in records(out)].count("done") == 1
    # An old failure of another image is not a failure of this run.
    assert run(*CF, good, "--target", TARGET, "--out", out, *QUICK) == 0


def test_strange_names_survive_escaped(tmp_path, capsys):
    """HTML, spaces, quotes, other scripts and other bytes in file names, ids and prompts."""
    names = ["<b>ü &amp; 'é' \"x\" 猫"]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"not utf-8 \xff"))
    photos = [save_copy(tmp_path / f"{name}.png") for name in names]
    prompt = f"a {PHOTO.garment} <i>& ü"
    out = tmp_path / "ö <out>"
    assert run(*CF, *photos, "--target", TARGET, "--source", PHOTO.garment, "--prompt", prompt,
               "--json", "--out", out, *QUICK) == 0  # fmt: skip
    written = records(out)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == written
    for name, record in zip(names, written, strict=True):
        check_record(record, out)
        assert record["id"] == f"{name}-to-{TARGET}" and record["prompt"] == prompt
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;ü &amp;amp; &#39;é&#39;" in page and "<b>ü" not in page


def test_resume_does_the_rest_only(tmp_path, capsys):
    """What is finished is not even read: its photo may be gone."""
    photos = [save_copy(tmp_path / f"{name}.png") for name in "abc"]
    out = tmp_path / "out"
    common = [*CF, *photos, "--target", TARGET, "--out", out, *QUICK]
    assert run(*common, "--limit", 1) == 0
    (first,) = records(out)
    picture = (out / first["image"]).stat()
    photos[0].unlink()
    capsys.readouterr()
    assert run(*common, "--json") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    written = records(out)
    assert written[0] == first and len({r["id"] for r in written}) == len(written) == 3
    assert (out / first["image"]).stat().st_mtime_ns == picture.st_mtime_ns
    before = (out / "results.jsonl").read_bytes()
    assert run(*common) == 0
    assert (out / "results.jsonl").read_bytes() == before


def test_finished_neurons_are_not_searched_again(tmp_path, words, monkeypatch, capsys):
    from fastdigin.engine.engine import Engine

    common = [*NEURONS, "--neurons", 76, "--out", tmp_path / "out", *QUICK, "--words"]
    assert run(*common, words) == 0
    monkeypatch.setattr(Engine, "evaluate", lambda *_: pytest.fail("searched again"))
    assert run(*common, words) == 0
    assert run(*common, words_file(tmp_path / "other.txt", "boot")) == 2
    assert "words" in capsys.readouterr().err  # other ones are refused


def test_other_settings_are_refused(tmp_path, capsys):
    out = tmp_path / "out"
    common = [*CF, PHOTO.path, "--target", TARGET, "--out", out, *QUICK]
    assert run(*common) == 0
    before = (out / "results.jsonl").read_bytes()
    for change in (
        ["--seed", "1"], ["--steps", "3"], ["--iterations", "2"], ["--judge", "embedded:clean"],
        ["--classifier", "embedded:robust"], ["--regulariser", "pixels-l2:all:1"],
    ):  # fmt: skip
        assert run(*common, *change) == 2
        assert "with other settings" in capsys.readouterr().err
    assert (out / "results.jsonl").read_bytes() == before


def test_another_image_of_the_same_name_is_refused(tmp_path, capsys):
    """Not silently taken for the one that is done."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    out = tmp_path / "out"
    one, two = tmp_path / "one" / "x.png", tmp_path / "two" / "x.png"
    save_copy(one)
    Image.open(embedded.photos()[9].path).save(two)
    common = ["--target", TARGET, "--source", PHOTO.garment, "--out", out, *QUICK]
    assert run(*CF, one, *common) == 0
    assert run(*CF, one, *common) == 0
    assert run(*CF, two, *common) == 2
    assert f"holds 'x-to-{TARGET}' of another image" in capsys.readouterr().err
    assert run(*CF, one, *common, "--prompt", f"a {PHOTO.garment}") == 2
    ncf = ["--neuron", 3, "--direction", "max", "--out", out, *QUICK]
    assert run(*NCF, one, *ncf) == 0
    assert run(*NCF, two, *ncf) == 2


def test_bad_input_does_not_spoil_the_folder(tmp_path):
    """A typing error must not bind the folder to the settings of a run that never was."""
    out = tmp_path / "out"
    assert run(*CF, tmp_path / "typo.png", "--target", TARGET, "--out", out, "--seed", 1) == 2
    assert run(*CF, PHOTO.path, "--target", TARGET, "--out", out, *QUICK) == 0


def test_no_judge_with_another_model(tmp_path):
    out = tmp_path / "out"
    model = ["--model", embedded.model_folder(), "--out"]
    common = [*CF, PHOTO.path, "--target", TARGET, *QUICK, *model]
    assert run(*common, out) == 0
    assert records(out)[0]["judge_prediction"] is None
    out = tmp_path / "judged"
    assert run(*common, out, "--judge", "embedded:judge") == 0
    assert records(out)[0]["judge_prediction"] in embedded.GARMENTS


def test_a_process_keeps_its_streams_apart(tmp_path):
    """Real exit code; stdout is JSON and nothing else, also on a terminal of plain ASCII."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = start_process(*CF, PHOTO.path, tmp_path / "nowhere.png", "--target", TARGET, "--json",
                       "--out", tmp_path / "out", *QUICK, env=environment)  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["failed", "done"]
    assert "counterfactual" in err and "Traceback" not in err and "Warning" not in err


@pytest.mark.slow
def test_a_killed_run_continues(tmp_path):
    out = tmp_path / "out"
    arguments = [*CF, "embedded:pairs", "--limit", 5, "--slots", 1, "--steps", 3, "--iterations", 2,
                 "--out", out]  # fmt: skip
    process = start_process(*arguments)
    deadline = time.monotonic() + 200
    results = out / "results.jsonl"
    while not (results.exists() and results.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = records(out)
    assert 2 <= len(before) < 5
    with results.open("ab") as file:  # a line torn by the kill
        file.write(b'{"task": "counterfactual", "id": "torn')
    process = start_process(*arguments)
    assert process.communicate(timeout=300) and process.returncode == 0
    after = records(out)
    assert after[: len(before)] == before
    assert len(after) == len({r["id"] for r in after}) == 5
    assert re.search(r"report", (out / "report.html").read_text())
