"""What a guided step costs in arithmetic and memory, counted with fake tensors on any machine.

Networks of the published architectures (account_models.py) are built without weights and run on
tensors that have shapes but no content. All is counted for ONE image, whose guidance pair is a
batch of 2; "GB" is 10^9 bytes. Definitions:

flops_forward, flops_backward: floating-point operations (two per multiply-add) of the U-Net's
    forward on the pair, and of its backward to latents and text with all weights frozen, without
    a recompute; each as {"convolution", "linear", "attention"}. Linear is all matrix products
    outside of attention. Attention is softmax(Q K^T) V as a fused kernel does it: its backward
    counts 2.5 forwards, because it computes Q K^T again. Norms and activations count nothing.
saved_bytes_per_step: distinct storages that autograd saves for that backward, weights left out:
    what it costs to KEEP a step instead of recomputing it. plain_saved_bytes_per_step: the same of
    diffusers' own modules, which are not told that their weights are frozen (models/frozen.py).
step_peak_bytes: the most bytes alive at once while that forward and backward run.
weights_bytes: of U-Net, VAE and text encoders.
state_bytes_per_slot: what a slot holds between steps, in fp32: T latents, and STATE_COPIES of the
    latent and of both texts of all timesteps.
marginal_bytes_per_slot: step_peak_bytes + state_bytes_per_slot: what one more slot costs where no
    step is kept. Source attention and latents of edited jobs are extra.
decoder_flops_forward, decoder_flops_backward: as above, of the VAE's decoder on one image.
decoder_peak_bytes: the most bytes alive in that forward and backward; SDXL's decoder runs in fp32,
    because it overflows in fp16. The engine decodes one image at a time, never while a step runs.
slots_in: how many slots fit in 12, 24 and 80 GB:
    weights + slots * state + max(slots * step peak, decoder peak). The classifier is left out, and
    so are kernels' workspaces, for which a card's GiB leave 7%.
plain_bytes_per_slot: the same image in a loop like plain_loop.py: fp32, the graph of all T steps
    alive with the U-Net checkpointed block by block, which keeps blocks' inputs; plus the peak of
    a block's recompute and backward, plus the same state. The decodes are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdigin.engine.live_bytes import LiveBytes
from fastdigin.models.frozen import freeze_aware
from fastdigin_bench.account_models import ARCHITECTURES, RESOLUTIONS, Architecture
from fastdigin_bench.counters import FlopCounter, SavedBytes
from fastdigin_bench.plain_model import checkpoint_blocks

CARDS_GB = (12, 24, 80)
STEPS = 20
STATE_COPIES = 7  # base, delta, its gradient, two Adam moments; their sum and gradient in the batch

Flops = Mapping[str, int]


def table(
    architectures: Iterable[Architecture] = ARCHITECTURES,
    resolutions: Sequence[int] = RESOLUTIONS,
) -> list[dict[str, Any]]:
    """A row (see ``account``) for every architecture at every resolution in pixels."""
    return [
        account(architecture, resolution)
        for architecture in architectures
        for resolution in resolutions
    ]


def account(
    architecture: Architecture,
    resolution: int,
    *,
    steps: int = STEPS,
    dtype: torch.dtype = torch.float16,
) -> dict[str, Any]:
    """One row of figures; this file's head defines each."""
    side = _side(architecture, resolution)
    step = _unet_figures(architecture, side, dtype, freeze_aware)
    stock = _unet_figures(architecture, side, dtype)
    plain = _unet_figures(architecture, side, torch.float32, checkpoint_blocks)
    decoder = _decoder_figures(architecture, side, torch.float32 if architecture.upcast else dtype)
    memory = _memory(architecture, side, steps, dtype, step, decoder)
    return {
        "model": architecture.name,
        "resolution": resolution,
        "steps": steps,
        "flops_forward": step.forward,
        "flops_backward": step.backward,
        "saved_bytes_per_step": step.saved,
        "plain_saved_bytes_per_step": stock.saved,
        **memory,
        "marginal_bytes_per_slot": step.peak + memory["state_bytes_per_slot"],
        "decoder_flops_forward": decoder.forward,
        "decoder_flops_backward": decoder.backward,
        "plain_bytes_per_slot": steps * plain.held
        + (plain.peak - plain.held)
        + memory["state_bytes_per_slot"],
        "slots_in": {str(gb): slots_in(gb * 10**9, memory) for gb in CARDS_GB},
    }


def memory(
    architecture: Architecture,
    resolution: int,
    *,
    steps: int = STEPS,
    dtype: torch.dtype = torch.float16,
) -> dict[str, int]:
    """The figures of ``account`` that decide what fits, in a third of its time."""
    side = _side(architecture, resolution)
    step = _unet_figures(architecture, side, dtype, freeze_aware)
    decoder = _decoder_figures(architecture, side, torch.float32 if architecture.upcast else dtype)
    return _memory(architecture, side, steps, dtype, step, decoder)


def slots_in(size: int, memory: Mapping[str, int]) -> int:
    """How many slots fit in ``size`` bytes; 0 if none does. memory: of a row of ``account``."""
    state, step, decoder = (
        memory[name] for name in ("state_bytes_per_slot", "step_peak_bytes", "decoder_peak_bytes")
    )
    room = size - memory["weights_bytes"]
    return max(0, min(room // (state + step), (room - decoder) // state))


@dataclass(frozen=True)
class Figures:
    """Of one forward and backward. saved: by autograd; held: alive between the two; peak: ever."""

    forward: Flops
    backward: Flops
    saved: int
    held: int
    peak: int
    weights: int


def measure(network: nn.Module, inputs: Sequence[Tensor], call: Callable[..., Tensor]) -> Figures:
    """Counts ``call(*inputs)`` and its backward to those inputs that require a gradient.

    Fake or real tensors, on the CPU. Weights are those of ``network``; they and the inputs do not
    count as memory. A checkpointed network's recompute counts as backward.
    """
    weights = [*network.parameters(), *network.buffers()]
    wanted = [x for x in inputs if x.requires_grad]
    live, saved = LiveBytes(), SavedBytes(weights)
    forward, backward = FlopCounter(), FlopCounter()
    with live:
        with saved, forward:
            output = call(*inputs)
        held = live.now - output.untyped_storage().nbytes()
        with backward:
            torch.autograd.grad(output, wanted, torch.empty_like(output))
    weights_bytes = sum(w.untyped_storage().nbytes() for w in weights)
    return Figures(forward.flops, backward.flops, saved.total, held, live.peak, weights_bytes)


def _unet_figures(
    architecture: Architecture,
    side: int,
    dtype: torch.dtype,
    prepare: Callable[[nn.Module], None] = lambda unet: None,
) -> Figures:
    """``prepare`` changes the U-Net, in place, before it is counted."""
    with FakeTensorMode():
        unet = _built(UNet2DConditionModel, architecture.unet, dtype)
        prepare(unet)
        width = architecture.unet["cross_attention_dim"]
        z = torch.empty(2, unet.config.in_channels, side, side, dtype=dtype, requires_grad=True)
        text = torch.empty(2, architecture.text_length, width, dtype=dtype, requires_grad=True)
        timesteps = torch.zeros(2, dtype=torch.long)
        extra = None
        if architecture.pooled is not None:
            pooled = torch.empty(2, architecture.pooled, dtype=dtype)
            extra = {"text_embeds": pooled, "time_ids": torch.zeros(2, 6, dtype=dtype)}
        return measure(
            unet,
            (z, text),
            lambda z, text: unet(z, timesteps, text, added_cond_kwargs=extra).sample,
        )


def _decoder_figures(architecture: Architecture, side: int, dtype: torch.dtype) -> Figures:
    with FakeTensorMode():
        vae = _built(AutoencoderKL, architecture.vae, dtype)
        freeze_aware(vae)
        channels = vae.config.latent_channels
        x0 = torch.empty(1, channels, side, side, dtype=dtype, requires_grad=True)
        return measure(vae, (x0,), lambda x0: vae.decode(x0).sample)


def _built(kind: type, config: Mapping[str, Any], dtype: torch.dtype):
    """A frozen network; built in its dtype, because fake weights cannot be cast in place."""
    with _default_dtype(dtype):
        network = kind(**config)
    return network.eval().requires_grad_(False)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _state_bytes(architecture: Architecture, side: int, steps: int) -> int:
    latent = architecture.vae.get("latent_channels", 4) * side * side
    texts = 2 * steps * architecture.text_length * architecture.unet["cross_attention_dim"]
    return 4 * (steps * latent + STATE_COPIES * (latent + texts))


def _memory(
    architecture: Architecture, side: int, steps: int, dtype: torch.dtype, step: Figures,
    decoder: Figures,
) -> dict[str, int]:  # fmt: skip
    return {
        "step_peak_bytes": step.peak,
        "decoder_peak_bytes": decoder.peak,
        "weights_bytes": step.weights
        + decoder.weights
        + architecture.text_parameters * dtype.itemsize,
        "state_bytes_per_slot": _state_bytes(architecture, side, steps),
    }


def _side(architecture: Architecture, resolution: int) -> int:
    """Of the latents."""
    return resolution // 2 ** (len(architecture.vae["block_out_channels"]) - 1)
