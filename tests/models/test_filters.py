import numpy as np
import pytest
import torch
from photos import as_tensor, photo
from PIL import Image

from fastdigin.models.filters import INTERPOLATIONS, filter_resize

SHAPES = [((37, 53), (16, 24)), ((20, 31), (47, 40)), ((64, 64), (64, 32)), ((30, 20), (31, 31))]


def whole(shape):
    return (0, 0, *shape)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("before", "after"), SHAPES)
def test_equals_pillow_on_floating_point_images(interpolation, before, after):
    """Pillow rounds no image of mode F. Within 0.4..0.6 nothing overshoots."""
    image = 0.4 + 0.2 * torch.rand(1, 3, *before, generator=torch.Generator().manual_seed(1))
    filter = getattr(Image.Resampling, interpolation.upper())
    expected = [
        np.array(Image.fromarray(channel.numpy()).resize(after[::-1], filter))
        for channel in image[0]
    ]
    actual = filter_resize(image, after, interpolation, whole(after))[0]
    np.testing.assert_allclose(actual, np.stack(expected), atol=3e-7)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_is_within_pillows_rounding_of_8_bit_images(interpolation):
    image = photo(61, 83)
    filter = getattr(Image.Resampling, interpolation.upper())
    expected = as_tensor(image.resize((30, 40), filter))
    actual = filter_resize(as_tensor(image), (40, 30), interpolation, whole((40, 30)))
    assert (actual - expected).abs().max() <= 1.5 / 255


def test_overshoot_is_cut_off():
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    resized = filter_resize(edge, (32, 32), "bicubic", whole((32, 32)))
    assert resized.min() == 0 and resized.max() == 1


def test_window_is_a_crop_of_the_whole():
    image = as_tensor(photo(31, 45))
    full = filter_resize(image, (20, 26), "bicubic", whole((20, 26)))
    part = filter_resize(image, (20, 26), "bicubic", (3, 5, 11, 9))
    torch.testing.assert_close(part, full[..., 3:14, 5:14])


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_gradients(interpolation):
    image = 0.4 + 0.2 * torch.rand(1, 3, 7, 9, dtype=torch.float64)
    image.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: filter_resize(x, (5, 12), interpolation, (1, 2, 3, 8)), image, fast_mode=True
    )


def test_same_size_is_the_image_itself():
    image = as_tensor(photo(16, 16))
    assert torch.equal(filter_resize(image, (16, 16), "bicubic", whole((16, 16))), image)
