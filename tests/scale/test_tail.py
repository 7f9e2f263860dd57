"""Reading the records that others append, as they come."""

from __future__ import annotations

import json

from fastdigin.scale.tail import Tail


def line(id, status="done", task="t"):
    return json.dumps({"task": task, "id": id, "status": status}) + "\n"


def test_each_line_is_read_once_and_only_when_it_is_complete(tmp_path):
    tail = Tail(tmp_path)
    assert tail.read() == []  # no file yet
    path = tmp_path / "results.jsonl"
    path.write_text(line("a") + line("b")[:-5])
    assert [read["id"] for read in tail.read()] == ["a"]
    with path.open("a") as file:
        file.write(line("b")[-5:] + "no json\n" + line("é"))
    assert [read["id"] for read in tail.read()] == ["b", "é"]
    assert tail.read() == []
    assert set(tail.done) == {("t", "a"), ("t", "b"), ("t", "é")}


def test_the_last_word_on_a_job_counts(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(line("a", "failed") + line("b") + line("a") + line("b", "failed"))
    tail = Tail(tmp_path)
    tail.read()
    assert set(tail.done) == {("t", "a")}
