import json

import pytest
import torch
from loaders import save_vit

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier

WORDS = ("cat", "dog", "bird")
NAMES = {"id2label": dict(enumerate(WORDS)), "label2id": {w: n for n, w in enumerate(WORDS)}}


def test_layers_of_a_transformer(tmp_path):
    classifier = Classifier.load(save_vit(tmp_path))
    images = torch.rand(2, 3, 32, 32)
    # The head reads the class token after the last norm, whose mean over tokens is another thing.
    norm = classifier.at_layer("vit.layernorm").activations(images)
    assert norm.shape == (2, 8) and not norm.allclose(classifier.activations(images))
    assert classifier.at_layer("vit").activations(images).allclose(norm)  # an output object


def test_names_the_model_does_not_have(tmp_path, caplog):
    spec = save_vit(tmp_path, num_labels=3)
    assert Classifier.load(spec).classes == ("0", "1", "2")
    assert (
        "comes without names for its 3 classes" in caplog.text and "'a photo of a 0'" in caplog.text
    )
    caplog.clear()
    assert Classifier.load(spec, classes=WORDS).class_index("dog") == 1
    assert not caplog.text


def test_a_regression_tells_no_classes_apart(tmp_path):
    with pytest.raises(UserError, match="trained for a regression"):
        Classifier.load(save_vit(tmp_path, **NAMES, problem_type="regression"))


def test_processor_that_does_something_else(tmp_path):
    spec = save_vit(tmp_path, **NAMES)
    path = tmp_path / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    for change, words in (
        ({"size": {"longest_edge": 32, "shortest_edge": 32}}, "only square ones"),
        ({"resample": 4}, "not understood here"),
        ({"size": {"height": 32, "width": 48}}, "only square ones"),
    ):
        path.write_text(json.dumps(settings | change))
        with pytest.raises(UserError, match=words):
            Classifier.load(spec)
