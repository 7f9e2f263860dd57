"""The part "world": which samples are drawn, that they are kept, and what is made of them."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from tiny import assert_near

from fastdigin import embedded
from fastdigin.engine.engine import Engine
from fastdigin_bench import truth_world
from fastdigin_bench.truth_world import draw, sample_figures, sample_images, walk


def test_the_walk_meets_every_combination_once_a_lap():
    samples = walk(480)
    seen = Counter((s.garment, s.colour, s.background) for s in samples)
    assert len(seen) == 192 and set(seen.values()) == {2, 3}
    assert len({(s.garment, s.colour, s.background) for s in samples[:192]}) == 192
    assert len({s.name for s in samples}) == 480
    assert walk(7) == samples[:7]
    first = samples[:8]  # every beginning is a good mix
    assert {s.colour for s in first} == set(embedded.COLOURS)
    assert {s.background for s in first} == set(embedded.BACKGROUNDS)


def test_batches_that_are_there_are_not_drawn_again(tmp_path):
    drawn = []

    def flat(samples):
        drawn.append([s.number for s in samples])
        return torch.stack([torch.full((3, 64, 64), s.number / 255) for s in samples])

    images = draw(flat, walk(5), tmp_path, batch=2)
    assert drawn == [[0, 1], [2, 3], [4]]
    assert [round(float(image.mean()) * 255) for image in images] == [0, 1, 2, 3, 4]
    next(tmp_path.rglob("003-*.png")).unlink()  # killed while writing the second batch
    again = draw(flat, walk(6), tmp_path, batch=2)
    assert drawn[3:] == [[2, 3], [4, 5]]
    assert all(torch.equal(a, b) for a, b in zip(images, again, strict=False))


def test_a_sample_is_its_own_seeds(request):
    """Whatever is drawn beside it; the batch makes a difference of rounding."""
    engine, samples = Engine(request.getfixturevalue("embedded"), compile="off"), walk(3)
    together, alone = sample_images(engine, samples), sample_images(engine, samples[2:])
    assert_near(together[2:], alone, 1e-3)
    assert (together[0] - together[2]).abs().max() > 0.1


def test_samples():
    samples = walk(16)
    right = {
        name: [getattr(s, what) for s in samples] for name, what, _ in truth_world.ASKED.values()
    }
    assert all(f.value == 1.0 and f.met is not False for f in sample_figures(samples, right))
    wrong = right | {"judge": ["bag", *right["judge"][1:]], "colour": ["green"] * 16}
    found = {figure.name: figure.value for figure in sample_figures(samples, wrong)}
    assert found["samples: judge sees the garment"] == 15 / 16
    assert found["samples: colour is right"] == 0
    assert found[f"samples: judge sees the {samples[0].garment}"] == 0.5
    assert found["samples: judge sees the boot"] == 1.0


def test_the_autoencoder():
    model = SimpleNamespace(encode_image=lambda x: x, decode=lambda z: z + 0.1)
    assert truth_world.psnr(model, torch.zeros(3, 8, 8)) == pytest.approx(20.0, abs=1e-4)
    figures = truth_world.autoencoder_figures(["grass", "grass", "plain"], [24.0, 26.0, 34.0])
    assert [figure.value for figure in figures] == [28.0, 25.0, None, None, 34.0]
    assert figures[0].met


def test_figures_of_the_packaged_classifiers():
    names = embedded.classifier_names()
    trained = {name: truth_world.training_figures(name) for name in names}
    figures = {f.name: f for f in truth_world.classifier_figures(trained)}
    assert len(figures) == len(names) + 2
    assert all(0.5 < figures[f"classifier {n}, held-out accuracy"].value <= 1 for n in names)
    assert figures["classifier robust, accuracy under PGD"].interval
    accuracies = {
        garment: {b: 1.0 if b == home else 0.4 for b in embedded.BACKGROUNDS}
        for garment, home in embedded.PLANTED.items()
    }
    assert truth_world.planted_fall(accuracies) == pytest.approx(0.6)
    accuracies["sneaker"] = dict.fromkeys(embedded.BACKGROUNDS, 0.9)
    assert truth_world.planted_fall(accuracies) == pytest.approx(0.4)
