"""What ``fastdigin bench gpu`` measures, the most important first.

A part is a function of the Place that returns figures for the JSON.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdigin import hardware
from fastdigin.engine.engine import Engine
from fastdigin.engine.memory import is_out_of_memory
from fastdigin.errors import UserError
from fastdigin_bench.gpu.place import Place, StageClock, iterate
from fastdigin_bench.gradients import Gradients, engine_first_gradients, relative_error
from fastdigin_bench.kernel_cases import OPS, cases
from fastdigin_bench.kernel_timing import matmul_peak, time_in_turns
from fastdigin_bench.kernels import measure as measure_kernel
from fastdigin_bench.plain_loop import optimise
from fastdigin_bench.plain_model import PlainModel
from fastdigin_bench.profile.stages import named_stages
from fastdigin_bench.profile.workload import TASKS, make_task
from fastdigin_bench.text_jobs import none_failed

ITERATIONS = 4
"""That are timed; a run has more, which take as long each."""
SLOTS = (1, 2, 4, 8, 16, 32, 64)
TESTS = Path("tests")


def smoke(place: Place) -> dict[str, Any]:
    """Whether all four tasks end well on the packaged model."""
    small = Place(place.device, tiny=True)
    return {task: _run_task(small, "embedded", task, slots=2)["images"] for task in TASKS}


def tests(place: Place) -> dict[str, Any]:
    """The GPU tests, in a process of their own."""
    if not TESTS.is_dir():
        raise UserError("the tests are not here: run from the root of a checkout")
    paths = [os.environ.get("PYTHONPATH", ""), str(TESTS.resolve())]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(TESTS)]
        + ["--collect-only"] * place.tiny,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True, text=True,
    )  # fmt: skip
    counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return counts


def images_an_hour(model: str, task: str) -> Callable[[Place], dict[str, Any]]:
    """Of a task by its default options, the seconds of its stages, and its memory."""
    return lambda place: _run_task(place, model, task)


def _run_task(place: Place, name: str, task: str, slots: int | None = None) -> dict[str, Any]:
    model, classifier = place.models(name)
    wanted = place.settings(task, model).optimisation.iterations
    settings = place.settings(task, model, iterations=min(ITERATIONS, wanted))
    engine = Engine(model, slots=slots or (2 if place.tiny else None), compile="off")
    count = engine.slots

    def run() -> tuple[dict[str, float], int, int]:
        clock, updates = StageClock(place.device), []
        with tempfile.TemporaryDirectory() as folder, named_stages(clock.stage, updates.append):
            start = place.seconds()
            made = make_task(task, engine, classifier, Path(folder), count, settings)
            records = none_failed(made.run())
            total = place.seconds() - start
        stages = clock.read()
        stages["other"] = round(total - sum(stages.values()), 4)
        return stages, len(updates), len(records)

    if not place.tiny:
        run()  # plans, chooses kernels, records graphs
    with hardware.of(place.device).count_bytes() as count_bytes:
        stages, updates, images = run()
        peak = count_bytes.peak
    whole = sum(stages.values()) + stages["iterations"] * (wanted - updates) / updates
    return {
        "images_per_hour": round(3600 * images / whole, 1),
        "images": images,
        "plan": str(engine.plan),
        "seconds_by_stage": stages,
        "timed_iterations": updates,
        "iterations": wanted,
        "peak_bytes": peak,
        "predicted_bytes": engine.plan.predicted,
    }


def slots(place: Place) -> dict[str, Any]:
    """Speed and memory from one slot to what fits."""
    model, classifier = place.models("sd-1.4")
    rows = []
    for count in SLOTS[:2] if place.tiny else SLOTS:
        engine = Engine(model, slots=count, compile="off")
        with hardware.of(place.device).count_bytes() as count_bytes:
            try:
                times, results = iterate(
                    engine, place.jobs(model, classifier, count), place.seconds
                )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                break
            peak = count_bytes.peak
        if any(result.error for result in results) or engine.plan.slots < count:
            break
        rows.append({
            "slots": count,
            "kept_steps": engine.plan.kept_steps,
            "width": engine.plan.width,
            "iterations_per_second": round(count / min(times[1:]), 4),
            "peak_bytes": peak,
            "predicted_bytes": engine.plan.predicted,
        })  # fmt: skip
        del engine
        hardware.of(place.device).release()
    best = max(rows, key=lambda row: row["iterations_per_second"])
    planned = Engine(model, compile="off").slots
    return {"best_slots": best["slots"], "planned_slots": planned, "rows": rows}


def graphs(place: Place) -> dict[str, Any]:
    """Seconds of an iteration with and without CUDA graphs, and whether results are the same."""
    model, classifier = place.models("sd-1.4")
    found, images = {}, {}
    for choice in ("auto", "off"):
        engine = Engine(model, slots=2 if place.tiny else 8, compile="off", graphs=choice)
        jobs = place.jobs(model, classifier, engine.slots, iterations=3)
        times, results = iterate(engine, jobs, place.seconds)
        found[f"seconds_{choice}"] = round(min(times[1:]), 4)
        images[choice] = torch.stack([r.image for r in sorted(results, key=lambda r: r.id)])
        del engine
        hardware.of(place.device).release()
    difference = (images["auto"] - images["off"]).abs().max().item()
    return found | {"largest_difference": difference}


def kernels(place: Place) -> dict[str, Any]:
    """Every implementation of every operation at SD 1.4's shapes, forward and backward."""
    rows = []
    for dtype in (torch.float32,) if place.tiny else (torch.bfloat16, torch.float16):
        peak = matmul_peak(place.device, dtype)
        model = "embedded" if place.tiny else "sd-1.4"
        for case in cases((model,), OPS[-1:] if place.tiny else OPS, place.device, dtype):
            rows += measure_kernel(case, 0.05, peak)
    both = [row for row in rows if row["pass"] == "both"]
    refused = sum(row["refused"] is not None for row in both)
    return {"cases": len(both), "refused": refused, "rows": rows}


def dtypes(place: Place) -> dict[str, Any]:
    """Error of the first gradients and images in half precision, against fp32."""

    def gradients_and_image(dtype: torch.dtype) -> tuple[Gradients, Tensor]:
        hardware.of(place.device).release()
        model, classifier = place.models("sd-1.4", dtype)
        engine = Engine(model, slots=1, compile="off")
        (job,) = place.jobs(model, classifier, 1)
        return engine_first_gradients(engine, job), engine.evaluate([job])[0].image

    found: dict[str, Any] = {}
    true_gradients, true_image = gradients_and_image(torch.float32)
    for name in ("bfloat16",) if place.device.type == "cpu" else ("bfloat16", "float16"):
        gradients, image = gradients_and_image(getattr(torch, name))
        error = relative_error(gradients, true_gradients)
        found[f"{name}_gradient_error"] = round(error, 5)
        found[f"{name}_image_error"] = round((image - true_image).abs().mean().item(), 6)
    return found


def plain_loop(place: Place) -> dict[str, Any]:
    """Seconds of an iteration of one image in the plain loop, in fp32, and in the engine."""
    plain_seconds = _plain_seconds(place)
    hardware.of(place.device).release()
    model, classifier = place.models("sd-1.4")
    engine = Engine(model, slots=2 if place.tiny else 8, compile="off")
    times, _ = iterate(engine, place.jobs(model, classifier, engine.slots), place.seconds)
    ours = min(times[1:]) / engine.slots
    return {
        "plain_seconds": round(plain_seconds, 4),
        "engine_seconds": round(ours, 4),
        "ratio": round(plain_seconds / ours, 2),
    }


def _plain_seconds(place: Place) -> float:
    model, classifier = place.models("sd-1.4", torch.float32)
    (job,) = place.jobs(model, classifier, 1, iterations=1)
    plain = PlainModel(model)
    taken = time_in_turns({"plain": lambda: optimise(plain, job)}, 0, place.device)["plain"]
    return min(taken) / 2  # an update, and the last evaluation, whose graph it makes too


PARTS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "smoke": smoke,
    "counterfactual": images_an_hour("sd-1.4", "counterfactual"),
    "tests": tests,
    "slots": slots,
    "graphs": graphs,
    "dtypes": dtypes,
    "kernels": kernels,
    "disagreement": images_an_hour("sd-1.4", "disagreement"),
    "plain-loop": plain_loop,
    "sdxl-counterfactual": images_an_hour("sdxl", "counterfactual"),
    "neuron": images_an_hour("sd-1.4", "neuron"),
    "neuron-counterfactual": images_an_hour("sd-1.4", "neuron-counterfactual"),
}
