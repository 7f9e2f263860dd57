"""Images stay channels last through a U-Net on a GPU, forward and backward: nothing is copied."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from kernel_operations import INTERPRETED
from torch._subclasses import FakeTensorMode

from fastdigin.hardware import LiveBytes
from fastdigin.models.attention import install_processors
from fastdigin.models.frozen import freeze_aware
from fastdigin_bench.profile.ledger import Counts, Ledger
from fastdigin_kernels.common.devices import pretend_device

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="Triton would run on the CPU")

UNET = {
    "sample_size": 16, "block_out_channels": (16, 32), "norm_num_groups": 4, "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24, "attention_head_dim": 2,
}  # fmt: skip
SDXL = {
    "use_linear_projection": True, "transformer_layers_per_block": 2,
    "attention_head_dim": (2, 4), "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 24,
}  # fmt: skip


def unet_step(options, own=True):
    """A step as the engine prepares it, or with diffusers' own layers, of (latents, output)."""
    unet = UNet2DConditionModel(**{**UNET, **options}).eval().requires_grad_(False)
    unet.to(memory_format=torch.channels_last)
    install_processors(unet)
    if own:
        freeze_aware(unet)
    added = {"text_embeds": torch.empty(2, 24), "time_ids": torch.empty(2, 6)} if options else None

    def step():
        latents = torch.empty(2, 4, 16, 16, memory_format=torch.channels_last)
        output = unet(
            latents.requires_grad_(), torch.zeros(2, dtype=torch.long), torch.empty(2, 7, 24),
            added_cond_kwargs=added, return_dict=False,
        )  # fmt: skip
        return latents, output[0]

    return step


def decoder_step():
    vae = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    decoder = vae.decoder.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    freeze_aware(decoder)

    def step():
        latents = torch.empty(2, 4, 8, 8, memory_format=torch.channels_last)
        return latents.requires_grad_(), decoder(latents)

    return step


def copies(step, capability=(9, 0)):
    """How many in the forward, and in the backward; hidden ones included."""
    live = LiveBytes()
    ledger, forward, backward = Ledger(live), Counts(), Counts()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, live, ledger, pretend_device("cuda", capability):
        with ledger.into(forward):
            latents, output = step()
        with ledger.into(backward):
            torch.autograd.grad(output, latents, torch.empty_like(output))
    assert forward.kernels > 20
    return forward.layout_copies, backward.layout_copies


@pytest.mark.parametrize(
    "step", [lambda: unet_step({}), lambda: unet_step(SDXL), decoder_step],
    ids=["SD 1", "SDXL", "decoder"],
)  # fmt: skip
def test_no_layout_is_copied(step):
    assert copies(step()) == (0, 0)


@pytest.mark.parametrize("options", [{}, SDXL], ids=["SD 1", "SDXL"])
def test_the_count_sees_what_older_gpus_and_diffusers_copy(options):
    assert min(copies(unet_step(options), capability=(7, 5))) >= 10
    # Older versions of torch copy less of diffusers, and nothing backward.
    assert copies(unet_step(options, own=False))[0] >= 4
