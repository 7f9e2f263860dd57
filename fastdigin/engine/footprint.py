"""How much memory a model takes, counted from its configuration: no weights, no GPU needed.

Networks are built without weights and run on fake tensors, which have shapes but no content. (For
a model that is loaded, costs.py measures the same on real tensors.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdigin.engine.architectures import Architecture
from fastdigin.engine.costs import slot_state_bytes
from fastdigin.hardware import measure
from fastdigin.models.frozen import freeze_aware

STEPS = 20


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model takes for images that are optimised with guidance.

    weights: of U-Net, VAE and text encoders. step: the most alive while the U-Net's forward and
    backward run for one image, whose guidance pair is a batch of 2. decoder: the same of one
    decode; the engine decodes one image at a time, never while a step runs. state: what a slot
    holds between steps, in fp32.
    """

    weights: int
    step: int
    decoder: int
    state: int

    @property
    def slot(self) -> int:
        """What one more slot costs where no step is kept. What edited jobs carry is extra."""
        return self.step + self.state

    @property
    def least(self) -> int:
        """What one slot alone takes."""
        return self.weights + self.state + max(self.step, self.decoder)

    def slots_in(self, size: int) -> int:
        """How many slots fit in ``size`` bytes; 0 if none does.

        weights + slots * state + max(slots * step, decoder). The classifier is left out, and so
        are kernels' workspaces, for which a card's GiB leave 7%.
        """
        room = size - self.weights
        return max(0, min(room // self.slot, (room - self.decoder) // self.state))


def footprint(
    architecture: Architecture,
    resolution: int,
    *,
    steps: int = STEPS,
    dtype: torch.dtype = torch.float16,
) -> Footprint:
    """Counts a model's footprint.

    Args:
        architecture: the model's configuration.
        resolution: the side of its images, in pixels.
        steps: of the sampler, T.
        dtype: of the networks. A decoder that overflows in fp16 (SDXL's) is counted in fp32.
    """
    with FakeTensorMode():
        unet, step = _weights_and_peak(unet_pass(architecture, resolution, dtype))
        exact = torch.float32 if architecture.upcast else dtype
        vae, decoder = _weights_and_peak(decoder_pass(architecture, resolution, exact))
    weights = unet + vae + architecture.text_parameters * dtype.itemsize
    return Footprint(weights, step, decoder, state_bytes(architecture, resolution, steps))


def state_bytes(architecture: Architecture, resolution: int, steps: int) -> int:
    """What a slot holds between steps."""
    text = architecture.text_length * architecture.unet["cross_attention_dim"]
    return slot_state_bytes(math.prod(architecture.latent_shape(resolution)), text, steps)


@dataclass(frozen=True)
class Pass:
    """A network and a forward of it. The backward leads to those inputs that require a gradient."""

    network: nn.Module
    inputs: Sequence[Tensor]
    call: Callable[..., Tensor]

    @property
    def weights(self) -> int:
        """Bytes of the network's parameters and buffers."""
        tensors = [*self.network.parameters(), *self.network.buffers()]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def forward(self) -> Tensor:
        return self.call(*self.inputs)

    def backward(self, output: Tensor) -> Sequence[Tensor]:
        wanted = [x for x in self.inputs if x.requires_grad]
        return torch.autograd.grad(output, wanted, torch.empty_like(output))


def unet_pass(architecture: Architecture, resolution: int, dtype: torch.dtype) -> Pass:
    """A U-Net's prediction for one image's guidance pair."""
    unet = built(UNet2DConditionModel, architecture.unet, dtype)
    width = architecture.unet["cross_attention_dim"]
    latent_shape = architecture.latent_shape(resolution)
    z = torch.empty(2, *latent_shape, dtype=dtype, requires_grad=True)
    text = torch.empty(2, architecture.text_length, width, dtype=dtype, requires_grad=True)
    timesteps, extra = torch.zeros(2, dtype=torch.long), None
    if architecture.pooled is not None:
        pooled = torch.empty(2, architecture.pooled, dtype=dtype)
        extra = {"text_embeds": pooled, "time_ids": torch.zeros(2, 6, dtype=dtype)}
    return Pass(
        unet,
        (z, text),
        lambda z, text: unet(z, timesteps, text, added_cond_kwargs=extra).sample,
    )


def decoder_pass(architecture: Architecture, resolution: int, dtype: torch.dtype) -> Pass:
    """The decode of one image."""
    vae = built(AutoencoderKL, architecture.vae, dtype)
    latent_shape = architecture.latent_shape(resolution)
    x0 = torch.empty(1, *latent_shape, dtype=dtype, requires_grad=True)
    return Pass(vae, (x0,), lambda x0: vae.decode(x0).sample)


def _weights_and_peak(step: Pass) -> tuple[int, int]:
    freeze_aware(step.network)
    return step.weights, measure(lambda: step.backward(step.forward()), torch.device("cpu"))[1]


def built(kind: type[nn.Module], config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """A frozen network without its published weights, in its dtype from the beginning.

    Fake weights cannot be cast in place, and diffusers warns of whoever casts others.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return kind(**config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
