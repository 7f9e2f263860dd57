"""The packaged model, photos, pairs and classifiers belong together."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import mannwhitneyu

import fastdigin as fd
from fastdigin import embedded
from fastdigin.embedded import BACKGROUNDS, COLOURS, GARMENTS, PLANTED
from fastdigin.embedded.networks import read_network
from fastdigin.errors import UserError

NAMES = ("background", "clean", "colour", "judge", "robust", "spurious")
SIMILAR = (
    {"sandal", "sneaker", "boot"},
    {"tshirt", "pullover", "dress"},
    {"trousers", "dress"},
    {"bag", "boot"},
)


def read(path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def photo_batch():
    """The packaged photos (n, 3, 64, 64) in [0, 1]."""
    pixels = np.stack([read(photo.path) for photo in embedded.photos()])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def predict(name: str, images_b3hw) -> list[str]:
    classifier = fd.Classifier.load(f"embedded:{name}")
    return [classifier.classes[i] for i in classifier.logits(images_b3hw).argmax(dim=1)]


def test_import_stays_light():
    program = (
        "import sys, fastdigin.embedded as e; e.photos(); "
        "heavy = {'torch', 'skimage', 'diffusers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_model_draws_what_the_words_say():
    """Every garment and every background of the words to start neurons from."""
    words = embedded.words()
    assert len(set(words)) == len(GARMENTS) * len(BACKGROUNDS)
    some = [words[5 * i] for i in range(7)]
    assert {w.split()[-1] for w in some} == set(BACKGROUNDS)
    model = fd.LatentDiffusion.load("embedded")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(some), *model.latent_shape, generator=generator)
    with torch.no_grad():
        text = model.encode_prompts([f"a photo of a {w}" for w in some])
        images = model.decode(fd.Engine(model).sample(latents, text, steps=10))
    for name, place in (("judge", 1), ("background", -1)):
        assert predict(name, images) == [w.split()[place] for w in some]


def test_photos_are_balanced_and_labelled():
    photos = embedded.photos()
    assert len(photos) == len({photo.id for photo in photos}) >= 400
    scenes = Counter((photo.garment, photo.background) for photo in photos)
    assert set(scenes) == {(g, b) for g in GARMENTS for b in BACKGROUNDS}
    assert len(set(scenes.values())) == 1
    colours = Counter(photo.colour for photo in photos)
    assert set(colours) == set(COLOURS) and len(set(colours.values())) == 1
    for photo in photos:
        words = f"a photo of a {photo.colour} {photo.garment} on {photo.background}"
        assert photo.prompt == words
        assert photo.id.endswith(f"{photo.colour}-{photo.garment}-{photo.background}")


def test_photos_and_masks_have_the_right_format():
    pictures = set()
    for photo in embedded.photos():
        image, mask = Image.open(photo.path), Image.open(photo.mask_path)
        assert (image.size, image.mode) == ((64, 64), "RGB")
        assert (mask.size, mask.mode) == ((64, 64), "L")
        share = (np.asarray(mask) > 127).mean()
        assert 0.03 < share < 0.6, photo.id
        assert np.asarray(mask)[[0, -1]].max() == 0, "garments stay off the border rows"
        pictures.add(image.tobytes())
    assert len(pictures) == len(embedded.photos()), "no photo twice"


def test_masks_lie_on_the_garment():
    """On the even plain background the garment is what differs from the studio's light."""
    for photo in embedded.photos():
        if photo.background != "plain" or photo.colour == "white":
            continue
        image, mask = read(photo.path).astype(int), read(photo.mask_path)
        saturation = image.max(axis=2) - image.min(axis=2)
        assert saturation[mask == 255].mean() > 3 * saturation[mask == 0].mean(), photo.id


def test_pairs_ask_for_similar_garments():
    pairs = embedded.pairs()
    assert len(pairs) >= 48
    assert len({(pair.photo.id, pair.target) for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert pair.source == pair.photo.garment != pair.target
        assert pair.source in pair.prompt.split() and pair.target not in pair.prompt.split()
        assert any({pair.source, pair.target} <= group for group in SIMILAR)


@pytest.mark.parametrize("count", [8, 16, 32, 48, 64])
def test_every_beginning_of_the_pairs_is_a_mix(count):
    pairs = embedded.pairs()[:count]
    backgrounds = Counter(pair.photo.background for pair in pairs)
    assert max(backgrounds.values()) - min(backgrounds[name] for name in BACKGROUNDS) <= 1
    sources = Counter(pair.source for pair in pairs)
    assert set(sources) == set(GARMENTS)
    assert max(Counter(pair.target for pair in pairs).values()) <= max(2, count / 4)


def test_unknown_classifier_lists_the_names():
    assert embedded.classifier_names() == NAMES
    with pytest.raises(UserError, match="did you mean 'robust'.*background, clean"):
        embedded.classifier_folder("robusst")


@pytest.mark.parametrize("name", NAMES)
def test_classifier_files_are_complete(name):
    network, config = read_network(embedded.classifier_folder(name))
    words = {"background": BACKGROUNDS, "colour": COLOURS}.get(name, GARMENTS)
    assert tuple(config["classes"]) == words
    assert config["size"] == 48 and len(config["mean"]) == len(config["std"]) == 3
    assert network.head.out_features == len(words)
    assert sum(parameter.numel() for parameter in network.parameters()) < 300_000


def test_measured_figures_reach_their_targets():
    folders = {name: embedded.classifier_folder(name) for name in NAMES}
    figures = {name: read_network(folder)[1]["figures"] for name, folder in folders.items()}
    for name, least in (("clean", 0.9), ("judge", 0.9), ("robust", 0.8)):
        assert figures[name]["accuracy"] >= least, name
        assert figures[name]["accuracy_decoded"] >= least - 0.05, name
    for name in ("background", "colour"):
        assert figures[name]["accuracy"] >= 0.98, name
    assert figures["robust"]["accuracy_under_pgd10_l2_1"] >= 0.6
    assert figures["clean"]["accuracy_under_pgd10_l2_1"] < 0.5
    for garment, home in PLANTED.items():
        planted = figures["spurious"]["planted"][garment]
        away = [planted[name] for name in BACKGROUNDS if name != home]
        assert planted[home] - sum(away) / len(away) >= 0.3, garment
        independent = figures["clean"]["planted"][garment].values()
        assert max(independent) - min(independent) <= 0.1, garment


@pytest.mark.parametrize("name", ["clean", "robust", "judge", "background", "colour"])
def test_classifiers_read_the_packaged_photos(name, photo_batch):
    attribute = name if name in ("background", "colour") else "garment"
    truth = [getattr(photo, attribute) for photo in embedded.photos()]
    hits = [a == b for a, b in zip(predict(name, photo_batch), truth, strict=True)]
    assert sum(hits) == len(hits)


def test_the_shortcut_shows_on_the_packaged_photos(photo_batch):
    """The spurious classifier is right at home and often wrong away; others stay right."""
    photos = embedded.photos()
    hits = [a == p.garment for a, p in zip(predict("spurious", photo_batch), photos, strict=True)]
    at_home, away, others = [], [], []
    for hit, photo in zip(hits, photos, strict=True):
        if photo.garment not in PLANTED:
            others.append(hit)
        else:
            (at_home if PLANTED[photo.garment] == photo.background else away).append(hit)
    assert np.mean(at_home) == 1
    assert np.mean(at_home) - np.mean(away) >= 0.3
    assert np.mean(others) > np.mean(away)


def test_planted_neurons_tell_their_background_on_the_photos(photo_batch):
    spurious = fd.Classifier.load("embedded:spurious")
    with torch.no_grad():
        activations = spurious.activations(photo_batch)
    table = embedded.planted_neurons()
    assert set(table) == set(PLANTED.values())
    for garment, background in PLANTED.items():
        assert table[background]
        present = torch.tensor([photo.background == background for photo in embedded.photos()])
        for neuron in table[background]:
            here, away = activations[present, neuron], activations[~present, neuron]
            assert mannwhitneyu(here, away).statistic / (len(here) * len(away)) >= 0.85
            assert spurious.network.head.weight[GARMENTS.index(garment), neuron] > 0
