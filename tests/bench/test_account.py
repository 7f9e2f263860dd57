"""The account against counts by hand, and against the figures that design.md names."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny import SMALL_ARCHITECTURE
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from fastdigin.engine.architectures import SD_1_4
from fastdigin.engine.footprint import Pass, footprint
from fastdigin.models.frozen import freeze_aware
from fastdigin_bench.account import account, measure


@pytest.fixture(scope="module")
def row():
    return account(SMALL_ARCHITECTURE, 32, steps=3, dtype=torch.float32)


def small_unet():
    unet = UNet2DConditionModel(**SMALL_ARCHITECTURE.unet).eval().requires_grad_(False)
    z = torch.randn(2, 4, 16, 16, requires_grad=True)
    text = torch.randn(2, 5, 12, requires_grad=True)
    return Pass(unet, (z, text), lambda z, text: unet(z, torch.zeros(2), text).sample)


def test_fake_tensors_count_as_real_ones_do(row):
    unet = small_unet()
    freeze_aware(unet.network)
    real = measure(unet)
    for counted, expected in (("flops_forward", real.forward), ("flops_backward", real.backward)):
        # Some filters of one pixel are products: by the layout, which torch's fake results of
        # convolutions with weights that do not lie channels last tell otherwise.
        assert sum(row[counted].values()) == sum(expected.values())
        assert row[counted]["attention"] == expected["attention"]
    assert row["saved_bytes_per_step"] == real.saved
    assert row["step_peak_bytes"] == pytest.approx(real.peak, rel=0.01)


def test_bytes_of_a_row(row):
    """Of memory a row says what the engine's own count says."""
    alone = footprint(SMALL_ARCHITECTURE, 32, steps=3, dtype=torch.float32)
    assert row["weights_bytes"] == alone.weights and row["state_bytes_per_slot"] == alone.state
    assert row["step_peak_bytes"] == alone.step and row["decoder_peak_bytes"] == alone.decoder
    assert row["step_peak_bytes"] > row["saved_bytes_per_step"]
    assert row["slots_in"] == {gb: alone.slots_in(int(gb) * 10**9) for gb in row["slots_in"]}
    twice = account(SMALL_ARCHITECTURE, 32, steps=6, dtype=torch.float32)
    assert twice["marginal_bytes_per_slot"] < 1.2 * row["marginal_bytes_per_slot"]
    assert twice["plain_bytes_per_slot"] > 1.5 * row["plain_bytes_per_slot"]


def test_operations_and_bytes_by_hand():
    """conv (saves its input, pytorch#133566) -> SiLU (saves its input) -> linear -> attention."""
    conv, linear = nn.Conv2d(2, 8, 3, padding=1), nn.Linear(8, 8, bias=False)
    network = nn.Sequential(conv, linear).requires_grad_(False)
    x = torch.randn(1, 2, 4, 4, requires_grad=True)

    def call(x):
        tokens = torch.nn.functional.silu(conv(x)).flatten(2).transpose(1, 2)[:, None]
        # One tensor serves as Q, K and V at once.
        tokens = linear(tokens).contiguous()  # or attention falls back to one that writes its map
        return scaled_dot_product_attention(tokens, tokens, tokens)

    figures = measure(Pass(network, (x,), call))
    image, tokens = 4 * 2 * 16, 4 * 8 * 16
    assert figures.saved == image + tokens + tokens + tokens + 4 * 16
    each_way = {"convolution": 2 * (8 * 16) * (2 * 9), "linear": 2 * (8 * 16) * 8}
    assert figures.forward == {**each_way, "attention": 4 * 16 * 16 * 8}
    assert figures.backward == {**each_way, "attention": 10 * 16 * 16 * 8}
    assert figures.weights == 4 * (8 * 2 * 9 + 8 + 8 * 8)


@pytest.mark.slow
def test_stable_diffusion_as_in_the_design():
    """1.35 TFLOP of convolutions and linear layers each way; 1.55 GB saved a step, 0.98 frozen."""
    row = account(SD_1_4, 512)
    for flops in (row["flops_forward"], row["flops_backward"]):
        assert flops["convolution"] + flops["linear"] == pytest.approx(1.35e12, rel=0.005)
    assert row["plain_saved_bytes_per_step"] == pytest.approx(1.55e9, rel=0.005)
    assert row["saved_bytes_per_step"] == pytest.approx(0.98e9, rel=0.005)
    assert row["marginal_bytes_per_slot"] < 1.5e9
    assert row["plain_bytes_per_slot"] == pytest.approx(12.7e9, rel=0.01)
