"""Trains the embedded classifiers (the stage ``classifiers`` of ``fastdigin.embedded.train``).

clean       garments, small CNN, backgrounds independent of garments
robust      the clean one continued with adversarial training (PGD, Madry et al. 2018), L2 radius 1
spurious    garments, small CNN, with the shortcut of ``PLANTED`` in its training scenes
judge       garments, ConvMixer: an independent opinion
background  the background's name
colour      the garment's colour

Every figure is measured on held-out composites (test garments, test texture area) and written to
the classifier's ``config.json``.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.stats import mannwhitneyu
from torch import Tensor, nn
from tqdm import tqdm

from fastdigin.embedded import BACKGROUNDS, COLOURS, GARMENTS, PLANTED
from fastdigin.embedded.data import World
from fastdigin.embedded.networks import build_network, read_network, write_network
from fastdigin.embedded.scenes import (
    SPURIOUS,
    Scenes,
    decode_some,
    make_scenes,
    with_feature,
)
from fastdigin.models.classifier import Classifier
from fastdigin.models.resampling import resample

SIZE = 48
RADIUS = 1.0
"""L2 radius of the attacks, on 48x48 images in [0, 1]."""
TEST_SCENES = 4_000
BATCH = 128

_CNN = {"architecture": "small_cnn", "arguments": {"widths": [32, 64, 96, 128]}}
_NARROW_CNN = {"architecture": "small_cnn", "arguments": {"widths": [16, 32, 48, 64]}}
_MIXER = {
    "architecture": "conv_mixer",
    "arguments": {"width": 96, "depth": 5, "patch": 4, "kernel": 5},
}


@dataclass(frozen=True)
class Recipe:
    """How one classifier is trained; ``labels`` is the field of Scenes that it predicts."""

    network: dict
    scenes: int
    epochs: int
    rate: float = 3e-3
    labels: str = "garments"
    planted: bool = False
    start: str | None = None
    attack_steps: int = 0
    decoded: float = 0.25  # share of training images that went through the autoencoder
    darkest: float = 0.85  # what training images are multiplied with, at least


RECIPES = {
    "clean": Recipe(_CNN, scenes=24_000, epochs=10),
    # Fewer scenes, so that the few exceptions to the shortcut do not teach it the shape.
    "spurious": Recipe(_CNN, scenes=12_000, epochs=10, planted=True),
    "background": Recipe(_NARROW_CNN, scenes=12_000, epochs=2, labels="backgrounds"),
    # Explanations are decoded, and may be darker than any composite, where orange is near yellow.
    "colour": Recipe(
        _NARROW_CNN, scenes=12_000, epochs=4, labels="colours", decoded=0.5, darkest=0.45
    ),
    "judge": Recipe(_MIXER, scenes=24_000, epochs=8),
    "robust": Recipe(_CNN, scenes=24_000, epochs=5, rate=2e-3, start="clean", attack_steps=3),
}
_WORDS = {"garments": GARMENTS, "backgrounds": BACKGROUNDS, "colours": COLOURS}


def train_classifiers(
    world: World, autoencoder, out: Path, seed: int, names: Collection[str]
) -> dict:
    """Trains those called ``names`` into ``out``, measures everything, returns the figures.

    A share of the training images goes through ``autoencoder`` (diffusers' AutoencoderKL).
    """
    recipes = {name: recipe for name, recipe in RECIPES.items() if name in names}
    test = make_scenes(world, TEST_SCENES, "test", seed + 100)
    decoded_test = decode_some(autoencoder, test, 1.0, seed)
    pools = {}
    for planted, decoded in {(r.planted, r.decoded) for r in recipes.values()}:
        alike = [r for r in RECIPES.values() if (r.planted, r.decoded) == (planted, decoded)]
        shortcuts = SPURIOUS if planted else ()
        count = max(r.scenes for r in alike)
        pool = make_scenes(world, count, "train", seed + planted, shortcuts)
        pools[planted, decoded] = decode_some(autoencoder, pool, decoded, seed)
    figures = {}
    for name, recipe in recipes.items():
        torch.manual_seed(seed)
        network, config = _train_one(name, recipe, out, pools[recipe.planted, recipe.decoded])
        classifier = as_classifier(network, config)
        figures[name] = _measure(name, classifier, test, decoded_test, world, seed)
        write_network(out / name, network, config | {"figures": figures[name]})
        print(f"{name}: {json.dumps(figures[name])}", flush=True)
        if name == "spurious":
            table = find_planted_neurons(classifier, test)
            (out / name / "planted_neurons.json").write_text(json.dumps(table, indent=1) + "\n")
    return figures


def as_classifier(network: nn.Module, config: dict) -> Classifier:
    """The network behind its preprocessing; freezes it."""
    return Classifier(network, **{key: config[key] for key in ("size", "mean", "std", "classes")})


def _train_one(name: str, recipe: Recipe, out: Path, pool: Scenes) -> tuple[nn.Module, dict]:
    images = pool.images[: recipe.scenes]
    if recipe.start:
        network, config = read_network(out / recipe.start)
    else:
        sample = resample(pool.images[:4000].float() / 255, SIZE)
        config = recipe.network | {
            "size": SIZE,
            "mean": [round(v, 4) for v in sample.mean(dim=(0, 2, 3)).tolist()],
            "std": [round(v, 4) for v in sample.std(dim=(0, 2, 3)).tolist()],
            "classes": list(_WORDS[recipe.labels]),
        }
        network = build_network(config)
    labels = getattr(pool, recipe.labels)[: recipe.scenes]
    fit(
        network, config, images, labels, recipe.epochs, recipe.rate, name, recipe.attack_steps,
        recipe.darkest,
    )  # fmt: skip
    return network, config


def fit(
    network: nn.Module,
    config: dict,
    images_n3hw: Tensor,
    labels_n: Tensor,
    epochs: int,
    rate: float,
    name: str,
    attack_steps: int = 0,
    darkest: float = Recipe.darkest,
) -> None:
    """AdamW with a one-cycle schedule on augmented images; adversarial when ``attack_steps`` > 0.

    ``images_n3hw`` are uint8. Draws from torch's global generator: seed it first.
    """
    classifier = as_classifier(network.to(memory_format=torch.channels_last), config)
    network.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.02)
    total = epochs * (len(labels_n) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=total)
    bar = tqdm(total=total, desc=f"training {name}")
    for _ in range(epochs):
        for rows in torch.randperm(len(labels_n)).split(BATCH):
            if len(rows) < BATCH:
                continue
            images, labels = augment(images_n3hw[rows].float() / 255, darkest), labels_n[rows]
            if attack_steps:
                # Attacking in eval mode keeps the attack out of the batch-norm statistics.
                network.eval()
                images = attack(classifier, images, labels, steps=attack_steps)
                network.train()
            loss = F.cross_entropy(classifier.logits(images, prepared=True), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    bar.close()
    network.eval().requires_grad_(False)


def augment(images_b3hw: Tensor, darkest: float = Recipe.darkest) -> Tensor:
    """A square crop of 50 to 64 pixels shrunk to 48, brightness of up to 115%, mild noise.

    The crop is one for the whole batch (cheap); the explanations' losses look at such crops too.
    """
    side, top, left = torch.rand(3).tolist()
    side = 50 + 14 * side
    box = (top * (64 - side), left * (64 - side), side, side)
    images = resample(images_b3hw, SIZE, box=box)
    count = len(images)
    gain = darkest + (1.15 - darkest) * torch.rand(count, 1, 1, 1)
    noise = 0.03 * torch.rand(count, 1, 1, 1) * torch.randn_like(images)
    return (images * gain + noise).clamp(0, 1)


def attack(model: Classifier, images_b3hw: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Projected gradient ascent on the cross-entropy within the L2 ball of RADIUS (Madry 2018)."""

    def norm(x: Tensor) -> Tensor:
        return x.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)

    step = 2.5 * RADIUS / steps
    delta = torch.randn_like(images_b3hw)
    delta = delta / norm(delta) * RADIUS * torch.rand(len(delta), 1, 1, 1)
    for _ in range(steps):
        delta.requires_grad_(True)
        logits = model.logits(images_b3hw + delta, prepared=True)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = delta.detach() + step * gradient / norm(gradient)
        delta = delta * (RADIUS / norm(delta)).clamp(max=1)
        delta = (images_b3hw + delta).clamp(0, 1) - images_b3hw
    return (images_b3hw + delta).detach()


def predict(model: Classifier, images_n3hw: Tensor, labels_n: Tensor, attack_steps: int = 0):
    """Predicted class indices (n,) of uint8 images, under attack when ``attack_steps`` > 0."""
    found = []
    for images, labels in zip(images_n3hw.split(500), labels_n.split(500), strict=True):
        images = model.prepare(images.float() / 255)
        if attack_steps:
            images = attack(model, images, labels, steps=attack_steps)
        with torch.inference_mode():
            found.append(model.logits(images, prepared=True).argmax(dim=1))
    return torch.cat(found)


def _measure(name, model, test: Scenes, decoded: Scenes, world: World, seed: int) -> dict:
    labels = getattr(test, RECIPES[name].labels)
    hits = predict(model, test.images, labels) == labels
    decoded_hits = predict(model, decoded.images, labels) == labels
    figures = {
        "accuracy": _rate(hits),
        "accuracy_decoded": _rate(decoded_hits),
        "accuracy_by_class": {
            word: _rate(hits[labels == i]) for i, word in enumerate(model.classes)
        },
        "held_out_composites": len(labels),
    }
    if name in ("clean", "robust"):
        torch.manual_seed(seed)
        attacked = predict(model, test.images[:1000], labels[:1000], attack_steps=10)
        figures["accuracy_under_pgd10_l2_1"] = _rate(attacked == labels[:1000])
    if name in ("clean", "spurious"):
        figures["planted"] = planted_accuracies(model, test, world, seed + 100)
    return figures


def planted_accuracies(model: Classifier, test: Scenes, world: World, seed: int) -> dict:
    """Per planted garment: the accuracy on each background, the garments' pixels being the same.

    ``seed`` is the one that made ``test``.
    """
    table = {garment: {} for garment in PLANTED}
    for background in BACKGROUNDS:
        scenes = with_feature(world, test, "background", background, "test", seed)
        hits = predict(model, scenes.images, scenes.garments) == scenes.garments
        for garment in PLANTED:
            table[garment][background] = _rate(hits[test.garments == GARMENTS.index(garment)])
    return table


@torch.no_grad()
def find_planted_neurons(model: Classifier, test: Scenes, limit: int = 4) -> dict:
    """Per planted background, up to ``limit`` penultimate neurons with an AUC of at least 0.9.

    Only neurons with a positive head weight towards the planted garment count. Each row has the
    neuron, its area under the ROC curve, its correlation with the background's presence and that
    weight.
    """
    batches = test.images.split(500)
    features = torch.cat([model.activations(images.float() / 255) for images in batches])
    table = {}
    for garment, background in PLANTED.items():
        present = test.backgrounds == BACKGROUNDS.index(background)
        weights = model.network.head.weight[GARMENTS.index(garment)]
        rows = []
        for neuron in range(features.shape[1]):
            here, away = features[present, neuron], features[~present, neuron]
            # The share of pairs that a neuron puts in order is its area under the curve.
            auc = mannwhitneyu(here, away).statistic / (len(here) * len(away))
            if weights[neuron] > 0 and auc >= 0.9:
                pair = torch.stack([features[:, neuron], present.float()])
                row = {"neuron": neuron, "auc": round(float(auc), 4)}
                row |= {"correlation": round(torch.corrcoef(pair)[0, 1].item(), 4)}
                rows.append(row | {"head_weight": round(weights[neuron].item(), 4)})
        rows.sort(key=lambda row: -row["auc"] * row["correlation"])
        table[background] = rows[:limit]
    return table


def _rate(hits: Tensor) -> float:
    return round(hits.float().mean().item(), 4)
