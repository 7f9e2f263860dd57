"""The results folder: resuming, superseding, refusing, and names of files."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from fastdigin.errors import UserError
from fastdigin.results import ResultStore, read_runs
from fastdigin.results.store import LOCK_FILE, RESULTS_FILE, read_lines, safe_name

SETTINGS = {"lr": 0.01, "optimizer": {"name": "adam"}, "weights": (1, 2), "seed": 0}


def done(identity, **more):
    return {"id": identity, "status": "done", **more}


def finished(out):
    return {(line["task"], line["id"]) for line in read_lines(out) if line["status"] == "done"}


def test_resume_set_counts_done_jobs_of_all_tasks(tmp_path):
    first = ResultStore(tmp_path / "out", "counterfactual", SETTINGS)
    first.append(done("a"))
    first.append({"id": "b", "status": "failed", "error": "NaN"})
    second = ResultStore(tmp_path / "out", "neurons", {"lr": 0.1})
    second.append(done("a"))
    assert finished(tmp_path / "out") == {("counterfactual", "a"), ("neurons", "a")}
    assert set(read_runs(tmp_path / "out")) == {"counterfactual", "neurons"}


def test_a_retry_supersedes_the_failure(tmp_path):
    store = ResultStore(tmp_path, "neurons", SETTINGS)
    store.append({"id": "a", "status": "failed", "error": "NaN"})
    store.append(done("b"))
    store.append(done("a", neuron=3))
    assert [(r["id"], r["status"]) for r in read_lines(tmp_path)] == [("a", "done"), ("b", "done")]
    assert len((tmp_path / RESULTS_FILE).read_text().splitlines()) == 3


@pytest.mark.parametrize("cut", [1, 12, 30])
def test_torn_last_line_is_dropped_and_the_next_line_is_fresh(tmp_path, cut):
    store = ResultStore(tmp_path, "neurons", SETTINGS)
    store.append(done("a"))
    store.append(done("ü", caption="a longer line with more than a few bytes in it"))
    path = tmp_path / RESULTS_FILE
    path.write_bytes(path.read_bytes()[:-cut - 1])
    again = ResultStore(tmp_path, "neurons", SETTINGS)
    assert finished(tmp_path) == {("neurons", "a")}
    again.append(done("c"))
    assert finished(tmp_path) == {("neurons", "a"), ("neurons", "c")}
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path):
    ResultStore(tmp_path, "neurons", SETTINGS).append(done("a"))
    path = tmp_path / RESULTS_FILE
    path.write_bytes(path.read_bytes()[:-1])
    again = ResultStore(tmp_path, "neurons", SETTINGS)
    again.append(done("b"))
    assert finished(tmp_path) == {("neurons", "a"), ("neurons", "b")}


def test_a_broken_line_in_the_middle_is_skipped_with_a_warning(tmp_path, caplog):
    store = ResultStore(tmp_path, "neurons", SETTINGS)
    with (tmp_path / RESULTS_FILE).open("ab") as file:
        file.write(b'{"id": "x", "stat\xff\n[1, 2]\n')
    store.append(done("a"))
    assert finished(tmp_path) == {("neurons", "a")}
    assert "line 1" in caplog.text and "line 2" in caplog.text


def test_same_settings_resume_and_other_settings_are_named(tmp_path):
    ResultStore(tmp_path, "neurons", SETTINGS)
    ResultStore(tmp_path, "neurons", {**SETTINGS, "weights": [1, 2]})
    with pytest.raises(UserError) as error:
        ResultStore(tmp_path, "neurons", {**SETTINGS, "lr": 0.05, "optimizer": {"name": "sgd"}})
    message = str(error.value)
    assert "lr: 0.01 there, 0.05 here" in message
    assert 'optimizer.name: "adam" there, "sgd" here' in message
    assert "another --out" in message and "seed" not in message


def test_settings_that_exist_on_one_side_only_are_named(tmp_path):
    ResultStore(tmp_path, "neurons", {"a": None})
    with pytest.raises(UserError, match="b: not set there, 1 here; a: null there, not set here"):
        ResultStore(tmp_path, "neurons", {"b": 1})


def test_folders_that_cannot_be_used_are_refused_before_any_work(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        ResultStore(file, "neurons", SETTINGS)
    with pytest.raises(UserError, match="cannot be written"):
        ResultStore(file / "below", "neurons", SETTINGS)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name, content", [
    ("run.json", "[1]"), ("run.json", "{"), ("run.json", '{"name": "other"}'),
    (RESULTS_FILE, "{}\n"),
])
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="another --out"):
        ResultStore(tmp_path, "neurons", SETTINGS)
    assert (tmp_path / name).read_text() == content


def test_numbers_that_are_not_finite_become_null(tmp_path):
    store = ResultStore(tmp_path, "neurons", SETTINGS)
    store.append(done("a", activation=float("nan"), history=[{"total": float("inf")}],
                      seed=torch.tensor(3), cross_activations={7: torch.tensor(0.5)}))
    text = (tmp_path / RESULTS_FILE).read_text()
    assert "NaN" not in text and "Infinity" not in text
    record = read_lines(tmp_path)[0]
    assert record["activation"] is None and record["history"] == [{"total": None}]
    assert record["seed"] == 3 and record["cross_activations"] == {"7": 0.5}


def test_ids_that_are_not_utf8_survive(tmp_path):
    store = ResultStore(tmp_path, "neurons", SETTINGS)
    store.append(done("caf\udce9", image=store.save_image("caf\udce9", torch.rand(3, 2, 2))))
    assert finished(tmp_path) == {("neurons", "caf\udce9")}


def test_a_record_needs_its_pictures(tmp_path):
    store = ResultStore(tmp_path / "out", "neurons", SETTINGS)
    (tmp_path / "elsewhere.png").write_bytes(b"")
    for path in ("images/none.png", "../elsewhere.png"):
        with pytest.raises(ValueError, match="save_image"):
            store.append(done("a", image=path))
    store.append(done("a", image=store.save_image("a", torch.rand(3, 4, 4))))


def test_records_of_another_task_or_without_status_are_refused(tmp_path):
    store = ResultStore(tmp_path, "neurons", SETTINGS)
    with pytest.raises(ValueError, match="disagreement"):
        store.append(done("a", task="disagreement"))
    with pytest.raises(ValueError, match="status"):
        store.append({"id": "a"})


def test_saved_images_round_trip(tmp_path):
    store = ResultStore(tmp_path, "neurons", SETTINGS)
    image = torch.rand(3, 5, 7)
    image[0, 0, 0] = float("nan")
    with Image.open(tmp_path / store.save_image("image", image)) as read:
        assert read.mode == "RGB" and read.size == (7, 5)
        assert read.getpixel((1, 2)) == tuple((image[:, 2, 1] * 255).round().int().tolist())
    with Image.open(tmp_path / store.save_image("mask", torch.ones(5, 7))) as read:
        assert read.mode == "L" and read.getextrema() == (255, 255)
    with pytest.raises(ValueError, match=r"\(3,H,W\)"):
        store.save_image("batch", torch.rand(2, 3, 5, 7))
    assert not [path for path in tmp_path.rglob(".*") if path.name != LOCK_FILE]


def test_names_are_safe_and_never_collide(tmp_path):
    store = ResultStore(tmp_path, "neurons", SETTINGS)
    names = ["a/b", "a_b", "a b", "A_b", "a\\b", "../a_b", "..", "", "ü", "é", "x" * 300,
             "x" * 301, safe_name("a/b"), "a.b", "con\x00", "名前", "名称"]
    paths = [store.save_image(name, torch.rand(3, 2, 2)) for name in names]
    assert len({path.lower() for path in paths}) == len(names)
    for path in paths:
        full = (tmp_path / path).resolve()
        assert full.is_file() and full.parent == (tmp_path / "images/neurons").resolve()
        assert len(full.name) < 120
    assert safe_name("a_b") == "a_b"
    assert store.save_image("a/b", torch.rand(3, 2, 2)) == paths[0]
