"""Folders that come from somebody else, and disks that are full."""

import json
import multiprocessing
import os
import resource
from pathlib import Path

import pytest
import torch
from records import filled

from fastdigin.commands.merge import merge
from fastdigin.commands.status import task_states
from fastdigin.errors import CannotWrite, UserError
from fastdigin.report import write_report
from fastdigin.results import NeuronRecord, ResultStore, read_records, read_runs
from fastdigin.results.card import without_folders
from fastdigin.results.folder import append_line

FILES = (".lock", "results.jsonl", "run.json", "report.html", "command.json")
FOLDERS = ("images", "images/neurons")


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://b", "memory://x", "hdfs://h:1/x"])
def test_an_address_is_no_folder(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    for out in (address, Path(address)):
        with pytest.raises(UserError, match=f"--out '{out}' must be a folder.*mount that store"):
            NeuronRecord(id="x").save(out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", [5, ["x"], "a\0.png", "\ud800.png", "a" * 300, "loop.png", "."])
def test_a_record_that_names_no_picture_is_none_of_ours(tmp_path, path):
    """Its job is done again, and all that reads the folder goes on."""
    saved = filled(NeuronRecord).save(tmp_path)
    path = f"images/{path}" if isinstance(path, str) else path
    (tmp_path / "images/loop.png").symlink_to(tmp_path / "images/loop.png")
    (tmp_path / "results.jsonl").write_text(json.dumps(saved | {"image": path}) + "\n")
    (state,) = task_states(tmp_path)
    assert (state["done"], state["images_per_hour"]) == (1, None)
    assert not any(record.complete for record in read_records(tmp_path))
    write_report(tmp_path)
    merge([tmp_path], tmp_path / "merged")


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
@pytest.mark.parametrize("target", ["there", "missing"])
def test_no_link_leads_out_of_the_folder(tmp_path, name, target):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    (elsewhere / "there").mkdir(parents=True)
    precious = elsewhere / target / "precious"
    if target == "there":
        precious.write_text("mine")
    (out / name).parent.mkdir(parents=True)
    (out / name).symlink_to(precious if name in FILES else precious.parent)
    before = contents(elsewhere)
    # The report never writes to images/neurons, and reads no picture outside the folder.
    for use in (filled(NeuronRecord).save, write_report)[: 1 if "/" in name else 2]:
        with pytest.raises(UserError, match=f"{name} must be a .* and is a link; remove it"):
            use(out)
    assert contents(elsewhere) == before


def test_a_link_that_is_another_file_is_not_emptied(tmp_path):
    (tmp_path / "precious").write_text("mine")
    os.link(tmp_path / "precious", tmp_path / ".lock")
    with pytest.raises(UserError, match=".lock is not fastdigin's, as it is not empty"):
        filled(NeuronRecord).save(tmp_path)
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_a_folder_for_a_file_or_a_file_for_a_folder_is_one_line(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    if name in FILES:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{name} must be a (file|folder) and is none"):
        filled(NeuronRecord).save(tmp_path)


@pytest.mark.parametrize("room", [0, 10, 150_000])
def test_a_full_disk_leaves_whole_records_and_the_run_goes_on(tmp_path, room):
    """``room``: bytes that may still be written; a limit of the system stands for the disk."""
    store = ResultStore(tmp_path, "neurons", {})
    NeuronRecord(id="a", caption="x" * 100).save(store)
    big = NeuronRecord(id="b", caption="x" * 200_000, pictures={"mask": torch.ones(8, 8)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "results.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, limits[1]))
    try:
        with pytest.raises(CannotWrite, match="cannot be written .*the same command continues"):
            big.save(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "results.jsonl").stat().st_size == size
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".lock"]
    big.save(ResultStore(tmp_path, "neurons", {}))
    assert [record.id for record in read_records(tmp_path)] == ["a", "b"]


def test_pictures_are_on_the_disk_before_their_record(tmp_path, monkeypatch):
    """Their content before their names, and the names before the line that tells of them."""
    store, steps = ResultStore(tmp_path, "neurons", {}), []
    monkeypatch.setattr(
        os, "fsync", lambda file: steps.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
    )
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: steps.append(b.name) or replace(a, b))
    line = filled(NeuronRecord).save(store)
    assert steps[-2:] == ["neurons", "results.jsonl"]
    pairs = list(zip(steps[:-2:2], steps[1:-2:2], strict=True))
    assert all(written.startswith(f".{named}-") for written, named in pairs)
    assert [named for _, named in pairs] == [Path(line[name]).name for name in
                                             ("image", "initial_image", "input_image", "difference",
                                              "mask")]  # fmt: skip


def test_a_line_after_a_torn_one_is_whole(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"torn')
    append_line(path, b"{}\n")
    append_line(path, b"{}\n")
    assert path.read_bytes() == b'{"torn\n{}\n{}\n'


WEIGHTS = {"torch": "2.9", "weights": {"clean": "ab"}}


@pytest.mark.parametrize(
    "later, warned",
    [(WEIGHTS, 0), (WEIGHTS | {"torch": "2.8"}, 0), (WEIGHTS | {"weights": {"clean": "cd"}}, 2)],
)
def test_a_run_records_what_made_it(tmp_path, caplog, later, warned):
    for environment in (WEIGHTS, later, later, None):
        ResultStore(tmp_path, "neurons", {"lr": 1}, environment)
    known = json.loads((tmp_path / "run.json").read_text())["environments"]
    assert list(known.values()) == ([WEIGHTS, later] if later != WEIGHTS else [WEIGHTS])
    assert len(caplog.messages) == warned and (not warned or "weights of clean" in caplog.text)
    assert read_runs(tmp_path) == {"neurons": {"lr": 1}}


@pytest.mark.parametrize("damage", ["missing", "empty", "link"])
def test_a_record_without_its_pictures_is_not_complete(tmp_path, damage):
    line = filled(NeuronRecord).save(tmp_path)
    (record,) = read_records(tmp_path)
    assert record.complete
    picture = tmp_path / line["mask"]
    content = picture.read_bytes()
    picture.unlink()
    if damage == "empty":
        picture.touch()
    elif damage == "link":
        (tmp_path.parent / "mask.png").write_bytes(content)
        picture.symlink_to(tmp_path.parent / "mask.png")
    assert not record.complete and record.mask is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"history": 5}, {"history": [{"total": "x"}]}, {"seconds": "fast"}, {"activation": True},
        {"neuron": 1.5}, {"direction": "sideways"}, {"cross_activations": {"1": []}},
        {"image": 3}, {"caption": ["a"]}, {"iterations": 10**400}, {"activation": 10**400},
    ],
)  # fmt: skip
def test_records_of_another_program_are_skipped_with_one_warning(tmp_path, caplog, wrong):
    filled(NeuronRecord).save(tmp_path)
    line = {"task": "neurons", "status": "done"} | wrong
    with (tmp_path / "results.jsonl").open("a") as file:
        for number in range(3):
            file.write(json.dumps(line | {"id": number}) + "\n")
    assert [record.id for record in read_records(tmp_path)] == ["job-0"]
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("3 records")
    assert write_report(tmp_path).exists()


def fill(out, name):
    for number in range(30):
        for id in (f"{name}-{number}", f"both-{number}"):
            filled(NeuronRecord, id, "x" * 5000).save(out)


def test_two_runs_at_once_in_one_folder(tmp_path):
    """Also where they do the same jobs: every line is whole, and every job there once."""
    context = multiprocessing.get_context("fork")
    runs = [context.Process(target=fill, args=(tmp_path, name)) for name in "ab"]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
        assert run.exitcode == 0
    assert all(json.loads(line) for line in (tmp_path / "results.jsonl").open())
    found = read_records(tmp_path)
    assert len(found) == 90 == len({record.id for record in found})
    assert all(record.complete for record in found)


@pytest.mark.parametrize(
    "text, shown",
    [
        ("image '/home/a b/x y.png' is missing", "image 'x y.png' is missing"),
        ("imagenet:/data/imagenet", "imagenet:imagenet"),
        ("'C:\\Users\\me\\model'", "'model'"),
        ("file:/home/me/net.pth@timm:vit's confidence", "file:net.pth@timm:vit's confidence"),
        ('["/a/b/c.png", "x/y.png"]', '["c.png", "x/y.png"]'),
        ("https://hf.co/a/b/c, 1/2 or a/b/c", "https://hf.co/a/b/c, 1/2 or a/b/c"),
    ],
)
def test_pages_do_not_tell_where_files_lie(tmp_path, text, shown):
    assert without_folders(text) == shown
    store = ResultStore(tmp_path, "neurons", {"model": text})
    NeuronRecord.failure("a", 0, text, {}).save(store)
    NeuronRecord(id="b", extra={"file": text}, caption=text).save(store)
    page = write_report(tmp_path).read_text()
    assert "/home" not in page and "/data" not in page and "Users" not in page
