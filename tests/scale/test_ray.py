"""Jobs on a local Ray: every job once, whatever dies. The engine only sleeps, all else is real."""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial

import numpy as np
import psutil
import pytest
from cli_commands import CF, QUICK, TARGET, records, run, save_copy
from PIL import Image

import fastdigin as fd
from fastdigin.errors import UserError
from fastdigin.results import ResultStore
from fastdigin_bench.scale_out import check
from fastdigin_bench.sleep_task import Sleep, SleepEngine, load

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "fastdigin[ray]"')

from fastdigin.scale.driver import LARGEST, PARTS, Pool, Run, block_count  # noqa: E402 - needs Ray

JOBS = 40


@pytest.mark.parametrize("slots", [1, 2, 8])
@pytest.mark.parametrize("actors", [1, 2, 16])
def test_all_actors_get_as_many_blocks_of_about_whole_batches(actors, slots):
    for each in (1, slots, 3 * slots, 100 * slots, 10_000 * slots):
        jobs = each * actors
        count = block_count(jobs, actors, slots)
        assert count % actors == 0 and count <= jobs
        size = jobs / count
        assert min(each, slots) <= size <= LARGEST * slots
        assert size == min(each, slots) or count / actors >= PARTS / 2, "a fair end"
    assert block_count(7 * actors - 1, actors, 8) == actors, "never a block without a job"


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs on this machine, whatever it has."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    ("machines", "size", "pool"),
    [
        ([{"CPU": 2}], None, Pool(2, 1, 0, 2)),
        ([{"CPU": 8}], 3, Pool(3, 2, 0, 3)),
        ([{"CPU": 2}], 16, Pool(16, 0.125, 0, 16)),
        ([{"CPU": 3}, {"CPU": 3}], 7, Pool(7, 0.5, 0, 4)),
        ([{"CPU": 3}, {"CPU": 3}, {"CPU": 3}], 4, Pool(4, 1, 0, 2)),
        ([{"CPU": 16, "GPU": 4}], None, Pool(4, 4, 1, 1)),
        ([{"CPU": 16, "GPU": 4}], 2, Pool(2, 8, 1, 1)),
        ([{"CPU": 16, "GPU": 4}], 6, Pool(6, 2, 0.5, 2)),
        ([{"CPU": 4}, {"CPU": 16, "GPU": 3}], 7, Pool(7, 2, 0.3333, 3)),
    ],
)
def test_all_actors_find_their_share(machines, size, pool):
    assert Pool.of_machines(machines, size) == pool
    cpus, gpus = (sum(m.get(kind, 0) // share if share else size or 99 for m in machines)
                  for kind, share in (("CPU", pool.cpus), ("GPU", pool.gpus)))  # fmt: skip
    assert min(cpus, gpus) >= pool.size


@pytest.mark.parametrize("machines", [[{"CPU": 2}], [{"CPU": 1}, {"CPU": 1}], [{"GPU": 2}]])
def test_more_actors_than_machines_can_serve(machines):
    """Ray would start any number of them, each with a share of nothing."""
    assert Pool.of_machines(machines, 32).size == 32
    with pytest.raises(UserError, match="workers must be at most 32, .*, got 33"):
        Pool.of_machines(machines, 33)


def sleeping(out, faults, ids=None, jobs=JOBS, seconds=0.02, load=load, **also):
    task = Sleep(engine=SleepEngine(seconds, faults), count=jobs)
    ResultStore(out, task.name, task.run_settings)
    made = Run(
        task=task.name, ids=ids or [r.id for r in task.requests], out=out, slots=8,
        load=partial(load, seconds, str(faults), jobs), pool=Pool.of_cluster(2), **also,
    )  # fmt: skip
    made.run()
    return made


def test_every_job_has_one_record_though_workers_are_killed(cluster, tmp_path):
    killed, lines = [], []

    def on_record(line):
        lines.append(line)
        if len(lines) in (1, JOBS // 2):
            process = next(p for p in psutil.Process().children(recursive=True) if is_worker(p))
            process.send_signal(signal.SIGKILL)
            killed.append(process.pid)

    made = sleeping(tmp_path, tmp_path, seconds=0.1, on_record=on_record)
    assert made.errors == {} and len(set(killed)) == 2
    assert check(tmp_path, JOBS) == {"missing": 0, "twice": 0, "wrong_pictures": 0}
    assert len(lines) == JOBS


def is_worker(process: psutil.Process) -> bool:
    return "MapWorker" in " ".join(process.cmdline())


def deadly(seconds, faults, jobs):
    """A worker that dies of one job, as of a crash in a driver."""
    chosen = load(seconds, faults, jobs)

    def choose(rows):
        task, requests = chosen(rows)
        if any(request.id == "job-0000005" for request in requests):
            os._exit(1)
        return task, requests

    return choose


@pytest.mark.slow
def test_a_job_that_kills_its_workers_is_given_up_alone(cluster, tmp_path):
    made = sleeping(tmp_path, tmp_path, jobs=16, load=deadly)
    assert list(made.errors) == ["job-0000005"]
    assert check(tmp_path, 16) == {"missing": 1, "twice": 0, "wrong_pictures": 0}


def broken(seconds, faults, jobs):
    raise RuntimeError("no weights here")


def test_workers_that_cannot_start_say_why(cluster, tmp_path):
    with pytest.raises(UserError, match="no weights here"):
        sleeping(tmp_path, tmp_path, jobs=2, load=broken)


@pytest.mark.parametrize("fault", ["memory", "disk"])
def test_what_fails_once_is_done_again(cluster, tmp_path, fault):
    (tmp_path / f"{fault}-job-0000003").touch()
    made = sleeping(tmp_path, tmp_path, jobs=12)
    assert made.errors == {}
    assert check(tmp_path, 12) == {"missing": 0, "twice": 0, "wrong_pictures": 0}


def lose(out, record) -> None:
    """Takes a record's picture away, or what is in it: by turns."""
    path = out / record["image"]
    path.unlink() if int(record["id"][-1]) % 2 else path.write_bytes(b"")


def done_here(out, jobs) -> list[dict]:
    """The records that this process makes of some jobs, without Ray."""
    for record in Sleep(engine=SleepEngine(0.0, out), count=jobs).run():
        record.save(out)
    assert check(out, jobs) == {"missing": 0, "twice": 0, "wrong_pictures": 0}
    return records(out)


def refusing(seconds, faults, count):
    """One job of it fails its check."""
    chosen = load(seconds, faults, count)

    def check(request):
        if request.id == "job-0000004":
            raise UserError("no such photo")
        return request

    def choose(rows):
        task, requests = chosen(rows)
        task.check = check
        return task, requests

    return choose


def test_a_dataset_of_records_from_a_dataset_of_inputs(cluster, tmp_path):
    """Rows of new jobs, of finished ones and of failed ones have the same columns."""
    ids = [f"job-{number:07d}" for number in range(6)]
    kept = done_here(tmp_path, 3)
    lose(tmp_path, kept[2])
    inputs = ray.data.from_items([{"id": id} for id in ids], override_num_blocks=1)
    loading = partial(refusing, 0.0, str(tmp_path), 6)
    found = fd.scale.map(inputs, loading, out=tmp_path, workers=1).take_all()
    assert sorted(row["id"] for row in found) == ids
    lines = {line["id"]: line for line in records(tmp_path)}
    assert len(records(tmp_path)) == 3 + 4  # the lost one again, and three new ones
    for row in found:
        assert row.keys() == {*kept[0], "error"}
        line = lines[row["id"]]
        assert row["status"] == line["status"] and row["image"] == line["image"]
        assert row["error"] == line.get("error")
        assert json.loads(row["history"]) == line["history"]
    assert [row["id"] for row in found if row["status"] == "failed"] == [ids[4]]


@pytest.mark.slow
def test_a_command_on_ray_gives_what_it_gives_alone(cluster, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a", "b", "c"):
        save_copy(photos / f"{name}.png")
    (photos / "z.png").write_text("no picture")
    arguments = [*CF, photos, "--target", TARGET, *QUICK, "--slots", 2, "--json"]
    shares = ["--out", tmp_path / "ray", "--ray", "--workers", 1]
    assert run(*arguments, *shares, "--dry-run") == 0
    (plan,) = printed(capsys)
    assert (plan["jobs"], plan["left"], plan["slots"], plan["missing"]) == (4, 4, 2, [])
    assert plan["hours"] > 0 and not (tmp_path / "ray").exists()
    assert run(*arguments, "--out", tmp_path / "alone") == 1
    alone = {line["id"]: line for line in printed(capsys)}
    assert run(*arguments, *shares) == 1
    together = printed(capsys)
    assert sorted(line["id"] for line in together) == sorted(alone)
    for line in together:
        same = alone[line["id"]]
        assert line["status"] == same["status"] and line.get("error") == same.get("error")
        if line["status"] == "done":
            pictures = [
                np.asarray(Image.open(tmp_path / out / r["image"]), dtype=float)
                for out, r in (("ray", line), ("alone", same))
            ]
            # Another number of threads changes the last bits.
            assert np.abs(pictures[0] - pictures[1]).max() <= 2
    assert run(*arguments, *shares, "--limit", 3) == 0
    assert printed(capsys) == []  # nothing was left to do


def test_a_pool_that_is_silent_ends_the_run(cluster, tmp_path):
    """The last test: the pool keeps its place on the cluster."""
    with pytest.raises(UserError, match="no worker has been heard"):
        sleeping(tmp_path, tmp_path, jobs=1, seconds=60, patience=3)


def printed(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]
