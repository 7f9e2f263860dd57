import pytest
import torch
from torch.nn import functional as F

from fastdigin.models.resampling import resample, resample_crops


def random_images(*shape, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def brute_force(image_hw, size, top, left, side):
    """Area average by counting on a 40 times finer grid; exact where crops lie on that grid."""
    fine = image_hw.repeat_interleave(40, 0).repeat_interleave(40, 1)
    top, left, side = (round(40 * x) for x in (top, left, side))
    return F.adaptive_avg_pool2d(fine[None, None, top : top + side, left : left + side], size)[0, 0]


@pytest.mark.parametrize("ratio", [1, 2, 3, 4])
def test_whole_ratios_equal_adaptive_avg_pool(ratio):
    images = random_images(2, 3, 8 * ratio, 8 * ratio)
    torch.testing.assert_close(resample(images, 8), F.adaptive_avg_pool2d(images, 8))


def test_crop_at_whole_ratio_equals_pooled_crop():
    images = random_images(2, 3, 31, 29)
    expected = F.adaptive_avg_pool2d(images[:, :, 5:23, 7:25], 6)
    torch.testing.assert_close(resample(images, 6, top=5, left=7, side=18), expected)


@pytest.mark.parametrize(
    ("size", "top", "left", "side"),
    [(5, 0.0, 0.0, 13.0), (4, 1.5, 0.25, 10.75), (7, 3.1, 2.7, 9.1), (8, 0.0, 5.0, 8.0)],
)
def test_shrinking_is_the_exact_area_average(size, top, left, side):
    image = random_images(13, 13)
    # side * 40 must be a multiple of size for the brute force to be exact
    side = round(side * 40 / size) * size / 40
    actual = resample(image[None, None], size, top=top, left=left, side=side)[0, 0]
    torch.testing.assert_close(actual, brute_force(image, size, top, left, side))


@pytest.mark.parametrize("size", [7, 10, 21])
def test_enlarging_is_bilinear(size):
    images = random_images(2, 3, 7, 7)
    expected = F.interpolate(images, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resample(images, size), expected)


def test_rectangles_and_rectangular_sizes():
    images = random_images(1, 1, 12, 20)
    torch.testing.assert_close(resample(images, (6, 5)), F.adaptive_avg_pool2d(images, (6, 5)))
    assert resample(images, 4).shape == (1, 1, 4, 4)


@pytest.mark.parametrize("side", [3.3, 6.0, 9.7])
def test_a_constant_image_stays_constant_up_to_its_border(side):
    output = resample(torch.full((1, 3, 10, 10), 0.7).double(), 6, top=10 - side, side=side)
    torch.testing.assert_close(output, torch.full((1, 3, 6, 6), 0.7).double())


def test_continuous_where_shrinking_turns_into_enlarging():
    images = random_images(1, 3, 12, 12)
    below, above = (resample(images, 6, top=2.3, side=6 + e) for e in (-1e-9, 1e-9))
    torch.testing.assert_close(below, above, rtol=0, atol=1e-8)


def test_crops_equal_single_crops():
    image = random_images(3, 15, 17)
    tops = torch.tensor([0.0, 2.25, 7.0]).double()
    lefts = torch.tensor([0.0, 3.5, 9.0]).double()
    sides = torch.tensor([15.0, 11.3, 4.0]).double()
    crops = resample_crops(image, tops, lefts, sides, 6)
    for crop, top, left, side in zip(crops, tops, lefts, sides, strict=True):
        single = resample(image[None], 6, top=float(top), left=float(left), side=float(side))
        torch.testing.assert_close(crop, single[0])


def test_gradients():
    image = random_images(2, 7, 7).requires_grad_()
    tops, sides = torch.tensor([0.0, 1.7]).double(), torch.tensor([7.0, 4.2]).double()
    assert torch.autograd.gradcheck(lambda x: resample_crops(x, tops, tops, sides, 5), image)
    assert torch.autograd.gradcheck(lambda x: resample(x[None], 3), image)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_keeps_the_dtype_and_repeats_exactly(dtype):
    images = random_images(2, 3, 20, 20, dtype=torch.float64).to(dtype)
    first, second = resample(images, 7), resample(images, 7)
    assert first.dtype == dtype
    assert torch.equal(first, second)
    exact = resample(images.double(), 7)
    torch.testing.assert_close(first.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)
