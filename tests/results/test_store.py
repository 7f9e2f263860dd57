"""The results folder: what is kept, continued and refused, and the names of files."""

import json

import pytest
import torch

from fastdigin.errors import UserError
from fastdigin.results import ResultStore, read_runs
from fastdigin.results.folder import LOCK_FILE, RESULTS_FILE
from fastdigin.results.pictures import read_picture
from fastdigin.results.store import BLOCK, read_lines, safe_name

SETTINGS = {"lr": 0.01, "optimizer": {"name": "adam"}, "weights": (1, 2), "seed": 0}


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "out", "neurons", SETTINGS)


def done(identity, **more):
    return {"id": identity, "status": "done", **more}


def ids(store):
    return [(line["id"], line["status"]) for line in read_lines(store.out)]


def test_a_folder_holds_several_tasks(store):
    store.append(done("a"))
    ResultStore(store.out, "counterfactual", {"lr": 0.1}).append(done("a"))
    assert set(read_runs(store.out)) == {"counterfactual", "neurons"}
    assert [line["task"] for line in read_lines(store.out)] == ["neurons", "counterfactual"]


def test_a_retry_supersedes_the_failure(store):
    store.append({"id": "a", "status": "failed", "error": "NaN"})
    store.append(done("b"))
    store.append(done("a", neuron=3))
    assert ids(store) == [("a", "done"), ("b", "done")]
    assert len((store.out / RESULTS_FILE).read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "cut, kept", [(0, "aü"), (1, "aü"), (2, "a"), (13, "a"), (31, "a")],
)  # fmt: skip
def test_a_torn_last_line_is_dropped_and_the_next_line_is_fresh(store, cut, kept):
    store.append(done("a"))
    store.append(done("ü", caption="a longer line with more than a few bytes in it"))
    path = store.out / RESULTS_FILE
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - cut])
    ResultStore(store.out, "neurons", SETTINGS).append(done("c"))
    assert ids(store) == [(id, "done") for id in f"{kept}c"]
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("length", [10, BLOCK, 3 * BLOCK])
@pytest.mark.parametrize("torn", [b"", b'{"task": "counterf', b'{"task": "' + b"x" * 2 * BLOCK])
def test_the_end_of_a_large_file_is_mended(tmp_path, length, torn):
    """Whatever the lines' lengths are beside the blocks that are read from the end."""
    store = ResultStore(tmp_path, "counterfactual", {})
    for id in ("a", "b", "c"):
        store.append({"id": id, "status": "done", "caption": "x" * length})
    whole = (tmp_path / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(whole + torn)
    ResultStore(tmp_path, "counterfactual", {})
    assert (tmp_path / "results.jsonl").read_bytes() == whole
    (tmp_path / "results.jsonl").write_bytes(whole[:-1])  # complete but for its end
    ResultStore(tmp_path, "counterfactual", {})
    assert (tmp_path / "results.jsonl").read_bytes() == whole


def test_a_broken_line_in_the_middle_is_skipped_with_a_warning(store, caplog):
    with (store.out / RESULTS_FILE).open("ab") as file:
        file.write(b'{"id": "x", "stat\xff\n[1, 2]\n')
    store.append(done("a"))
    assert ids(store) == [("a", "done")]
    (warning,) = caplog.messages
    assert warning.startswith("2 lines") and "the first is line 1" in warning


def test_same_settings_continue_and_others_are_named(store):
    ResultStore(store.out, "neurons", {**SETTINGS, "weights": [1, 2]})
    others = {**SETTINGS, "lr": 0.05, "optimizer": {"name": "sgd"}, "new": 1}
    del others["seed"]
    with pytest.raises(UserError) as error:
        ResultStore(store.out, "neurons", others)
    message = str(error.value)
    assert "lr: 0.01 there, 0.05 here" in message
    assert 'optimizer.name: "adam" there, "sgd" here' in message
    assert "new: not set there, 1 here and 1 more" in message
    assert "another --out" in message and "weights" not in message


@pytest.mark.parametrize(
    "name, content",
    [("run.json", "[1]"), ("run.json", "{"), ("run.json", '{"name": "x"}'), (RESULTS_FILE, "{}\n")],
)
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="another --out"):
        ResultStore(tmp_path, "neurons", SETTINGS)
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize("number", ["Infinity", "-1e999", "[NaN]"])
def test_settings_that_are_not_finite_are_kept_as_null(tmp_path, number):
    """Other programs write such numbers, and JSON has none of them."""
    (tmp_path / "run.json").write_text(f'{{"disagreement": {{"": {number}, "steps": 5}}}}')
    ResultStore(tmp_path, "neurons", SETTINGS)
    kept = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    null = [None] if "[" in number else None
    assert kept["disagreement"] == {"": null, "steps": 5} and "neurons" in kept


def test_values_are_plain_and_finite(store):
    store.append(
        done("caf\udce9", activation=float("nan"), history=[{"total": float("inf")}],
             seed=torch.tensor(3), cross_activations={7: torch.tensor(0.5)}, layer=store.out)
    )  # fmt: skip
    text = (store.out / RESULTS_FILE).read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert read_lines(store.out) == [
        {"task": "neurons", "id": "caf\udce9", "status": "done", "activation": None,
         "history": [{"total": None}], "seed": 3, "cross_activations": {"7": 0.5},
         "layer": str(store.out)}
    ]  # fmt: skip


def test_a_record_of_another_task_is_refused(store):
    with pytest.raises(ValueError, match="disagreement"):
        store.append(done("a", task="disagreement"))
    assert read_lines(store.out) == []


def test_saved_images_round_trip(store):
    image = torch.rand(3, 5, 7)
    image[0, 0, 0] = float("nan")
    read = read_picture(store.out / store.save_image("image", image))
    assert torch.allclose(read, image.nan_to_num(0), rtol=0, atol=0.51 / 255)
    read = read_picture(store.out / store.save_image("mask", torch.ones(5, 7)))
    assert torch.equal(read, torch.ones(5, 7))
    assert not [path for path in store.out.rglob(".*") if path.name != LOCK_FILE]


def test_names_are_safe_and_never_collide(store):
    names = ["a/b", "a_b", "a b", "A_b", "a\\b", "../a_b", "..", "", "ü", "é", "x" * 300,
             "x" * 301, safe_name("a/b"), "a.b", "con\x00", "名前", "名称", "\udce9"]  # fmt: skip
    paths = [store.save_image(name, torch.rand(3, 2, 2)) for name in names]
    assert len({path.lower() for path in paths}) == len(names)
    for path in paths:
        full = (store.out / path).resolve()
        assert full.is_file() and full.parent == (store.out / "images/neurons").resolve()
        assert len(full.name) < 120
    assert safe_name("a_b") == "a_b"
    assert store.save_image("a/b", torch.rand(3, 2, 2)) == paths[0]
