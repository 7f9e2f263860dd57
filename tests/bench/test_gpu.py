"""Every part of ``bench gpu`` runs at a tiny size on the CPU, and a run goes on where it ended."""

import json
from argparse import Namespace

import pytest
import torch

from fastdigin_bench import gpu
from fastdigin_bench.command import GPU_PARTS
from fastdigin_bench.gpu.parts import PARTS
from fastdigin_bench.gpu.place import Place, StageClock, iterate


def options(folder, **given) -> Namespace:
    known = {"name": "here", "minutes": 60, "only": None, "device": "cpu", "tiny": True}
    return Namespace(**known | {"results": folder} | given)


def test_the_command_line_knows_the_parts():
    assert tuple(PARTS) == GPU_PARTS


@pytest.mark.slow
@pytest.mark.parametrize("part", [name for name in PARTS if name != "tests"])
def test_each_part_runs(part):
    found = PARTS[part](Place(torch.device("cpu"), tiny=True))
    assert found
    if "images_per_hour" in found:
        assert found["images_per_hour"] > 0 and found["images"] >= 2
        assert found["timed_iterations"] == found["iterations"] == 1
        assert {"iterations", "final", "other"} <= found["seconds_by_stage"].keys()
    if part == "slots":
        assert [row["slots"] for row in found["rows"]] == [1, 2]
    if part == "graphs":
        assert found["largest_difference"] == 0
    if part == "dtypes":
        assert 0 < found["bfloat16_gradient_error"] < 1
    if part == "smoke":
        assert len(found) == 4
    if part == "kernels":
        assert found["refused"] == 0 and found["cases"] > 1


def test_a_run_goes_on_with_what_is_missing(tmp_path, monkeypatch, capsys):
    ran = []

    def part(name, fails=False):
        def measure(place):
            ran.append(name)
            if fails and ran.count(name) == 1:
                raise RuntimeError("the card is gone")
            return {"figure": len(name)}

        return measure

    parts = {"one": part("one"), "two": part("two", fails=True), "three": part("three")}
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert gpu.run(options(tmp_path)) == 1
    kept = json.loads((tmp_path / "gpu-here.json").read_text())["parts"]
    assert kept["two"]["error"] == "RuntimeError: the card is gone"
    assert kept["three"]["figure"] == 5
    assert gpu.run(options(tmp_path)) == 0
    assert ran == ["one", "two", "three", "two"]
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["parts"]["two"] | {"seconds": 0} == {"seconds": 0, "error": None, "figure": 3}


def test_no_part_begins_when_the_time_is_over(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(gpu, "PARTS", {"one": lambda place: ran.append(1) or {}})
    assert gpu.run(options(tmp_path, minutes=-1)) == 0 and ran == []


def test_a_stage_inside_a_stage_belongs_to_the_outer_one(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr("fastdigin_bench.gpu.place.time.perf_counter", lambda: next(now))
    clock = StageClock(torch.device("cpu"))
    with clock.stage("search"), clock.stage("iterations"):
        pass
    with clock.stage("iterations"):
        pass
    assert clock.read() == {"search": 1, "iterations": 1}


def test_an_iteration_is_timed_without_the_last_evaluation():
    """Which is shorter, and would pass for the fastest."""

    class Engine:
        left = 3

        def submit(self, jobs):
            pass

        @property
        def busy(self):
            return self.left > 0

        def step(self):
            self.left -= 1
            return [] if self.left else ["done"]

    now = iter((0, 9, 10, 15, 20, 21))
    assert iterate(Engine(), [], lambda: next(now)) == ([9, 5], ["done"])
