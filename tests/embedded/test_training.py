"""The training's parts, and the planted shortcut on composites drawn anew."""

from __future__ import annotations

import pytest
import torch

from fastdigin.embedded import GARMENTS, PLANTED
from fastdigin.embedded import train_classifiers as training
from fastdigin.embedded.networks import (
    build_network,
    load_network,
    read_network,
    write_network,
)

CONFIG = {
    "architecture": "small_cnn",
    "arguments": {"widths": [4, 4, 8, 8]},
    "size": 48,
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
    "classes": ["dark", "light"],
}


def test_area_under_roc_counts_ties_half():
    scores = torch.tensor([0.0, 0.0, 1.0, 2.0])
    positive = torch.tensor([False, True, False, True])
    assert training.area_under_roc(scores, positive) == pytest.approx(0.625)


def test_attack_stays_in_the_ball_and_in_range():
    torch.manual_seed(0)
    model = training.Normalised(build_network(CONFIG).eval(), CONFIG)
    images, labels = torch.rand(4, 3, 48, 48), torch.tensor([0, 1, 0, 1])
    attacked = training.attack(model, images, labels, steps=3)
    distance = (attacked - images).flatten(1).norm(dim=1)
    assert (distance <= training.RADIUS * 1.0001).all() and (distance > 0.1).all()
    assert attacked.min() >= 0 and attacked.max() <= 1


@pytest.mark.parametrize("attack_steps", [0, 1])
def test_fit_learns_and_repeats(attack_steps):
    labels = torch.arange(256) % 2
    torch.manual_seed(0)
    noise = torch.randint(0, 60, (256, 3, 64, 64))
    images = (noise + 150 * labels[:, None, None, None]).to(torch.uint8)
    networks = []
    for _ in range(2):
        torch.manual_seed(1)
        networks.append(
            training.fit(
                CONFIG, images, labels, epochs=10, rate=1e-2, name="toy", attack_steps=attack_steps
            )
        )
    model = training.Normalised(networks[0], CONFIG)
    assert (training.predict(model, images, labels) == labels).float().mean() > 0.95
    for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_networks_survive_writing_and_reading(tmp_path):
    network = build_network(CONFIG).eval()
    write_network(tmp_path / "toy", network, CONFIG)
    again, config = read_network(tmp_path / "toy")
    assert config == CONFIG
    images = torch.rand(2, 3, 48, 48)
    assert torch.equal(network(images), again(images))


def test_shortcut_on_new_composites(world):
    """On garments drawn anew, a planted garment off its background loses 30 points or more."""
    from fastdigin.embedded.scenes import make_scenes

    test = make_scenes(world, 400, "test", seed=777)
    network, config = load_network("spurious")
    table = training.planted_accuracies(training.Normalised(network, config), test, world, 777)
    for garment, home in PLANTED.items():
        away = [value for name, value in table[garment].items() if name != home]
        assert table[garment][home] - sum(away) / len(away) >= 0.3
    network, config = load_network("clean")
    hits = (
        training.predict(training.Normalised(network, config), test.images, test.garments)
        == test.garments
    )
    assert hits.float().mean() >= 0.9 and len(GARMENTS) == 8
