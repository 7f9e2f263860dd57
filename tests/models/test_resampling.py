import numpy as np
import pytest
import torch
from photos import as_tensor, photo
from PIL import Image
from torch.nn import functional as F

from fastdigin.models.resampling import INTERPOLATIONS, resample, resample_crops

FILTERS = ("bilinear", "bicubic", "lanczos")
SHAPES = [((37, 53), (16, 24)), ((20, 31), (47, 40)), ((64, 64), (64, 32)), ((30, 20), (31, 31))]


def random_images(*shape, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def brute_force(image_hw, size, top, left, side):
    """Area average by counting on a 40 times finer grid; exact where crops lie on that grid."""
    fine = image_hw.repeat_interleave(40, 0).repeat_interleave(40, 1)
    top, left, side = (round(40 * x) for x in (top, left, side))
    return F.adaptive_avg_pool2d(fine[None, None, top : top + side, left : left + side], size)[0, 0]


@pytest.mark.parametrize(
    ("size", "top", "left", "side"),
    [(5, 0.0, 0.0, 13.0), (4, 1.5, 0.25, 10.75), (7, 3.1, 2.7, 9.1), (8, 0.0, 5.0, 8.0)],
)
def test_shrinking_is_the_exact_area_average(size, top, left, side):
    image = random_images(13, 13)
    # side * 40 must be a multiple of size for the brute force to be exact
    side = round(side * 40 / size) * size / 40
    actual = resample(image[None, None], size, box=(top, left, side, side))[0, 0]
    torch.testing.assert_close(actual, brute_force(image, size, top, left, side))


@pytest.mark.parametrize("size", [8, 10, 21])
def test_enlarging_is_bilinear(size):
    images = random_images(2, 3, 7, 7)
    expected = F.interpolate(images, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resample(images, size), expected)


def test_rectangles_and_rectangular_sizes():
    images = random_images(1, 1, 12, 20)
    torch.testing.assert_close(resample(images, (6, 5)), F.adaptive_avg_pool2d(images, (6, 5)))
    assert resample(images, 4).shape == (1, 1, 4, 4)


def test_crops_equal_single_crops():
    image = random_images(3, 15, 17)
    tops = torch.tensor([0.0, 2.25, 7.0]).double()
    lefts = torch.tensor([0.0, 3.5, 9.0]).double()
    sides = torch.tensor([15.0, 11.3, 4.0]).double()
    crops = resample_crops(image, tops, lefts, sides, 6)
    for crop, top, left, side in zip(crops, tops, lefts, sides, strict=True):
        single = resample(image[None], 6, box=(float(top), float(left), float(side), float(side)))
        torch.testing.assert_close(crop, single[0])


def test_gradients():
    image = random_images(2, 7, 7).requires_grad_()
    tops, sides = torch.tensor([0.0, 1.7]).double(), torch.tensor([7.0, 4.2]).double()
    assert torch.autograd.gradcheck(lambda x: resample_crops(x, tops, tops, sides, 5), image)
    for interpolation in INTERPOLATIONS:
        assert torch.autograd.gradcheck(
            lambda x, kind=interpolation: resample(x[None], 3, kind, (1, 0.5, 5, 6)), image
        )


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_keeps_the_dtype_and_repeats_exactly(dtype, interpolation):
    images = random_images(2, 3, 20, 20, dtype=torch.float64).to(dtype)
    first, second = (resample(images, 7, interpolation) for _ in range(2))
    assert first.dtype == dtype
    assert torch.equal(first, second)
    exact = resample(images.double(), 7, interpolation)
    torch.testing.assert_close(first.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("before", "after"), SHAPES)
def test_equals_pillow_on_floating_point_images(interpolation, before, after):
    """Pillow rounds no image of mode F. Within 0.4..0.6 nothing overshoots."""
    image = 0.4 + 0.2 * torch.rand(1, 3, *before, generator=torch.Generator().manual_seed(1))
    filter = getattr(Image.Resampling, interpolation.upper())
    expected = [
        np.array(Image.fromarray(channel.numpy()).resize(after[::-1], filter))
        for channel in image[0]
    ]
    actual = resample(image, after, interpolation)[0]
    np.testing.assert_allclose(actual, np.stack(expected), atol=3e-7)


def test_overshoot_is_cut_off():
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    resized = resample(edge, 32, "bicubic")
    assert resized.min() == 0 and resized.max() == 1


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_box_is_a_crop_of_the_whole(interpolation):
    image = as_tensor(photo(30, 45))
    full = resample(image, (20, 30), interpolation)
    part = resample(image, (11, 9), interpolation, (4.5, 7.5, 16.5, 13.5))
    torch.testing.assert_close(part, full[..., 3:14, 5:14])


@pytest.mark.parametrize("interpolation", ["area", "bilinear", "bicubic"])
def test_same_size_is_the_image_itself(interpolation):
    image = as_tensor(photo(16, 16))
    assert torch.equal(resample(image, 16, interpolation), image)
