"""Fig. 4 of DiG-IN: a neuron raised, the photo, the neuron lowered; the feature attack beside it.

    fastdigin neuron-counterfactual IMAGES --classifier C --neuron N --direction both --out DIR
    python -m fastdigin_bench.figure4 DIR --classifier C

reads what the first command made, attacks the same photos and neurons, and writes
DIR/figure4.png, a row a photo and neuron. Last, it prints a line of JSON with the activations.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fastdigin.errors import UserError, exits_with_code
from fastdigin.models.classifier import Classifier
from fastdigin.results import NeuronCounterfactualRecord, read_records
from fastdigin.results.pictures import png
from fastdigin.storage import write_atomically
from fastdigin_bench.methods.feature_attack import FeatureAttack
from fastdigin_bench.pictures import contact_sheet

COLUMNS = ("max", "photo", "min", "attack, max", "attack, min")
WORLD = 64
"""Pixels a side of the images that the attack's radius was chosen for: it grows with the side."""


def run(folder: Path, classifier: Classifier) -> list[dict]:
    """Draws the figure; (id of the record, neuron, the activations of COLUMNS) of each row.

    Raises UserError where no photo of the folder has both directions.
    """
    found = rows(read_records(folder))
    if not found:
        raise UserError(
            f"'{folder}' holds no photo whose neuron was raised and lowered: run fastdigin "
            "neuron-counterfactual with --direction both"
        )
    shown, told = [], []
    for high, low in found:
        photo = high.input_image
        made = [attacked(classifier, photo, high.neuron, sign) for sign in (1.0, -1.0)]
        images = [high.image, photo, low.image, *made]
        with torch.no_grad():
            active = classifier.activations(torch.stack(images).to(classifier.device))
        values = active[:, high.neuron].tolist()
        activations = dict(zip(COLUMNS, (round(value, 4) for value in values), strict=True))
        told.append({"id": high.id, "neuron": high.neuron, "activations": activations})
        shown.append(images)
    captions = [f"neuron {high.neuron}" for high, _ in found]
    write_atomically(folder / "figure4.png", png(contact_sheet(shown, captions, COLUMNS)))
    return told


def rows(records: Sequence) -> list[tuple[NeuronCounterfactualRecord, NeuronCounterfactualRecord]]:
    """(raised, lowered) of each photo and neuron that has both."""
    pairs: dict[tuple, dict[str, NeuronCounterfactualRecord]] = {}
    for one in records:
        if isinstance(one, NeuronCounterfactualRecord) and one.status == "done":
            pairs.setdefault((one.input, one.neuron), {})[one.direction] = one
    return [(own["max"], own["min"]) for own in pairs.values() if len(own) == 2]


def attacked(classifier: Classifier, photo_3hw: Tensor, neuron: int, sign: float) -> Tensor:
    """The photo after a feature attack that raises the neuron (sign 1) or lowers it (-1)."""
    attack = FeatureAttack()
    attack = replace(attack, epsilon=attack.epsilon * photo_3hw.shape[-1] / WORLD)
    photos, neurons = photo_3hw[None].to(classifier.device), torch.tensor([neuron])
    return attack.of(classifier, photos, neurons, torch.tensor([sign]))[0].cpu()


@exits_with_code
def main(arguments: list[str] | None = None) -> int | None:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the --out of the first command")
    parser.add_argument("--classifier", required=True, metavar="C", help="as in the first command")
    options = parser.parse_args(arguments)
    print(json.dumps(run(options.folder, Classifier.load(options.classifier))))


if __name__ == "__main__":
    sys.exit(main())
