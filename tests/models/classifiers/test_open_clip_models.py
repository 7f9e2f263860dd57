import json

import open_clip
import pytest
import torch
from clip_model import save_model, tiny_config
from photos import as_tensor, check_transform, photo

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier

CLASSES = ("cat", "tench, Tinca tinca", "fire_truck")
WORDS = ("cat", "tench", "fire truck")
TEMPLATES = ("a photo of a {}.", "a drawing of the {}.")


def own_zero_shot(model, tokenizer, templates):
    """open_clip's own recipe; its templates are functions."""
    functions = [t.format for t in templates]
    return open_clip.build_zero_shot_classifier(model, tokenizer, WORDS, functions)


@pytest.mark.parametrize("templates", [None, TEMPLATES])
def test_agrees_with_open_clips_own_zero_shot_classifier(tmp_path, templates):
    """With a bias: test_parity.py."""
    save_model(tmp_path)
    classifier = Classifier.load(f"open_clip:{tmp_path}", classes=CLASSES, templates=templates)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    with torch.no_grad():
        text_fk = own_zero_shot(model, tokenizer, templates or ["a photo of a {}."])
    assert not text_fk[:, 0].allclose(text_fk[:, 1])

    def own_logits(pixels):
        return model.logit_scale.exp() * model.encode_image(pixels, normalize=True) @ text_fk

    check_transform(classifier, own_logits, transform, (60, 81))
    assert classifier.classes == CLASSES
    assert classifier.num_neurons == 24
    assert classifier.at_layer("visual.transformer.resblocks.1").num_neurons == 64


@pytest.mark.parametrize("mode", ["squash", "longest"])
def test_preprocessing_is_the_models_own(tmp_path, mode):
    own = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": mode}
    save_model(tmp_path, own)
    classifier = Classifier.load(f"open_clip:{tmp_path}", classes=CLASSES)
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    pixels = transform(photo(60, 81))[None] * 0.25 + 0.5
    assert (classifier.prepare(as_tensor(photo(60, 81))) - pixels).abs().max() <= 1.6 / 255


@pytest.mark.parametrize("quick", [False, True])
def test_built_in_architecture_with_a_file_of_weights(tmp_path, caplog, quick):
    """What a configuration beside the file says counts; without one that is said."""
    config = tmp_path / "Tiny-Test.json"
    config.write_text(json.dumps(tiny_config()))
    open_clip.add_model_config(config)
    own = {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"}
    save_model(tmp_path, own, quick_gelu=quick)
    weights = tmp_path / "open_clip_model.safetensors"
    classifier = Classifier.load(f"open_clip:Tiny-Test/{weights}", classes=CLASSES)
    other = Classifier.load(f"open_clip:{tmp_path}", classes=CLASSES)
    image = as_tensor(photo(40, 50))
    torch.testing.assert_close(classifier.logits(image), other.logits(image))
    assert not caplog.text
    (tmp_path / "open_clip_config.json").unlink()
    assumed = Classifier.load(f"open_clip:Tiny-Test/{weights}", classes=CLASSES)
    assert not assumed.logits(image).allclose(other.logits(image))
    assert "nothing says how its images are prepared" in caplog.text and "-quickgelu" in caplog.text
    with pytest.raises(UserError, match="'openai' is neither a file nor weights of Tiny-Test"):
        Classifier.load("open_clip:Tiny-Test/openai", classes=CLASSES)


@pytest.mark.parametrize("quick", [False, True])
def test_weights_by_their_tag_get_their_activation(tmp_path, monkeypatch, quick):
    """open_clip itself only warns: ViT-B-16/openai would run with another activation."""
    config = tmp_path / "Tiny-Tagged.json"
    config.write_text(json.dumps(tiny_config()))
    open_clip.add_model_config(config)
    save_model(tmp_path, quick_gelu=quick)
    tags = {"ours": {"url": "https://nowhere", "quick_gelu": quick}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-Tagged", tags)
    weights = str(tmp_path / "open_clip_model.safetensors")
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *a, **k: weights)
    tagged = Classifier.load("open_clip:Tiny-Tagged/ours", classes=CLASSES)
    own = Classifier.load(f"open_clip:{tmp_path}", classes=CLASSES)
    image = as_tensor(photo(40, 50))
    torch.testing.assert_close(tagged.logits(image), own.logits(image))


def test_text_weights_of_another_activation_are_not_taken(tmp_path):
    """It has no weights: two networks of the same weights encode texts differently."""
    heads = []
    for quick in (False, True):
        folder = tmp_path / str(quick)
        folder.mkdir()
        save_model(folder, quick_gelu=quick)
        heads.append(Classifier.load(f"open_clip:{folder}", classes=CLASSES).network.head.weight)
    assert not torch.equal(*heads)


def test_text_weights_are_kept(clip_folder, monkeypatch):
    first = Classifier.load(f"open_clip:{clip_folder}", classes=CLASSES)
    monkeypatch.setattr(
        open_clip.CLIP, "encode_text", lambda *a, **k: pytest.fail("text was encoded again")
    )
    again = Classifier.load(f"open_clip:{clip_folder}", classes=CLASSES)
    assert torch.equal(first.network.head.weight, again.network.head.weight)
    for other in ({"classes": ("cat", "dog")}, {"classes": CLASSES, "templates": TEMPLATES}):
        with pytest.raises(pytest.fail.Exception, match="encoded again"):
            Classifier.load(f"open_clip:{clip_folder}", **other)


def test_imagenet_by_default(clip_folder):
    classifier = Classifier.load(f"open_clip:{clip_folder}")
    assert len(classifier.classes) == 1000 and classifier.class_index("American robin") == 15


def test_other_templates_make_another_name(clip_folder):
    names = {
        Classifier.load(f"open_clip:{clip_folder}", classes=CLASSES, templates=t).name
        for t in (None, TEMPLATES, TEMPLATES[:1])
    }
    assert len(names) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": ["cat"]}, "at least two classes"),
        ({"classes": CLASSES, "templates": ["cat"]}, "must contain {}"),
        ({"classes": CLASSES, "templates": []}, "must contain {}"),
    ],
)
def test_classes_and_templates_that_say_nothing(clip_folder, options, words):
    with pytest.raises(UserError, match=words):
        Classifier.load(f"open_clip:{clip_folder}", **options)
