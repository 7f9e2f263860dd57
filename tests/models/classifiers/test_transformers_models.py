import json

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier

WORDS = ("cat", "dog", "bird")
NAMES = {"id2label": {0: "cat", 1: "dog", 2: "bird"}, "label2id": {"cat": 0, "dog": 1, "bird": 2}}


def vit(**options):
    small = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(**small, intermediate_size=32, image_size=32, patch_size=8, **options)
    return ViTForImageClassification(config)


PROCESSOR = ViTImageProcessor(size={"height": 32, "width": 32})


def saved(folder, model, processor):
    with torch.no_grad():  # random heads are tiny
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def test_layers_of_a_transformer(tmp_path):
    saved(tmp_path, vit(**NAMES), PROCESSOR)
    classifier = Classifier.load(f"hf:{tmp_path}")
    images = torch.rand(2, 3, 32, 32)
    # The head reads the class token after the last norm, whose mean over tokens is another thing.
    norm = classifier.at_layer("vit.layernorm").activations(images)
    assert norm.shape == (2, 24) and not norm.allclose(classifier.activations(images))
    assert classifier.at_layer("vit").activations(images).allclose(norm)  # an output object


def test_names_the_model_does_not_have(tmp_path, caplog):
    saved(tmp_path, vit(num_labels=3), PROCESSOR)
    assert Classifier.load(f"hf:{tmp_path}").classes == ("0", "1", "2")
    assert (
        "comes without names for its 3 classes" in caplog.text and "'a photo of a 0'" in caplog.text
    )
    caplog.clear()
    assert Classifier.load(f"hf:{tmp_path}", classes=WORDS).class_index("dog") == 1
    assert not caplog.text


def test_a_regression_tells_no_classes_apart(tmp_path):
    saved(tmp_path, vit(**NAMES, problem_type="regression"), PROCESSOR)
    with pytest.raises(UserError, match="trained for a regression"):
        Classifier.load(f"hf:{tmp_path}")


def test_processor_that_does_something_else(tmp_path):
    saved(tmp_path, vit(**NAMES), PROCESSOR)
    path = tmp_path / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    for change, words in (
        ({"size": {"longest_edge": 32, "shortest_edge": 32}}, "only square ones"),
        ({"resample": 4}, "not understood here"),
        ({"size": {"height": 32, "width": 48}}, "only square ones"),
    ):
        path.write_text(json.dumps(settings | change))
        with pytest.raises(UserError, match=words):
            Classifier.load(f"hf:{tmp_path}")
