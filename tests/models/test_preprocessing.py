import pytest
import timm
import torch
from photos import as_tensor, photo
from torchvision import transforms

from fastdigin.errors import UserError
from fastdigin.models.preprocessing import Resizing

SHAPES = [(96, 96), (70, 111), (133, 61), (40, 30)]
MODES = {
    "bilinear": transforms.InterpolationMode.BILINEAR,
    "bicubic": transforms.InterpolationMode.BICUBIC,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize(("size", "edge"), [(32, 32), (32, 37), (48, 55)])
def test_shortest_edge_and_centre_crop_are_torchvisions(shape, interpolation, size, edge):
    image = photo(*shape)
    mode = MODES[interpolation]
    steps = [transforms.Resize(edge, mode), transforms.CenterCrop(size), transforms.ToTensor()]
    expected = transforms.Compose(steps)(image)[None]
    actual = Resizing("shortest", edge, interpolation)(as_tensor(image), size)
    assert (actual - expected).abs().max() <= 1.6 / 255  # Pillow rounds twice


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_all_fits_are_timms(shape, crop_mode, crop_pct):
    image, mean = photo(*shape), (0.5, 0.4, 0.3)
    transform = timm.data.create_transform(
        (3, 40, 40), mean=mean, std=(1, 1, 1), interpolation="bicubic", crop_pct=crop_pct,
        crop_mode=crop_mode,
    )  # fmt: skip
    expected = transform(image)[None] + torch.tensor(mean).view(3, 1, 1)
    fit = {"center": "shortest", "squash": "squash", "border": "longest"}[crop_mode]
    fill = tuple(round(255 * value) / 255 for value in mean)
    resizing = Resizing(fit, int(40 / crop_pct), "bicubic", fill)
    actual = resizing(as_tensor(image), 40)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1.6 / 255


@pytest.mark.parametrize("fit", ["shortest", "longest", "squash"])
def test_gradients(fit):
    images = (0.4 + 0.2 * torch.rand(1, 3, 9, 7, dtype=torch.float64)).requires_grad_()
    resizing = Resizing(fit, 6, "bicubic")
    assert torch.autograd.gradcheck(lambda x: resizing(x, 5), images, fast_mode=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fit": "stretch"}, "fit must be one of squash, shortest, longest, square, got 'stretch'"),
        ({"interpolation": "cubic"}, "interpolation must be one of area, .* got 'cubic'"),
        ({"fit": "shortest"}, "'area' goes with fit 'squash'"),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(UserError, match=words):
        Resizing(**settings)
