"""How good are the explanations? The four tasks on packaged photos, against the planted truth.

    python bench/quality.py --jobs 24 --out quality

runs each task (resumable: the same command continues), prints a table and, last, one line of JSON,
which is also kept in bench/results/quality.json. Every rate comes with its n and Wilson interval.

The embedded defaults were chosen on the first 8 pairs, the first 3 seeds a class and the first 6
neuron counterfactuals, which are among the jobs; "unseen" figures leave those out.

Background L1 is measured between the photo and the counterfactual, outside the union of the
garment's true mask and the automatic mask (inside which the edit was allowed), beside the
autoencoder's own error on the same pixels.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import platform
import sys
from pathlib import Path

import torch

from fastdigin import Classifier, Engine, LatentDiffusion, embedded
from fastdigin.commands import run_parts
from fastdigin.demo import (
    counterfactual_part,
    disagreement_part,
    neuron_counterfactual_part,
    neuron_counterfactual_plans,
    neuron_part,
)
from fastdigin.report.store import read_records
from fastdigin.report.summary import wilson_interval
from fastdigin.tasks.inputs import ImageInput, read_image, read_mask

RESULTS = Path(__file__).parent / "results" / "quality.json"
TUNED_PAIRS, TUNED_SEEDS, TUNED_PLANS = 8, 3, 6


def main() -> None:
    """Runs what is not done yet, then prints and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=24, help="per task and classifier")
    parser.add_argument("--out", type=Path, default=Path("quality"))
    options = parser.parse_args()
    engine = Engine(LatentDiffusion.load("embedded"))
    load = {name: Classifier.load(f"embedded:{name}") for name in embedded.classifier_names()}

    figures: dict[str, dict] = {}
    for name in ("clean", "robust"):
        part = counterfactual_part(engine, load[name], load["judge"], options.jobs, seed=0)
        records = _run(part, options.out / f"counterfactual-{name}")
        out = options.out / f"counterfactual-{name}"
        figures[f"counterfactual, {name}"] = _counterfactual_figures(engine.model, records, out)
        tuned = {f"{p.photo.id}-to-{p.target}" for p in embedded.pairs()[:TUNED_PAIRS]}
        unseen = [r for r in records if r["id"] not in tuned]
        figures[f"counterfactual, {name}, unseen"] = _counterfactual_figures(
            engine.model, unseen, out
        )
    part = disagreement_part(engine, load["robust"], load["spurious"], options.jobs, seed=0)
    out = options.out / "disagreement"
    records = _run(part, out)
    unseen = [r for r in records if int(r["id"].rpartition("-")[2]) >= TUNED_SEEDS]
    for name, rows in (("", records), (", unseen", unseen)):
        figures[f"disagreement, robust f, spurious g{name}"] = _disagreement_figures(
            rows, load["background"], out
        )
    part = neuron_part(engine, load["spurious"], options.jobs, seed=0)
    figures["neurons, spurious"] = _neuron_figures(_run(part, options.out / "neurons"))
    part = neuron_counterfactual_part(
        engine, load["spurious"], load["background"], options.jobs, seed=0
    )
    records = _run(part, options.out / "neuron-counterfactual")
    tuned = {
        f"{item.id}-neuron-{neuron}-{direction}"
        for item, neuron, direction in itertools.islice(neuron_counterfactual_plans(), TUNED_PLANS)
    }
    unseen = [r for r in records if r["id"] not in tuned]
    for name, rows in (("", records), (", unseen", unseen)):
        figures[f"neuron counterfactual, spurious{name}"] = _neuron_counterfactual_figures(rows)
    for task, rows in figures.items():
        print(f"\n{task}")
        for label, value in rows.items():
            print(f"  {label:<44}{_show(value)}")
    conditions = {
        "jobs": options.jobs,
        "slots": engine.slots,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    line = json.dumps({"conditions": conditions, "figures": figures})
    RESULTS.write_text(line + "\n")
    print("\n" + line)


def _run(part, out: Path) -> list[dict]:
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the table and the JSON line
        run_parts([part], out, as_json=False)
    return [r for r in read_records(out) if r["status"] == "done"]


def _counterfactual_figures(model, records, out: Path) -> dict:
    photos = {p.id: p for p in embedded.photos()}
    own, changed = [], []
    for record in records:
        photo = photos[record["id"].rpartition("-to-")[0]]
        size = model.image_size
        original = read_image(ImageInput(photo.id, photo.path), size)
        true_mask = read_mask(ImageInput(photo.id, photo.path, mask=photo.mask_path), size)
        automatic = read_mask(ImageInput(photo.id, photo.path, mask=out / record["mask"]), size)
        outside = 1 - torch.maximum(true_mask, automatic)
        image = read_image(ImageInput(photo.id, out / record["image"]), size)
        with torch.no_grad():
            round_trip = model.decode(model.encode_image(original)[None])[0]
        own.append(_mean_l1(round_trip, original, outside))
        changed.append(_mean_l1(image, original, outside))
    return {
        "flips": _rate(r["flipped"] for r in records),
        "judge agrees": _rate(r["judge_prediction"] == r["target"] for r in records),
        "target confidence before": _mean(r["target_confidence_before"] for r in records),
        "target confidence": _mean(r["target_confidence"] for r in records),
        "background L1": _mean(changed),
        "background L1 of the autoencoder": _mean(own),
    }


def _disagreement_figures(records, backgrounds: Classifier, out: Path) -> dict:
    seen = []
    for record in records:
        images = [
            read_image(ImageInput("x", out / record[k]), 64) for k in ("initial_image", "image")
        ]
        with torch.no_grad():
            seen.append(
                [backgrounds.classes[int(backgrounds.logits(x[None]).argmax())] for x in images]
            )
    planted = [embedded.PLANTED.get(r["class"]) for r in records]
    return {
        "f >= 0.9 and g <= 0.1": _rate(
            r["f_confidence"] >= 0.9 and r["g_confidence"] <= 0.1 for r in records
        ),
        "f - g >= 0.5": _rate(r["f_confidence"] - r["g_confidence"] >= 0.5 for r in records),
        "f before": _mean(r["f_confidence_before"] for r in records),
        "f": _mean(r["f_confidence"] for r in records),
        "g before": _mean(r["g_confidence_before"] for r in records),
        "g": _mean(r["g_confidence"] for r in records),
        "planted background before": _rate(s[0] == p for s, p in zip(seen, planted, strict=True)),
        "planted background after": _rate(s[1] == p for s, p in zip(seen, planted, strict=True)),
    }


def _neuron_figures(records) -> dict:
    return {
        "above the data set's maximum": _rate(
            r["activation"] > r["dataset_max_activation"] for r in records
        ),
        "share of the maximum": _mean(
            r["activation"] / r["dataset_max_activation"]
            for r in records
            if r["dataset_max_activation"] > 0
        ),
    }


def _neuron_counterfactual_figures(records) -> dict:
    background_of = {n: b for b, ns in embedded.planted_neurons().items() for n in ns}
    figures: dict = {
        "activation moves as asked": _rate(
            (r["activation"] > r["activation_before"]) == (r["direction"] == "max") for r in records
        )
    }
    for direction, appears in (("max", True), ("min", False)):
        part = [r for r in records if r["direction"] == direction]
        hits = [(r["background_after"] == background_of[r["neuron"]]) == appears for r in part]
        name = "appears (max)" if appears else "vanishes (min)"
        figures[f"planted background {name}"] = _rate(hits)
        figures[f"activation before ({direction})"] = _mean(r["activation_before"] for r in part)
        figures[f"activation ({direction})"] = _mean(r["activation"] for r in part)
    return figures | {"foreground L1": _mean(r["foreground_l1"] for r in records)}


def _mean_l1(a, b, weight) -> float:
    return float(((a - b).abs().mean(dim=0) * weight).sum() / weight.sum())


def _mean(values) -> float:
    values = list(values)
    return round(sum(values) / max(len(values), 1), 4)


def _rate(hits) -> dict:
    hits = list(hits)
    low, high = wilson_interval(sum(hits), len(hits))
    return {
        "rate": round(sum(hits) / max(len(hits), 1), 4),
        "n": len(hits),
        "interval": [round(low, 4), round(high, 4)],
    }


def _show(value) -> str:
    if isinstance(value, dict):
        low, high = value["interval"]
        return f"{value['rate']:.0%}  (n = {value['n']}, 95% interval {low:.0%} to {high:.0%})"
    return f"{value:.3f}"


if __name__ == "__main__":
    main()
