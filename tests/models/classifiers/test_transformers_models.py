import json

import pytest
import torch
from photos import check_transform
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier

NAMES = {"id2label": {0: "cat", 1: "dog", 2: "bird"}, "label2id": {"cat": 0, "dog": 1, "bird": 2}}


def vit(**options):
    small = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(**small, intermediate_size=32, image_size=32, patch_size=8, **options)
    return ViTForImageClassification(config)


def convnext():
    config = ConvNextConfig(hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1], **NAMES)
    return ConvNextForImageClassification(config)


def resnet():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **NAMES)
    return ResNetForImageClassification(config)


CASES = {
    "vit": (lambda: vit(**NAMES), ViTImageProcessor(size={"height": 32, "width": 32}), 24),
    "vit without normalisation": (
        lambda: vit(**NAMES),
        ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False, resample=3),
        24,
    ),
    "deit crops": (
        lambda: vit(**NAMES),
        DeiTImageProcessor(
            size={"height": 36, "width": 36}, crop_size={"height": 32, "width": 32}, resample=3
        ),
        24,
    ),
    "convnext below 384": (convnext, ConvNextImageProcessor(size={"shortest_edge": 64}), 24),
    "resnet at 384": (resnet, ConvNextImageProcessor(size={"shortest_edge": 384}), 16),
}


def saved(folder, model, processor):
    with torch.no_grad():  # random heads are tiny
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_image_processor(tmp_path, case):
    make, processor, width = CASES[case]
    torch.manual_seed(0)
    model = saved(tmp_path, make(), processor)

    def transform(image):
        scale = {} if not isinstance(image, torch.Tensor) else {"do_rescale": False}
        return processor(images=image, return_tensors="pt", **scale)["pixel_values"][0]

    classifier = Classifier.load(f"hf:{tmp_path}")
    check_transform(classifier, lambda x: model(x).logits, transform, (150, 190))
    assert classifier.classes == ("cat", "dog", "bird")
    assert classifier.num_neurons == width


def test_layers_of_a_transformer(tmp_path):
    saved(tmp_path, vit(**NAMES), CASES["vit"][1])
    classifier = Classifier.load(f"hf:{tmp_path}")
    images = torch.rand(2, 3, 32, 32)
    # The head reads the class token after the last norm, whose mean over tokens is another thing.
    norm = classifier.at_layer("vit.layernorm").activations(images)
    assert norm.shape == (2, 24) and not norm.allclose(classifier.activations(images))
    assert classifier.at_layer("vit").activations(images).allclose(norm)  # an output object


def test_names_the_model_does_not_have(tmp_path):
    saved(tmp_path, vit(num_labels=3), CASES["vit"][1])
    assert Classifier.load(f"hf:{tmp_path}").classes == ("0", "1", "2")


def test_processor_that_does_something_else(tmp_path):
    saved(tmp_path, vit(**NAMES), CASES["vit"][1])
    path = tmp_path / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    for change, words in (
        ({"size": {"longest_edge": 32, "shortest_edge": 32}}, "not understood here"),
        ({"rescale_factor": 1 / 127.5}, "not understood here"),
        ({"size": {"height": 32, "width": 48}}, "only square ones"),
    ):
        path.write_text(json.dumps(settings | change))
        with pytest.raises(UserError, match=words):
            Classifier.load(f"hf:{tmp_path}")
