"""Reading the records that others append, as they come."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from fastdigin.scale.tail import Finished, Tail


def line(id, status="done", task="t"):
    return json.dumps({"task": task, "id": id, "status": status}) + "\n"


def test_each_line_is_read_once_and_only_when_it_is_complete(tmp_path):
    tail, added = Tail(tmp_path), Tail(tmp_path, added=True)
    assert list(tail.read()) == []  # no file yet
    path = tmp_path / "results.jsonl"
    path.write_text(line("a") + line("b")[:-5])
    assert [read["id"] for _, read in tail.read()] == ["a"]
    with path.open("a") as file:
        file.write(line("b")[-5:] + "no json \r\n[1]\n" + line("é"))
    assert [read["id"] for _, read in tail.read()] == ["b", "é"]
    assert list(tail.read()) == []
    assert [read["id"] for _, read in added.read()] == ["a", "b", "é"]
    assert list(Tail(tmp_path, added=True).read()) == []


def test_the_last_word_on_a_job_counts(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(line("a", "failed") + line("b") + line("a") + line("b", "failed"))
    finished = Finished(tmp_path)
    finished.read()
    assert finished.line("t", "a")["status"] == "done" and finished.line("t", "b") is None


@pytest.mark.parametrize("lost", ["missing", "empty", "cut off", "elsewhere"])
def test_a_finished_job_has_all_its_pictures(tmp_path, lost):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("whole", "lost"):
        Image.new("L", (9, 9), 7).save(folder / f"{name}.png")
    lines = [
        {"task": "t", "id": "a", "status": "done", "image": "images/whole.png", "mask": None},
        {"task": "t", "id": "b", "status": "done", "image": "images/whole.png",
         "mask": "results.jsonl" if lost == "elsewhere" else "images/lost.png"},
    ]  # fmt: skip
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    finished = Finished(tmp_path)
    assert finished.line("t", "a") is None  # nothing was read yet
    finished.read()
    whole = (folder / "lost.png").read_bytes()
    (folder / "lost.png").write_bytes(whole[:-1] if lost == "cut off" else b"")
    if lost == "missing":
        (folder / "lost.png").unlink()
    assert finished.line("t", "a") == lines[0]
    assert finished.line("t", "b") is None
    assert finished.line("other", "a") is None
