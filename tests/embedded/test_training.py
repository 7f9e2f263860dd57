"""The classifiers' training, and the planted shortcut on composites drawn anew."""

import pytest
import torch

from fastdigin.embedded import GARMENTS, PLANTED
from fastdigin.embedded import train_classifiers as training
from fastdigin.embedded.networks import build_network, read_network, write_network
from fastdigin.models.classifier import Classifier

CONFIG = {
    "architecture": "small_cnn",
    "arguments": {"widths": [4, 4, 8, 8]},
    "size": 48,
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
    "classes": ["dark", "light"],
}


def test_attack_stays_in_the_ball_and_in_range():
    torch.manual_seed(0)
    model = training.as_classifier(build_network(CONFIG), CONFIG)
    images, labels = torch.rand(4, 3, 48, 48), torch.tensor([0, 1, 0, 1])
    attacked = training.attack(model, images, labels, steps=3)
    distance = (attacked - images).flatten(1).norm(dim=1)
    assert (distance <= training.RADIUS * 1.0001).all() and (distance > 0.1).all()
    assert attacked.min() >= 0 and attacked.max() <= 1


@pytest.mark.parametrize("attack_steps", [0, 1])
def test_fit_learns_and_repeats_and_is_written(attack_steps, tmp_path):
    labels = torch.arange(256) % 2
    torch.manual_seed(0)
    noise = torch.randint(0, 60, (256, 3, 64, 64))
    images = (noise + 150 * labels[:, None, None, None]).to(torch.uint8)
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        network = build_network(CONFIG)
        training.fit(network, CONFIG, images, labels, 10, 1e-2, "toy", attack_steps)
        write_network(tmp_path / "toy", network, CONFIG)
        again, config = read_network(tmp_path / "toy")
        states.append(again.state_dict())
    assert config == CONFIG
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    predicted = training.predict(training.as_classifier(again, config), images, labels)
    assert (predicted == labels).float().mean() > 0.95


def test_shortcut_on_new_composites(world):
    """On garments drawn anew, a planted garment off its background loses 30 points or more."""
    from fastdigin.embedded.scenes import make_scenes

    test = make_scenes(world, 400, "test", seed=777)
    spurious, clean = (Classifier.load(f"embedded:{name}") for name in ("spurious", "clean"))
    table = training.planted_accuracies(spurious, test, world, 777)
    for garment, home in PLANTED.items():
        away = [value for name, value in table[garment].items() if name != home]
        assert table[garment][home] - sum(away) / len(away) >= 0.3
    hits = training.predict(clean, test.images, test.garments) == test.garments
    assert hits.float().mean() >= 0.9 and len(GARMENTS) == 8


def test_colours_are_read_where_it_is_dark(world):
    """Explanations may be darker than composites; their orange must not be read as yellow."""
    from fastdigin.embedded.scenes import decode_some, make_scenes
    from fastdigin.embedded.worlds import load_autoencoder

    test = decode_some(load_autoencoder(), make_scenes(world, 300, "test", seed=779), 1.0, 0)
    dark = (test.images * 0.5).round().to(torch.uint8)
    reader = Classifier.load("embedded:colour")
    for images in (test.images, dark):
        hits = training.predict(reader, images, test.colours) == test.colours
        assert hits.float().mean() > 0.96


def test_planted_neurons_are_those_of_the_package(world):
    """The two neurons that the package names first for each background are found anew."""
    from fastdigin.embedded import planted_neurons
    from fastdigin.embedded.scenes import make_scenes

    test = make_scenes(world, 800, "test", seed=778)
    table = training.find_planted_neurons(Classifier.load("embedded:spurious"), test)
    for background, rows in table.items():
        assert rows[0]["neuron"] in planted_neurons()[background]
        assert all(0.9 <= row["auc"] <= 1 for row in rows)
