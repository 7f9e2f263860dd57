"""The profile's arguments, its table, and its line of JSON."""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from collections import Counter
from typing import Any

from fastdigin.commands.options import add_settings, chosen_settings
from fastdigin.engine.memory import show_bytes
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.models.precision import DTYPES
from fastdigin.presets import algorithm_names, load_algorithm, load_preset
from fastdigin_bench.command import PROFILED_MENDS
from fastdigin_bench.output import rows_table, say
from fastdigin_bench.profile.gpus import GPUS, Rates
from fastdigin_bench.profile.ledger import Counts
from fastdigin_bench.profile.networks import PUBLISHED, build
from fastdigin_bench.profile.stages import STAGES, Driven, drive
from fastdigin_bench.profile.workload import task_class


def run(options: Namespace) -> int:
    """``fastdigin bench profile``."""
    found = profile(options)
    if options.contributions:
        found["contributions"] = contributions(options, found["images_per_hour"])
    print(_table(found))
    print(json.dumps(found), flush=True)
    return 0


def profile(options: Namespace) -> dict[str, Any]:
    """What the line of JSON says."""
    gpu = GPUS[options.gpu]
    dtype = DTYPES["fp32" if "precision" in options.without else options.dtype]
    model, classifier = build(options.model, dtype)
    settings = _settings(options, model)

    slots = options.slots
    if slots is None and options.model in PUBLISHED:
        slots = PUBLISHED[options.model].slots
    driven = drive(
        options.task, model, classifier, settings, gpu, without=options.without, slots=slots
    )
    return {
        "estimate": True, "gpu": options.gpu, "model": options.model, "task": options.task,
        "dtype": str(dtype).removeprefix("torch."), "without": list(options.without),
        "baseline": set(options.without) == set(PROFILED_MENDS),
        **figures(driven, gpu.rates, settings.optimisation.steps),
    }  # fmt: skip


def contributions(options: Namespace, images_per_hour: float) -> list[dict[str, Any]]:
    """What is left without each mend by itself, and without all. images_per_hour: with all."""
    rows = []
    for names in [*([name] for name in PROFILED_MENDS), list(PROFILED_MENDS)]:
        say(f"without {', '.join(names)}")
        found = profile(Namespace(**vars(options) | {"without": names}))
        row = {key: found[key] for key in ("without", *_COMPARED.values())}
        rows.append(row | {"factor": round(images_per_hour / found["images_per_hour"], 3)})
    return rows


_COMPARED = {
    "images an hour": "images_per_hour", "kept steps": "kept_steps", "peak bytes": "peak_bytes",
    "layout copies a step": "layout_copies_per_step", "waits": "waits_per_iteration",
    "plain passes": "classifier_plain_passes_per_image", "decodes": "decodes_per_iteration",
    "host launches": "host_launches_per_iteration", "kernels": "kernels_per_iteration",
}  # fmt: skip


def figures(driven: Driven, rates: Rates, steps: int) -> dict[str, Any]:
    """Of a run, at some rates. steps: T."""
    stages = {name: _of_stage(driven, name, rates) for name in STAGES}
    seconds = sum(stage["seconds"] for stage in stages.values())
    updates = max(driven.iterations, 1)
    parts = {part: c for (stage, part), c in driven.totals.items() if stage == "iterations"}
    unet, decoder, judge = (parts.get(n, Counts()) for n in ("unet", "decoder", "classifier"))
    decodes = sum(decoder.calls[kind] for kind in (("decoder", "plain"), ("decoder", "recorded")))
    return {
        "images_per_hour": round(3600 * driven.slots / seconds, 1),
        "slots": driven.slots,
        "kept_steps": driven.plan.kept_steps,
        "width": driven.plan.width,
        "peak_bytes": driven.peak,
        "held_bytes": driven.held,
        "planned_bytes": driven.plan.predicted,
        "rates": rates.described(),
        "stages": stages,
        "layout_copies_per_step": round(unet.layout_copies / (updates * steps), 2),
        "waits_per_iteration": sum(c.waits for c in parts.values()) / updates,
        "classifier_plain_passes_per_image": (
            judge.rows["classifier", "plain"] / (updates * driven.slots * driven.classifiers)
        ),
        "decodes_per_iteration": decodes / updates,
        "graphs_seconds": _of_stage(driven, "graphs", rates)["seconds"],
        "host_launches_per_iteration": stages["iterations"]["host_launches"] / updates,
        "kernels_per_iteration": stages["iterations"]["kernels"] / updates,
    }


def _of_stage(driven: Driven, name: str, rates: Rates) -> dict[str, Any]:
    parts = {part: counts for (stage, part), counts in driven.totals.items() if stage == name}
    total = Counts()
    for counts in parts.values():
        total.add(counts)
    kinds: Counter[str] = Counter()
    for (kind, _), flops in total.flops.items():
        kinds[kind] += flops
    return {
        "seconds": _rounded(total.seconds(rates)),
        "TFLOP": round(total.tflop, 2),
        "bytes": total.bytes,
        "kernels": total.kernels,
        "host_launches": total.launches,
        "layout_copies": total.layout_copies,
        "waits": total.waits,
        "TFLOP_by_kind": {kind: round(flops / 1e12, 2) for kind, flops in sorted(kinds.items())},
        "seconds_by_part": {
            part: _rounded(counts.seconds(rates)) for part, counts in sorted(parts.items())
        },
    }


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.5g}")


def _settings(options: Namespace, model: LatentDiffusion) -> Any:
    """The task's default settings, with what the preset sets of them."""
    defaults = task_class(options.task).default_settings(model)
    if options.preset is None:
        return defaults
    if options.preset in algorithm_names():
        return load_algorithm(options.preset).of(defaults, task_class(options.task).name)
    parser = argparse.ArgumentParser()
    add_settings(parser, type(defaults))
    chosen, _ = parser.parse_known_args(load_preset(options.preset).arguments())
    return chosen_settings(chosen, defaults)


def _table(found: dict[str, Any]) -> str:
    seconds = sum(stage["seconds"] for stage in found["stages"].values())
    columns = {
        "stage": "name", "seconds": "seconds", "share": "share", "TFLOP": "TFLOP", "GB": "gb",
        "kernels": "kernels", "host launches": "host_launches", "layout copies": "layout_copies",
        "waits": "waits", "seconds by part": "by_part",
    }  # fmt: skip
    rows = [
        {
            "name": name, **stage, "share": f"{stage['seconds'] / seconds:.0%}",
            "gb": f"{stage['bytes'] / 1e9:.0f}",
            "by_part": ", ".join(f"{p} {s:.1f}" for p, s in stage["seconds_by_part"].items()),
        }
        for name, stage in found["stages"].items()
    ]  # fmt: skip
    lines = [
        f"ESTIMATE, nothing was run on a GPU: {found['task']} with {found['model']} in "
        f"{found['dtype']} on {found['gpu']}, {found['slots']} slots, {found['kept_steps']} kept "
        f"steps, {found['width']} images decoded at a time"
        + (f", without {', '.join(found['without'])}" if found["without"] else ""),
        "",
        rows_table(rows, columns),
        "",
        f"{found['images_per_hour']:.0f} images an hour; peak {show_bytes(found['peak_bytes'])}, "
        f"where {show_bytes(found['held_bytes'])} of weights and earlier graphs and "
        f"{show_bytes(found['planned_bytes'])} for the jobs were expected.",
        f"A step there and back: {found['layout_copies_per_step']} layout copies. An iteration: "
        f"{found['waits_per_iteration']:g} waits, {found['decodes_per_iteration']:g} decodes, "
        f"{found['host_launches_per_iteration']:.0f} launches by the host of "
        f"{found['kernels_per_iteration']:.0f} kernels; "
        f"{found['classifier_plain_passes_per_image']:g} plain classifier passes an image.",
        "Seconds are FLOPs / rate of every product + bytes / bandwidth of every other operation, "
        "without overlap; launches cost no time. Null-text optimisation makes all its updates. "
        f"Recording the graphs, once a run, is not counted: {found['graphs_seconds']:.1f} s.",
    ]
    if "contributions" in found:
        titles = {"without": lambda row: ", ".join(row["without"]), "factor": "factor"}
        cells = {title: lambda row, key=key: f"{row[key]:g}" for title, key in _COMPARED.items()}
        lines += ["", rows_table(found["contributions"], titles | cells)]
    return "\n".join(lines)
