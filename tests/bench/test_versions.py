"""What pip is asked for to try other versions."""

from pathlib import Path

from fastdigin_bench.versions import GPU, requirements

PROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")


def test_the_oldest_versions_are_the_bounds():
    wanted = requirements("oldest", PROJECT)
    assert all(line.replace("==", ">=") in PROJECT for line in wanted)
    names = {line.partition("==")[0] for line in wanted}
    assert {"torch", "diffusers", "transformers", "timm", "open_clip_torch", "pytest"} <= names


def test_a_gpu_machines_versions_stand_in_for_bounds():
    wanted = requirements("gpu", PROJECT)
    assert {name + version for name, version in GPU.items()} <= set(wanted)
    assert len(wanted) == len({line.split("=")[0].split("<")[0].split(">")[0] for line in wanted})
