"""One worker, in this process: how the blocks that it holds share the engine's slots."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

import fastdigin as fd
from fastdigin_bench.sleep_task import Sleep, SleepEngine

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "fastdigin[ray]"')

from fastdigin.scale.worker import DEATHS, Told, Worker  # noqa: E402 - needs Ray


class Engine(SleepEngine):
    """Notes which jobs shared its slots, and what they were asked by."""

    def __init__(self, folder):
        super().__init__(0.001, folder)
        self.batches, self.threads, self.gate = [], set(), threading.Event()

    def run(self, work, on_progress=None):
        self.gate.wait(10)  # until all blocks of a test have come

        def noted():
            for job in work:
                self.batches[-1].append(job.id)
                yield job

        for result in super().run(self._batched(noted()), on_progress):
            self.threads.add(threading.current_thread().name)
            if result.id == "job-0000099":
                raise RuntimeError("out of order")
            yield result

    def _batched(self, jobs):
        self.batches.append([])
        for job in jobs:
            yield job
            if len(self.batches[-1]) == self.slots:
                self.batches.append([])


@pytest.fixture
def engine(tmp_path):
    return Engine(tmp_path)


@pytest.fixture
def begun(monkeypatch):
    """How often blocks have been begun, which a test may write."""
    counts = {}
    monkeypatch.setattr(ray, "get", lambda value: value)
    here = SimpleNamespace(get_actor_id=lambda: "here")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    return counts


@pytest.fixture
def do(engine, begun, tmp_path):
    """The rows that a worker makes of blocks of job numbers, all handed to it at once."""

    def begin(block):
        begun[block] = begun.get(block, 0) + 1
        return begun[block]

    beats = SimpleNamespace(
        begin=SimpleNamespace(remote=begin), beat=SimpleNamespace(remote=lambda *_: None)
    )
    task = Sleep(engine=engine, count=200)

    def load():
        return lambda rows: (task, [task.requests[row["number"]] for row in rows])

    def do(*blocks):
        worker = Worker(load, Told(str(tmp_path / "out"), 1, 10, ".", beats))
        with ThreadPoolExecutor() as pool:
            made = []
            for block in blocks:
                made.append(pool.submit(lambda block: list(worker({"number": block})), block))
                time.sleep(0.05)  # they come in their order
            engine.gate.set()
            return [
                {row["id"][0]: row["status"][0] for row in rows.result(timeout=20)} for rows in made
            ]

    return do


def ids(*numbers):
    return [f"job-{number:07d}" for number in numbers]


def test_slots_are_filled_from_the_next_block(do, engine):
    found = do(range(5), range(5, 10), range(10, 13))
    assert found == [
        dict.fromkeys(ids(*r), "done") for r in (range(5), range(5, 10), range(10, 13))
    ]
    assert list(map(len, engine.batches)) == [8, 5] and len(engine.threads) == 1


def test_a_block_of_a_worker_that_died_is_done_by_itself(do, engine, begun):
    begun[repr([{"number": n} for n in (5, 6)])] = 1
    found = do(range(5), [5, 6], range(7, 10))
    assert [list(rows) for rows in found] == [ids(*range(5)), ids(5, 6), ids(*range(7, 10))]
    assert list(filter(None, engine.batches)) == [list(rows) for rows in found]


def test_rows_that_mean_nothing(do):
    assert do([], [1]) == [{}, dict.fromkeys(ids(1), "done")]


def test_a_block_that_killed_too_often_is_given_up_alone(do, engine, begun):
    begun[repr([{"number": n} for n in (5, 6)])] = DEATHS
    found = do(range(5), [5, 6], range(7, 10))
    assert found[1] == dict.fromkeys(("",), "error")  # nobody has asked what it means
    assert engine.batches[0] == ids(*range(5), 7, 8, 9)


def test_a_job_of_two_blocks_is_done_once(do, engine, tmp_path):
    """And of a folder that holds it already, not at all."""
    assert do(range(4), [3, 4]) == [dict.fromkeys(ids(*r), "done") for r in (range(4), (3, 4))]
    assert [job for batch in engine.batches for job in batch] == ids(*range(5))
    assert do([2, 3]) == [dict.fromkeys(ids(2, 3), "done")]
    assert [job for batch in engine.batches for job in batch] == ids(*range(5))
    assert len(fd.read_records(tmp_path / "out")) == 5


def test_an_engine_that_fails_loses_what_is_under_way_and_goes_on(do, engine):
    found = do([1, 2], [99, 3])
    assert found[1] == dict.fromkeys(ids(99, 3), "error")
    assert found[0] == dict.fromkeys(ids(1, 2), "done")  # they were finished before
    assert do([4, 3]) == [dict.fromkeys(ids(4, 3), "done")]
