"""What a task yields for each job: the record of results.jsonl and its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdigin.engine.job import Result
from fastdigin.results import ResultStore, difference_picture


@dataclass(frozen=True)
class Explanation:
    """One finished (or failed) job of a task.

    record: the keys documented at the top of report/store.py, pictures aside. pictures: name ->
    (3, H, W) image or (H, W) mask in [0, 1]; the names are the record's picture keys. settings:
    whatever decides the result, for run.json. result: the engine's, None if it never got there.
    """

    task: str
    id: str
    record: Mapping[str, Any]
    pictures: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    result: Result | None = None

    @property
    def status(self) -> str:
        return self.record["status"]

    @property
    def image(self) -> Tensor | None:
        """The optimised image (3, H, W), or None if the job failed before there was one."""
        return self.pictures.get("image")

    def save(self, out: str | Path | ResultStore) -> dict[str, Any]:
        """Writes the pictures and appends the record; returns the record as written."""
        store = out if isinstance(out, ResultStore) else ResultStore(out, self.task, self.settings)
        paths = {key: store.save_image(f"{self.id}-{key}", x) for key, x in self.pictures.items()}
        unknown = (key for key in TASK_KEYS[self.task] if key not in self.record)
        record = {**self.record, **dict.fromkeys((*unknown, *PICTURES)), **paths}
        store.append(record)
        return record


PICTURES = ("image", "initial_image", "input_image", "difference", "mask")
# Keys that every record of a task has, a failed one as well: null where unknown.
TASK_KEYS = {
    "counterfactual": (
        "source", "target", "target_confidence_before", "target_confidence", "flipped",
        "judge_prediction", "background_l1", "foreground_l1",
    ),
    "disagreement": (
        "class", "f_confidence_before", "g_confidence_before", "f_confidence", "g_confidence",
    ),
    "neurons": (
        "neuron", "word", "activation_before", "activation", "max_other_activation",
        "dataset_max_activation",
    ),
    "neuron-counterfactual": (
        "neuron", "direction", "activation_before", "activation", "background_before",
        "background_after", "class_confidence_before", "class_confidence", "foreground_l1",
    ),
}  # fmt: skip


def explain(
    task: str,
    result: Result,
    settings: Mapping[str, Any],
    record: Mapping[str, Any],
    *,
    before: Tensor | None,
    input_image: Tensor | None = None,
    mask: Tensor | None = None,
) -> Explanation:
    """The Explanation of an engine Result. ``before``: what the image is compared with."""
    pictures = {
        "image": result.image,
        "initial_image": before,
        "input_image": input_image,
        "mask": mask,
    }
    if result.image is not None and before is not None:
        pictures["difference"] = difference_picture(before, result.image)
    base = {
        "task": task,
        "id": result.id,
        "status": result.status,
        "seed": result.job.seed,
        "iterations": result.iterations,
        "seconds": round(result.seconds, 3),
        "history": list(result.history),
        "best_iteration": result.best_iteration,
    }
    if result.error is not None:
        base["error"] = result.error
    kept = {
        name: picture.float().cpu() for name, picture in pictures.items() if picture is not None
    }
    return Explanation(task, result.id, base | dict(record), kept, settings, result)


def failure(task: str, id: str, seed: int, error: str, settings: Mapping[str, Any]) -> Explanation:
    """The Explanation of a job that could not even be set up."""
    record = {
        "task": task, "id": id, "status": "failed", "error": error, "seed": seed,
        "iterations": 0, "seconds": 0.0, "history": [], "best_iteration": None,
        "caption": "This job failed before it started.",
    }  # fmt: skip
    return Explanation(task, id, record, {}, settings)


def masked_l1(a_3hw: Tensor, b_3hw: Tensor, mask_hw: Tensor) -> float:
    """Mean absolute difference of the pixels, weighted by a mask in [0, 1]."""
    weight = mask_hw.sum().clamp_min(1e-6) * a_3hw.shape[0]
    return float(((a_3hw - b_3hw).abs() * mask_hw).sum() / weight)


def plain(value: Any) -> Any:
    """Settings dataclasses, nested ones included, as plain values."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value
