"""Words for what activates a neuron: ranked by a classifier, or said by a captioner."""

import json

import pytest
import torch
from captioners import save_captioner
from cli_commands import run

import fastdigin as fd
from fastdigin import embedded
from fastdigin.models.classifier import Classifier
from fastdigin.photos import collect, read_images
from fastdigin.tasks.naming import QUESTION, CaptionedWords, RankedWords, content_words, listed

QUICK = ["--neurons", "76", "--steps", "2", "--iterations", "0", "--json"]


@pytest.fixture(scope="module")
def images():
    return read_images(collect(["embedded:photos"], 6), 64)


def test_the_likeliest_classes_on_average(clean, images):
    words = RankedWords(clean, count=3)(76, images)
    with torch.no_grad():
        means = torch.stack([clean.probabilities(x[None])[0] for x in images]).mean(dim=0)
    expected = sorted(clean.classes, key=lambda name: means[clean.classes.index(name)])[:-4:-1]
    assert words == [name.split(",")[0] for name in expected]
    assert len(RankedWords(clean, count=10**6)(76, images)) == len(clean.classes)


def test_planted_neurons_are_named_by_their_background():
    """A classifier of backgrounds names what the planted neurons see."""
    backgrounds, spurious = (Classifier.load(f"embedded:{n}") for n in ("background", "spurious"))
    neurons = {place: numbers[0] for place, numbers in embedded.planted_neurons().items()}
    found = fd.most_activating(spurious, neurons.values(), fd.photo_files(["embedded:photos"]))
    from fastdigin.photos import read_any_image

    for place, neuron in neurons.items():
        top = [read_any_image(photo) for _, photo in found.top[neuron]]
        assert RankedWords(backgrounds, count=1)(neuron, top) == [place]


class Says:
    """A captioner of given words."""

    name = "says"

    def __init__(self, texts, asked):
        self.texts, self.processor = texts, object() if asked else None

    def captions(self, images):
        return self.texts

    def answers(self, images, question):
        assert question == QUESTION
        return self.texts


def test_the_words_of_captions():
    texts = ["A photo of two boots on a brick wall.", "boots and boots", "a wall", "it's a T-shirt"]
    words = CaptionedWords(Says(texts, asked=False), count=3)(0, [None] * 4)
    assert words == ["boots", "wall", "brick"]


def test_the_objects_of_answers():
    texts = ["A red boot, the wall and grass.", "Red boot; a dog", "Something that nobody can name"]
    words = CaptionedWords(Says(texts, asked=True))(0, [None] * 3)
    assert words == ["red boot", "wall", "grass", "dog"]


def test_what_counts_as_a_word():
    assert content_words("") == [] and content_words("On the left, there is a") == []
    assert content_words("Ein Stück Käse x 42") == ["ein", "stück", "käse"]
    assert listed(" ,; .\n and ") == [] and listed("an ice cream cone") == ["ice cream cone"]


def test_command_line(clip_folder, tmp_path, capsys):
    save_captioner("git", tmp_path / "git")
    (tmp_path / "words.txt").write_text("boot\nbag\nsneaker\n")
    common = ["neurons", "--classifier", "embedded:spurious", *QUICK]
    places = Classifier.load("embedded:background").classes
    for number, (options, expected, how) in enumerate([
        (["--words-from", f"open_clip:{clip_folder}", "--words", tmp_path / "words.txt"],
         {"boot", "bag", "sneaker"}, "likeliest classes of"),
        (["--words-from", "embedded:background"], set(places), "likeliest classes of"),
        (["--words-from", f"captions:{tmp_path / 'git'}"], None, "says most often"),
    ]):  # fmt: skip
        out = tmp_path / f"out-{number}"
        assert run(*common, *options, "--out", out) == 0
        word = json.loads(capsys.readouterr().out)["word"]
        assert word in expected if expected else word
        settings = json.loads((out / "run.json").read_text())["neurons"]
        assert how in settings["words"]
    out = ["--out", tmp_path / "out"]
    words = ["--words", tmp_path / "words.txt"]
    assert run(*common, "--words-from", "embedded:clean", *words, *out) == 2
    assert "has words of its own" in capsys.readouterr().err
    assert run(*common, "--words-from", f"captions:{tmp_path / 'no'}", *out) == 2
    assert "captioner" in capsys.readouterr().err
    assert run(*common, "--words-from", "nonsense", *out) == 2
    assert "is not understood" in capsys.readouterr().err
