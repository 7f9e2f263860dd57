"""What a guided step costs in arithmetic and memory, counted with fake tensors on any machine.

Networks of the published architectures are built without weights and run on tensors that have
shapes but no content (engine/footprint.py). All is counted for ONE image, whose guidance pair is a
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
state_bytes_per_slot: what a slot holds between steps, in fp32: T latents, and COPIES of the latent
    and of both texts of all timesteps (fastdigin/engine/costs.py).
marginal_bytes_per_slot: step_peak_bytes + state_bytes_per_slot: what one more slot costs where no
    step is kept. Source attention and latents of edited jobs are extra.
decoder_flops_forward, decoder_flops_backward: as above, of the VAE's decoder on one image.
decoder_peak_bytes: the most bytes alive in that forward and backward; SDXL's decoder runs in fp32,
    because it overflows in fp16. The engine decodes one image at a time, never while a step runs.
slots_in: how many slots fit in 12, 24 and 80 GB (fastdigin/engine/footprint.py).
plain_bytes_per_slot: the same image in a loop like plain_loop.py: fp32, the graph of all T steps
    alive with the U-Net checkpointed block by block, which keeps blocks' inputs; plus the peak of
    a block's recompute and backward, plus the same state. The decodes are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdigin.engine.architectures import Architecture
from fastdigin.engine.footprint import (
    STEPS,
    Footprint,
    Pass,
    decoder_pass,
    state_bytes,
    unet_pass,
)
from fastdigin.hardware import LiveBytes
from fastdigin.models.frozen import freeze_aware
from fastdigin_bench.counters import FlopCounter, SavedBytes
from fastdigin_bench.plain_model import checkpoint_blocks

CARDS_GB = (12, 24, 80)

Flops = Mapping[str, int]


def account(
    architecture: Architecture,
    resolution: int,
    *,
    steps: int = STEPS,
    dtype: torch.dtype = torch.float16,
) -> dict[str, Any]:
    """One row of figures; this file's head defines each."""
    exact = torch.float32 if architecture.upcast else dtype
    step = _counted(unet_pass, architecture, resolution, dtype, freeze_aware)
    stock = _counted(unet_pass, architecture, resolution, dtype)
    plain = _counted(unet_pass, architecture, resolution, torch.float32, checkpoint_blocks)
    decoder = _counted(decoder_pass, architecture, resolution, exact, freeze_aware)
    texts = architecture.text_parameters * dtype.itemsize
    memory = Footprint(
        weights=step.weights + decoder.weights + texts,
        step=step.peak,
        decoder=decoder.peak,
        state=state_bytes(architecture, resolution, steps),
    )
    return {
        "model": architecture.name,
        "resolution": resolution,
        "steps": steps,
        "flops_forward": step.forward,
        "flops_backward": step.backward,
        "saved_bytes_per_step": step.saved,
        "plain_saved_bytes_per_step": stock.saved,
        "step_peak_bytes": memory.step,
        "decoder_peak_bytes": memory.decoder,
        "weights_bytes": memory.weights,
        "state_bytes_per_slot": memory.state,
        "marginal_bytes_per_slot": memory.slot,
        "decoder_flops_forward": decoder.forward,
        "decoder_flops_backward": decoder.backward,
        "plain_bytes_per_slot": steps * plain.held + (plain.peak - plain.held) + memory.state,
        "slots_in": {str(gb): memory.slots_in(gb * 10**9) for gb in CARDS_GB},
    }


@dataclass(frozen=True)
class Figures:
    """Of one forward and backward. saved: by autograd; held: alive between the two; peak: ever."""

    forward: Flops
    backward: Flops
    saved: int
    held: int
    peak: int
    weights: int


def measure(counted: Pass) -> Figures:
    """Counts a forward and its backward.

    Fake or real tensors, on the CPU. Weights and inputs do not count as memory. A checkpointed
    network's recompute counts as backward.
    """
    network = counted.network
    live, saved = LiveBytes(), SavedBytes([*network.parameters(), *network.buffers()])
    forward, backward = FlopCounter(), FlopCounter()
    with live:
        with saved, forward:
            output = counted.forward()
        held = live.now - output.untyped_storage().nbytes()
        with backward:
            counted.backward(output)
    return Figures(forward.flops, backward.flops, saved.total, held, live.peak, counted.weights)


def _counted(
    fake_pass: Callable[..., Pass],
    architecture: Architecture,
    resolution: int,
    dtype: torch.dtype,
    prepare: Callable[[nn.Module], None] = lambda network: None,
) -> Figures:
    """``prepare`` changes the network, in place, before it is counted."""
    with FakeTensorMode():
        counted = fake_pass(architecture, resolution, dtype)
        prepare(counted.network)
        return measure(counted)
