"""A task of a user's own: one class, and everything else follows from it."""

import json
from dataclasses import dataclass

import pytest
import torch
from cli_commands import QUICK, records, run

from fastdigin import tasks
from fastdigin.configuration import check_settings, setting
from fastdigin.engine.job import Settings
from fastdigin.results import Record, read_records
from fastdigin.results.keys import key
from fastdigin.tasks.generated import generated_job, seed_of
from fastdigin.tasks.task import Request, Task, given


@dataclass(frozen=True)
class BrightnessSettings:
    """How bright images are made."""

    optimisation: Settings = setting(Settings, "the engine's settings", flat=True)
    goal: float = setting(0.9, "mean of all pixels to reach", least=0, most=1, metavar="G")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class BrightnessRecord(Record):
    """An image that was made brighter."""

    task = "brightness"

    word: str | None = key("what the image shows")
    brightness_before: float | None = key("mean of all pixels before")
    brightness: float | None = key("the same after")


@dataclass(frozen=True)
class FromGoal:
    """The squared distance of the mean pixel from the goal."""

    goal: float
    name: str = "brightness_loss"
    weight: float = 1.0

    def __call__(self, candidate) -> torch.Tensor:
        return (candidate.image.mean() - self.goal).square()


@tasks.register
@dataclass(kw_only=True)
class Brightness(Task):
    """Makes images of a word brighter."""

    name = "brightness"
    record_type = BrightnessRecord
    settings_type = BrightnessSettings

    word: str = given("what to draw", default="bag", metavar="WORD")
    count: int = given("how many", kind="count", default=1, metavar="N", affects=False)

    def make_requests(self) -> list[Request]:
        return [Request(f"{self.word}-{number}") for number in range(self.count)]

    def jobs(self, checked, width):
        return [
            generated_job(
                self.model, id=r.id, prompt=f"a photo of a {self.word}",
                losses=[FromGoal(self.settings.goal)], settings=self.settings.optimisation,
                seed=seed_of(self.seed, int(r.id.rpartition("-")[2])),
            )
            for r in checked
        ]  # fmt: skip

    def explain(self, result):
        pictures = {"brightness_before": result.initial_image, "brightness": result.image}
        means = {name: float(x.mean()) for name, x in pictures.items() if x is not None}
        return BrightnessRecord.of(
            result, settings=self.run_settings, before=result.initial_image, word=self.word, **means
        )


COMMAND = ["brightness", "--word", "sneaker", "--goal", "0.8", *QUICK]


def test_help_has_its_inputs_and_its_settings(capsys):
    assert run("brightness", "--help") == 0
    shown = capsys.readouterr().out
    assert "Makes images of a word brighter." in shown
    for words in ("--word WORD", "what to draw", "--goal G", "mean of all pixels", "--steps T"):
        assert words in shown
    assert run("--help") == 0
    assert "brightness" in capsys.readouterr().out


def test_bad_settings_are_refused_by_name(capsys, tmp_path):
    assert run(*COMMAND, "--goal", "2", "--out", tmp_path) == 2
    assert "--goal: must be a number at least 0 and at most 1, got '2'" in capsys.readouterr().err


def test_it_runs_resumes_and_reports(capsys, tmp_path):
    arguments = [*COMMAND, "--out", tmp_path, "--json"]
    assert run(*arguments, "--count", 1) == 0
    captured = capsys.readouterr()
    assert [json.loads(line) for line in captured.out.splitlines()] == records(tmp_path)
    assert "brightness: 100%" in captured.err  # the progress bar
    first = (tmp_path / "results.jsonl").read_bytes()
    assert run(*arguments, "--count", 2) == 0  # only the second is done
    assert (tmp_path / "results.jsonl").read_bytes().startswith(first)
    found = read_records(tmp_path)
    assert [r.id for r in found] == ["sneaker-0", "sneaker-1"]
    for record in found:
        assert isinstance(record, BrightnessRecord) and record.word == "sneaker"
        # The files have 8 bits.
        assert record.brightness == pytest.approx(float(record.image.mean()), abs=1 / 255)
        best = record.history[record.best_iteration]
        assert best["brightness_loss"] == pytest.approx((record.brightness - 0.8) ** 2, abs=1e-5)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Brightness" in page and "sneaker-1" in page
    assert run(*arguments, "--goal", "0.3") == 2  # other settings do not mix with these
    assert "goal: 0.8 there, 0.3 here" in capsys.readouterr().err
