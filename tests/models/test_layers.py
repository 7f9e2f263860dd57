import pytest
import timm
import torch
import torchvision

from fastdigin.models.classifier import Classifier

UNIT = {"mean": (0,) * 3, "std": (1,) * 3}


def classifier_of(network, size=32):
    torch.manual_seed(0)
    return Classifier(network, size=size, classes=[str(i) for i in range(10)], **UNIT)


def timm_model(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10, **options)


def capture(network, layer, images):
    found = []
    hook = network.get_submodule(layer).register_forward_hook(lambda m, i, o: found.append(o))
    network(images)
    hook.remove()
    return found[0]


@pytest.mark.parametrize(
    ("name", "layer", "dims"),
    [
        ("test_resnet", "layer3", (2, 3)),
        ("test_convnext", "stages.1", (2, 3)),
        ("test_convnext", "stages.1.blocks.0.mlp.fc1", None),
        ("test_vit", "blocks.1", (1,)),
        ("test_vit", "norm", (1,)),
    ],
)
def test_layers_of_timm(name, layer, dims):
    network, images = timm_model(name), torch.rand(2, 3, 160, 160)
    output = capture(network.eval(), layer, images)
    if dims is None:  # a linear layer in a convolutional network, or a 1x1 convolution
        channels = network.get_submodule(layer).out_features
        dims = tuple(d for d in (1, 2, 3) if output.shape[d] != channels)
    actual = classifier_of(network, 160).at_layer(layer).activations(images, prepared=True)
    torch.testing.assert_close(actual, output.mean(dim=dims))


@pytest.mark.parametrize("layer", ["layers.1", "layers.1.blocks.0", "norm", "patch_embed.proj"])
def test_swin_keeps_channels_last(layer):
    network = timm_model(
        "swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(1, 2, 1, 1),
        num_heads=(1, 1, 2, 2), window_size=7,
    )  # fmt: skip
    images = torch.rand(1, 3, 56, 56)
    output = capture(network.eval(), layer, images)
    dims = (2, 3) if layer == "patch_embed.proj" else (1, 2)
    actual = classifier_of(network, 56).at_layer(layer).activations(images, prepared=True)
    torch.testing.assert_close(actual, output.mean(dim=dims))


def test_torchvisions_swin():
    torch.manual_seed(0)
    network = torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [1, 2], [7, 7], num_classes=10)
    images = torch.rand(1, 3, 56, 56)
    for layer, dims in (("features.1", (1, 2)), ("features.0.0", (2, 3)), ("avgpool", (2, 3))):
        output = capture(network.eval(), layer, images)
        actual = classifier_of(network, 56).at_layer(layer).activations(images, prepared=True)
        torch.testing.assert_close(actual, output.mean(dim=dims))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_layer_before_the_head_is_timms_pre_logits(name):
    network, images = timm_model(name).eval(), torch.rand(2, 3, 160, 160)
    expected = network.forward_head(network.forward_features(images), pre_logits=True)
    actual = classifier_of(network, 160).activations(images, prepared=True)
    torch.testing.assert_close(actual, expected)
