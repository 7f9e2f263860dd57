"""What a model takes before it is loaded, against counts by hand and the published sizes."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tiny import SMALL_ARCHITECTURE

from fastdigin.engine.architectures import ARCHITECTURES
from fastdigin.engine.footprint import Footprint, footprint


def parameters(kind, config) -> int:
    return sum(p.numel() for p in kind(**config).parameters())


@pytest.mark.parametrize("steps", [3, 6])
def test_weights_and_state_by_hand(steps):
    found = footprint(SMALL_ARCHITECTURE, 32, steps=steps, dtype=torch.float32)
    unet = parameters(UNet2DConditionModel, SMALL_ARCHITECTURE.unet)
    vae = parameters(AutoencoderKL, SMALL_ARCHITECTURE.vae)
    assert found.weights == 4 * (unet + vae + 1000)
    latent, texts = 4 * 16 * 16, 2 * 5 * 12 * steps
    assert found.state == 4 * (steps * latent + 8 * (latent + texts))
    assert found.slot == found.step + found.state


def test_a_decoder_that_needs_fp32():
    exact = footprint(SMALL_ARCHITECTURE, 32, dtype=torch.float32)
    half, mixed = (footprint(replace(SMALL_ARCHITECTURE, upcast=x), 32) for x in (False, True))
    assert mixed.decoder == exact.decoder > half.decoder
    assert mixed.weights - half.weights == 2 * parameters(AutoencoderKL, SMALL_ARCHITECTURE.vae)
    assert mixed.step == half.step < exact.step


@pytest.mark.parametrize("room", [-5, 0, 30, 99, 100, 101, 250, 1000])
def test_slots_that_fit(room):
    found = Footprint(weights=11, step=20, decoder=60, state=7)
    fitting = [n for n in range(1, 100) if n * 7 + max(n * 20, 60) <= room]
    assert found.slots_in(room + 11) == max(fitting, default=0)
    assert found.least == 11 + 7 + 60


def test_the_published_sizes():
    """Parameters as in the published weights."""
    sizes = {"SD 1.4": 859_520_964, "SD 2.1": 865_910_724, "SDXL": 2_567_463_684}
    assert len(ARCHITECTURES) == len(sizes)
    with torch.device("meta"):
        for architecture in ARCHITECTURES:
            assert parameters(UNet2DConditionModel, architecture.unet) == sizes[architecture.name]
            assert parameters(AutoencoderKL, architecture.vae) == 83_653_863
