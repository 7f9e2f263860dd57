import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.preprocessing import Resizing
from fastdigin.models.resampling import resample


class TinyNetwork(nn.Module):
    """Convolution, mean over space, linear: everything the classifier has to find its way in."""

    def __init__(self, classes=3, width=5):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


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
    before = {k: v.clone() for k, v in classifier.network.state_dict().items()}
    classifier.logits(random_images())
    assert not any(p.requires_grad for p in classifier.network.parameters())
    assert all(torch.equal(before[k], v) for k, v in classifier.network.state_dict().items())


def test_results_have_the_dtype_of_the_images():
    classifier = make_classifier().to(dtype=torch.bfloat16)
    assert classifier.dtype == torch.bfloat16
    assert classifier.logits(random_images()).dtype == torch.float32
    assert classifier.activations(random_images()).dtype == torch.float32


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


def test_class_index():
    names = ("robin, American robin, Turdus migratorius", "crane", "crane, lifting crane", "7")
    classifier = make_classifier(names)
    for name in ("robin, American robin, Turdus migratorius", "american_robin", "ROBIN ", 0, "0"):
        assert classifier.class_index(name) == 0
    assert classifier.class_index("lifting crane") == 2
    assert classifier.class_index("7") == 3  # a name goes before an index
    # As data sets name them: of the synonyms this classifier has some.
    assert classifier.class_index("Turdus migratorius, redbreast") == 0
    with pytest.raises(UserError, match="ambiguous"):
        classifier.class_index("robin, lifting crane")
    for index in (torch.tensor(2), np.int64(2)):
        assert classifier.class_index(index) == 2
    for index in (True, 7.9, float("nan"), 5.0, None, [5]):
        with pytest.raises(UserError, match="neither a name nor a whole number"):
            classifier.class_index(index)


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
        with pytest.raises(UserError, match=f"class {index} does not exist: .* classes 0 to 2"):
            classifier.class_index(index)


def test_other_names_for_the_classes():
    classifier = make_classifier()
    assert classifier.class_index("dog") == 1
    other = classifier.with_classes(["Katze", "Hund", "Vogel"])
    assert other.class_index("Hund") == 1 and classifier.classes == ("cat", "dog", "bird")
    with pytest.raises(UserError, match="not a class"):
        other.class_index("dog")
    with pytest.raises(UserError, match="classes has 2 names for classifier, which tells 3 apart"):
        classifier.with_classes(["cat", "dog"])
    names = [str(i) for i in range(8)]
    assert Classifier.load("embedded:clean", classes=names).classes == tuple(names)


def test_prepared_images_are_only_normalised():
    resizing = Resizing("shortest", 12, "bilinear")
    classifier, images = make_classifier(resizing=resizing), random_images()
    prepared = classifier.prepare(images)
    assert prepared.shape == (2, 3, 8, 8)
    for method in (classifier.logits, classifier.activations):
        torch.testing.assert_close(method(prepared, prepared=True), method(images))
        assert not torch.allclose(method(prepared), method(images))  # cropped once more


def test_head_may_be_named():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.ReLU(), nn.Linear(7, 2))
    options = {"size": 8, "mean": (0,) * 3, "std": (1,) * 3, "classes": "ab"}
    assert Classifier(network, **options).num_neurons == 7
    assert Classifier(network, head="1", **options).num_neurons == 192
    with pytest.raises(UserError, match="layer 'head' is not a module"):
        Classifier(network, head="head", **options)


def test_everyday_words_for_classes(caplog):
    """Of the packaged photos, of Fashion-MNIST and of ImageNet, in every direction."""
    imagenet = make_classifier(("jersey, T-shirt, tee shirt", "running shoe", "cowboy boot"))
    assert [imagenet.class_index(word) for word in ("tshirt", "sneaker", "boot")] == [0, 1, 2]
    assert "class 'sneaker' of classifier is taken to be 'running shoe'" in caplog.text
    caplog.clear()
    fashion = make_classifier(("T-shirt/top", "Sneaker", "Ankle boot", "Boot"))
    assert fashion.class_index("running shoe") == 1 and fashion.class_index("tee shirt") == 0
    caplog.clear()
    assert fashion.class_index("boot") == 3 and not caplog.text  # a class of that name goes before
    with pytest.raises(UserError, match="'sandal' is not a class"):
        fashion.class_index("sandal")


@pytest.mark.parametrize("kind", ["timm", "torchvision", "transformers"])
def test_a_module_of_a_known_library_tells_the_rest_by_itself(kind, caplog):
    image = random_images(1, 90)
    if kind == "timm":
        network = timm.create_model("test_vit", pretrained_cfg_overlay={"crop_pct": 0.8})
        classifier, size, fit = (
            Classifier(network),
            160,
            Resizing("shortest", 200, "bicubic", (128 / 255,) * 3),
        )
        assert "guessed to be ImageNet's" in caplog.text
    elif kind == "torchvision":
        network = torchvision.models.resnet18(num_classes=3)
        classifier, size, fit = (
            Classifier(network, classes="abc"),
            224,
            Resizing("shortest", 256, "bilinear"),
        )
        assert classifier._mean_c11.flatten()[0] == 0.485
        other = Classifier(
            torchvision.models.resnet50(),
            processor=torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
        )
        assert other.resizing.edge == 256 and other.class_index("robin") == 15
        assert Classifier(torchvision.models.resnet50()).resizing.edge == 232  # of the newest
    else:
        config = ViTConfig(
            image_size=32, patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
            intermediate_size=8, num_labels=3, problem_type="multi_label_classification",
        )  # fmt: skip
        network = ViTForImageClassification(config)
        with pytest.raises(UserError, match="give it as processor="):
            Classifier(network)
        processor = ViTImageProcessor(size={"height": 32, "width": 32})
        classifier, size = Classifier(network, processor=processor, classes="abc"), 32
        fit = Resizing("squash", 32, "bilinear", odd="floor")
        assert classifier.activation == "sigmoid"
    assert (classifier.size, classifier.resizing) == (size, fit)
    assert classifier.probabilities(image).shape == (1, len(classifier.classes))
    given = Classifier(
        network, size=size, mean=(0.5,) * 3, std=(0.5,) * 3, classes=classifier.classes
    )
    assert given.resizing == Resizing()  # all that it needs was given


def test_a_module_of_nobody_needs_its_preprocessing():
    with pytest.raises(
        UserError, match="TinyNetwork, which does not say how .* give size, mean, std"
    ):
        Classifier(TinyNetwork())
