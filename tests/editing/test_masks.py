"""Foreground masks from planted attention; blending by them: contracts/test_sampler.py."""

import pytest
import torch
from tiny import uniform

from fastdigin.editing.masks import attention_mask, latent_mask, soften, tighten

SIZE = 128


def planted(scale=1.0, offset=0.0):
    """Maps (tokens, 16, 16): token 1 looks at a square of the image, the others elsewhere."""
    maps = 0.05 * uniform(6, 16, 16)
    maps[1, 4:9, 5:12] = 1.0
    maps[2, 12:, :4] = 5.0
    return scale * maps + offset


def foreground_mask(maps, tokens, size):
    """What the tasks make of attention (tasks/sources.py)."""
    return soften(attention_mask(maps, tokens, size))


def square(size, grow=0):
    """The planted square in pixels, larger by ``grow`` on every side."""
    step = size // 16
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[4 * step - grow : 9 * step + grow, 5 * step - grow : 12 * step + grow] = True
    return mask


@pytest.mark.parametrize("size", [64, SIZE, 512])
def test_the_mask_covers_the_object(size):
    mask = foreground_mask(planted(), [1], size)
    assert mask.shape == (size, size) and mask.min() >= 0 and mask.max() <= 1
    assert (mask[square(size)] > 0.5).all()
    assert mask[square(size)].mean() > 0.9
    # Beyond the dilation of 20 px of 512, half an attention cell and the blur there is nothing:
    # nothing of token 2's corner either, unless it is named as well.
    assert mask[~square(size, grow=round(size * 0.16))].max() < 0.2
    corner = foreground_mask(planted(), [1, 2], size)[14 * size // 16 :, : 2 * size // 16]
    assert corner.min() > 0.8


def test_only_the_shape_of_the_attention_counts():
    """Not its range; tokens are averaged, and constant attention gives no NaN."""
    maps = planted()
    for scale, offset in ((1e-6, 0.0), (0.5, 3.0)):
        torch.testing.assert_close(
            foreground_mask(planted(scale, offset), [1], SIZE), foreground_mask(maps, [1], SIZE)
        )
    maps[3] = 2 * maps[1]
    mean = torch.stack([maps[1], maps[3]]).mean(0)[None]
    torch.testing.assert_close(
        foreground_mask(maps, [1, 3], SIZE), foreground_mask(mean, [0], SIZE)
    )
    assert foreground_mask(torch.ones(3, 16, 16), [0], 64).isfinite().all()


def test_a_tight_mask_keeps_to_the_object():
    mask = tighten(torch.tensor([[0.0, 0.5, 0.6], [0.7, 0.9, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(mask, torch.tensor([[0, 0, 0.5], [1, 1, 1]], dtype=torch.float64))


@pytest.mark.parametrize("size", [96, 192])  # 96 is the smallest with an erosion of one pixel
def test_softening_equals_its_definition(size):
    """Minimum, maximum and Gaussian mean over square windows that scale with the image."""
    mask = (uniform(size, size) > 0.6).double()
    scale = size / 512
    erosion, dilation = round(3 * scale), round(20 * scale)
    expected = window(window(mask, erosion, torch.amin), dilation, torch.amax)
    radius = max(int(45 * scale / 2), 1)
    offsets = torch.arange(-radius, radius + 1).double()
    kernel = torch.exp(-(offsets**2) / (2 * (30 * scale) ** 2))
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    padded = torch.nn.functional.pad(expected[None, None], (radius,) * 4, mode="replicate")[0, 0]
    for y, x in ((0, 0), (5, 90), (45, 46), (size - 1, 17)):
        patch = padded[y : y + 2 * radius + 1, x : x + 2 * radius + 1]
        assert float(soften(mask)[y, x]) == pytest.approx(float((patch * kernel).sum()), abs=1e-12)


def window(mask, radius, reduce):
    result = mask.clone()
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            patch = mask[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
            result[y, x] = reduce(patch, dim=(0, 1))
    return result


def test_latent_mask_averages():
    mask = uniform(64, 64)
    small = latent_mask(mask, 8)
    assert small.shape == (8, 8)
    torch.testing.assert_close(small[2, 3], mask[16:24, 24:32].mean())
