"""A table of 100,000 rows up to the first job: nothing grows faster than n log n."""

import json
import time

import pytest
from cli_commands import CF, DISAGREE, NCF, PHOTO, TARGET, run

from fastdigin.engine.engine import Engine
from fastdigin.results.store import SCHEMA

FEW, MANY = 20_000, 100_000


class Reached(BaseException):
    """The first job was about to start."""


@pytest.fixture
def seconds(tmp_path, monkeypatch):
    """Of the processor, from a command to its first job."""

    def read_one(self, work, on_progress=None):
        next(iter(work))
        raise Reached
        yield  # as the engine's own: a generator

    monkeypatch.setattr(Engine, "run", read_one)

    def seconds(command, count):
        table, out = tmp_path / f"{count}.jsonl", tmp_path / f"out-{count}"
        row = {"image": str(PHOTO.path), "source": PHOTO.garment, "target": TARGET, "id": "same"}
        table.write_text((json.dumps(row) + "\n") * count)
        command = [table if part == "TABLE" else count if part == "N" else part for part in command]
        start = time.process_time()
        with pytest.raises(Reached):
            run(*command, "--slots", 1, "--out", out)
        return time.process_time() - start, out

    return seconds


@pytest.mark.parametrize(
    "command",
    [
        [*CF, "TABLE"],
        pytest.param([*NCF, "TABLE", "--neuron", 3, "--direction", "max"], marks=pytest.mark.slow),
        [*DISAGREE, "--classes", "bag", "--seeds", "N"],
    ],
    ids=lambda command: command[0],
)
def test_nothing_is_quadratic(seconds, command):
    seconds(command, 10)  # what is done once a process
    once, _ = seconds(command, 11)
    few, many = (seconds(command, count)[0] - once for count in (FEW, MANY))
    assert many < 2 * (MANY / FEW) * max(few, 0.5)


@pytest.mark.slow
def test_going_on_is_not_quadratic_either(seconds):
    """All but the last one are done."""
    once, _ = seconds([*CF, "TABLE"], 10)
    spent = {}
    for count in (FEW, MANY):
        _, out = seconds([*CF, "TABLE"], count)
        first = f"same-to-{TARGET}"
        ids = [first, *(f"{first}-{number}" for number in range(2, count))]
        common = {"task": "counterfactual", "status": "done", "schema": SCHEMA}
        lines = [common | {"id": id} for id in ids]
        (out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        spent[count] = seconds([*CF, "TABLE"], count)[0] - once
    assert spent[MANY] < 2 * (MANY / FEW) * max(spent[FEW], 0.5)
