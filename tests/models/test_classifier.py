import json

import pytest
import timm
import torch
from torch import nn

from fastdigin.embedded import model_folder
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.resampling import resample


class TinyNetwork(nn.Module):
    """Convolution, mean over space, linear: everything the classifier has to find its way in."""

    def __init__(self, classes=3, width=5):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.tokens = nn.Identity()
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.features(x)
        x = self.tokens(x.flatten(2).transpose(1, 2))
        return self.head(x.mean(1))


def make_classifier(classes=("cat", "dog", "bird"), **options):
    torch.manual_seed(0)
    options = {"size": 8, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), **options}
    return Classifier(TinyNetwork(len(classes)), classes=classes, **options)


def random_images(batch=2, side=16, dtype=torch.float32):
    return torch.rand(batch, 3, side, side, dtype=dtype)


def test_resamples_and_normalises():
    classifier, images = make_classifier(), random_images()
    mean = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    std = torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    expected = classifier.network((resample(images, 8) - mean) / std)
    torch.testing.assert_close(classifier.logits(images), expected)
    torch.testing.assert_close(classifier.probabilities(images), expected.softmax(1))


def test_is_frozen_and_in_evaluation_mode():
    classifier = make_classifier()
    assert not classifier.network.training
    assert not any(p.requires_grad for p in classifier.network.parameters())
    images = random_images().requires_grad_()
    before = {k: v.clone() for k, v in classifier.network.state_dict().items()}
    classifier.logits(images).sum().backward()
    assert images.grad.abs().sum() > 0
    after = classifier.network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_gradients():
    classifier = make_classifier(size=5).to(dtype=torch.float64)
    images = random_images(1, 7, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(classifier.logits, images, fast_mode=True)
    assert torch.autograd.gradcheck(classifier.activations, images, fast_mode=True)


def test_results_have_the_dtype_of_the_images():
    classifier = make_classifier().to(dtype=torch.bfloat16)
    assert classifier.dtype == torch.bfloat16
    assert classifier.logits(random_images()).dtype == torch.float32
    assert classifier.activations(random_images()).dtype == torch.float32


def test_neurons_are_the_input_of_the_last_linear_layer():
    classifier, images = make_classifier(), random_images()
    activations = classifier.activations(images)
    head = classifier.network.head
    assert activations.shape == (2, 5) and classifier.num_neurons == 5
    torch.testing.assert_close(head(activations), classifier.logits(images))


@pytest.mark.parametrize("layer", ["features", "features.2", "tokens"])
def test_space_and_tokens_are_averaged(layer):
    """All three layers hold the same values here, as (B,C,H,W) or as (B,L,C)."""
    images = random_images()
    expected = make_classifier().activations(images)
    classifier = make_classifier(layer=layer)
    torch.testing.assert_close(classifier.activations(images), expected)
    assert classifier.num_neurons == 5


def test_no_hook_stays_behind_even_after_an_error(monkeypatch):
    classifier = make_classifier()
    classifier.activations(random_images())
    with monkeypatch.context() as patch:
        patch.setattr(classifier.network.head, "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            classifier.activations(random_images())
    modules = list(classifier.network.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_unknown_layer_names_similar_ones():
    with pytest.raises(UserError, match=r"'feature\.2'.*features\.2"):
        make_classifier(layer="feature.2")


def test_layer_without_features_is_refused():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, 1, 3, 64)), nn.Flatten())
    network.append(nn.Linear(192, 2))
    options = {"size": 8, "mean": (0,) * 3, "std": (1,) * 3, "classes": "ab"}
    with pytest.raises(UserError, match="layer 1 of classifier.*choose another layer"):
        Classifier(network, layer="1", **options).activations(random_images())
    with pytest.raises(UserError, match="no nn.Linear"):
        Classifier(nn.Conv2d(3, 2, 8), **options).activations(random_images())


def test_neuron_out_of_range_names_the_range():
    classifier = make_classifier()
    assert classifier.check_neuron(4) == 4 and classifier.check_neuron("4") == 4
    for neuron in (5, -1, "x"):
        with pytest.raises(UserError, match=f"neuron {neuron} .*0 to 4"):
            classifier.check_neuron(neuron)


def test_number_of_names_must_be_the_number_of_logits():
    classifier = Classifier(
        TinyNetwork(3), size=8, mean=(0,) * 3, std=(1,) * 3, classes=("cat", "dog")
    )
    with pytest.raises(UserError, match="2 names"):
        classifier.logits(random_images())


def test_class_index():
    names = ("robin, American robin, Turdus migratorius", "crane", "crane, lifting crane", "7")
    classifier = make_classifier(names)
    for name in ("robin, American robin, Turdus migratorius", "american_robin", "ROBIN ", 0, "0"):
        assert classifier.class_index(name) == 0
    assert classifier.class_index("lifting crane") == 2
    assert classifier.class_index("7") == 3  # a name goes before an index
    assert classifier.class_index(torch.tensor(2)) == 2


def test_ambiguous_class_lists_the_indices():
    classifier = make_classifier(("crane", "dog", "crane, lifting crane"))
    with pytest.raises(UserError, match=r"ambiguous.*0 \(crane\); 2 \(crane, lifting crane\)"):
        classifier.class_index("crane")


def test_unknown_class_suggests_and_lists():
    classifier = make_classifier(("sneaker", "boot", "bag"), name="embedded:clean")
    message = "class 'sneker' is not a class of embedded:clean; did you mean 'sneaker'?"
    with pytest.raises(UserError) as error:
        classifier.class_index("sneker")
    assert str(error.value) == message + " Its classes: sneaker, boot, bag."
    for index in (3, "3", -1):
        with pytest.raises(UserError, match="classes 0 to 2|not a class"):
            classifier.class_index(index)


@pytest.mark.parametrize("spec", ["resnet18", "torchvision:resnet18", "timm:", ""])
def test_spec_of_an_unknown_kind(spec):
    with pytest.raises(UserError, match="embedded:NAME, timm:NAME or clip:"):
        Classifier.load(spec)


def test_embedded(monkeypatch):
    import fastdigin.embedded.networks as networks

    network = TinyNetwork()
    config = {"size": 8, "mean": [0.5] * 3, "std": [0.5] * 3, "classes": ["a", "b", "c"]}
    monkeypatch.setattr(networks, "load_network", lambda name: (network, config | {"figures": {}}))
    classifier = Classifier.load("embedded:any")
    assert classifier.name == "embedded:any" and classifier.classes == ("a", "b", "c")
    assert classifier.network is network and classifier.size == 8


def test_classes_are_for_zero_shot_only():
    with pytest.raises(UserError, match="leave them out"):
        Classifier.load("embedded:clean", classes=["a"])


def test_timm_from_a_folder(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    classifier = Classifier.load(f"timm:local-dir:{tmp_path}")
    assert len(classifier.classes) == 1000
    assert classifier.classes[15] == "robin, American robin, Turdus migratorius"
    assert classifier.class_index("American robin") == 15
    assert classifier.class_index("15") == 15
    with pytest.raises(UserError, match=r"134 \(crane\); 517 \(crane\)"):
        classifier.class_index("crane")
    data = timm.data.resolve_model_data_config(model)
    assert classifier.size == data["input_size"][-1]
    images = torch.rand(2, 3, classifier.size, classifier.size)
    mean, std = (torch.tensor(data[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(classifier.logits(images), model((images - mean) / std))
        assert classifier.activations(images).shape == (2, model.num_features)


def test_timm_names_that_came_with_the_weights(tmp_path):
    model = timm.create_model("test_resnet", pretrained=False, num_classes=2)
    labels = {"label_names": ["n1", "n2"], "label_descriptions": {"n1": "cat", "n2": "dog"}}
    timm.models.save_for_hf(model, tmp_path, model_config=labels, safe_serialization=True)
    assert Classifier.load(f"timm:local-dir:{tmp_path}").classes == ("cat", "dog")


def test_unknown_timm_name_suggests():
    with pytest.raises(UserError, match="'timm:resnet18x' is not a model of timm.*resnet18"):
        Classifier.load("timm:resnet18x")


def test_timm_weights_that_cannot_be_had(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise OSError("Cannot find the file in the cache. Check your connection.")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match="timm:resnet18' could not be loaded .Cannot find the file"):
        Classifier.load("timm:resnet18")
    monkeypatch.undo()
    with pytest.raises(UserError, match="could not be loaded"):
        Classifier.load(f"timm:local-dir:{tmp_path / 'nowhere'}")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random CLIP model of the smallest size, with the embedded model's tokenizer."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(model_folder() / "tokenizer")
    tokenizer.save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    small["num_attention_heads"] = 2
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {**small, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    CLIPModel(config).eval().save_pretrained(folder)
    return folder


def test_zero_shot_agrees_with_the_whole_clip_model(clip_folder):
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    classes = ("cat", "dog", "boat")
    classifier = Classifier.load(f"clip:{clip_folder}", classes=classes)
    assert classifier.classes == classes and classifier.size == 16
    images = random_images(2, 16)
    cat, dog, _ = classifier.logits(images).unbind(1)
    assert not torch.allclose(cat, dog)  # the words reach the text encoder
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    model = CLIPModel.from_pretrained(clip_folder)
    prompts = [f"a photo of a {name}" for name in classes]
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(pixel_values=(images - mean) / std, **tokens).logits_per_image
        torch.testing.assert_close(classifier.logits(images), expected)
    assert expected.std() > 1e-3  # the prompts are told apart
    assert classifier.num_neurons == 12
    images.requires_grad_()
    classifier.logits(images)[:, 0].sum().backward()
    assert images.grad.abs().sum() > 0


def test_zero_shot_takes_the_saved_normalisation(clip_folder, tmp_path):
    from transformers import CLIPModel, CLIPTokenizer

    CLIPModel.from_pretrained(clip_folder).save_pretrained(tmp_path)
    CLIPTokenizer.from_pretrained(clip_folder).save_pretrained(tmp_path)
    saved = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
    images = random_images(1, 16)
    expected = Classifier.load(f"clip:{clip_folder}", classes=["cat", "dog"])
    actual = Classifier.load(f"clip:{tmp_path}", classes=["cat", "dog"])
    mean, std = (torch.tensor(saved[k]).view(3, 1, 1) for k in ("image_mean", "image_std"))
    torch.testing.assert_close(
        actual.logits(images), expected.network((images - mean) / std), rtol=1e-5, atol=1e-5
    )


def test_zero_shot_errors(clip_folder, tmp_path):
    with pytest.raises(UserError, match="needs classes"):
        Classifier.load(f"clip:{clip_folder}")
    with pytest.raises(UserError, match="could not be loaded"):
        Classifier.load(f"clip:{tmp_path}", classes=["cat"])
