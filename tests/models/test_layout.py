"""Images stay channels last through a U-Net on a GPU, forward and backward: nothing is copied."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from kernel_operations import INTERPRETED
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastdigin.models.attention import install_processors
from fastdigin.models.frozen import freeze_aware
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


class LayoutCopies(TorchDispatchMode):
    """Operations that copy an image from one memory format to the other, hidden ones included.

    A convolution, or its gradient, whose weight lies channels last copies whatever does not.
    """

    CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)
    COPIES = (torch.ops.aten.clone, torch.ops.aten.copy_, torch.ops.aten._to_copy)
    PLANES = (torch.ops.aten.native_group_norm, torch.ops.aten.native_group_norm_backward)

    def __init__(self):
        super().__init__()
        self.found, self.images = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        operation = function.overloadpacket
        images = [x for x in args if isinstance(x, torch.Tensor) and x.ndim == 4]
        self.images += len(images)
        if operation in self.CONVOLUTIONS or operation in self.PLANES:  # knows no channels last
            wrong = [x for x in images if not is_channels_last(x) or operation in self.PLANES]
        else:
            wrong = images[:1] if operation in self.COPIES and images else []
            wrong = [x for x in wrong if is_channels_last(x) != is_channels_last(result)]
        self.found += [f"{operation} {tuple(x.shape)} {x.stride()}" for x in wrong]
        return result


def is_channels_last(x):
    """Or channels of such an image: the gradients of what `torch.cat` has joined."""
    return x.stride(1) == 1


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
    """Those in the forward, and those in the backward."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, LayoutCopies() as counted, pretend_device("cuda", capability):
        latents, output = step()
        forward = list(counted.found)
        torch.autograd.grad(output, latents, torch.empty_like(output))
    assert counted.images > 20
    return forward, counted.found[len(forward) :]


@pytest.mark.parametrize(
    "step", [lambda: unet_step({}), lambda: unet_step(SDXL), decoder_step],
    ids=["SD 1", "SDXL", "decoder"],
)  # fmt: skip
def test_no_layout_is_copied(step):
    assert copies(step()) == ([], [])


@pytest.mark.parametrize("options", [{}, SDXL], ids=["SD 1", "SDXL"])
def test_the_count_sees_what_older_gpus_and_diffusers_copy(options):
    for forward, backward in (
        copies(unet_step(options), capability=(7, 5)),
        copies(unet_step(options, own=False)),
    ):
        assert len(forward) >= 10 and len(backward) >= 10
    assert any("convolution" in copy for copy in forward), "planes for a convolution are hidden"
