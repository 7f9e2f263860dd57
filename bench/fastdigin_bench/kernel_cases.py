"""What ``fastdigin bench kernels`` measures: operations at the shapes of the models' own layers.

Each case carries its inputs, its implementations, an independent truth in float64 and its
arithmetic. Attention is laid out as the U-Net lays it out, (B,N,H,d) in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdigin_bench.command import KERNEL_OPS as OPS
from fastdigin_kernels.attention import attention, injected_attention
from fastdigin_kernels.attention.reference import attention_reference, injected_attention_reference
from fastdigin_kernels.common import choice
from fastdigin_kernels.frozen_conv import conv2d
from fastdigin_kernels.geglu import geglu
from fastdigin_kernels.geglu.reference import geglu_reference
from fastdigin_kernels.group_norm_silu import group_norm_silu
from fastdigin_kernels.group_norm_silu.reference import group_norm_silu_reference

PYTORCH = "pytorch"
"""PyTorch's own operations, differentiated by autograd: what a fused operation is held against."""
_LARGEST_MAP = 2**24  # numbers of an attention map that the reference may still store


@dataclass(frozen=True)
class Model:
    """attention: (image tokens, heads, head size) of each resolution; text: tokens of a prompt.

    norms: (channels, side); groups of all of them. gates: (tokens, width of GEGLU's output).
    batch: of the U-Net, a guidance pair for each of some slots.
    """

    attention: Sequence[tuple[int, int, int]]
    text: int
    norms: Sequence[tuple[int, int]]
    groups: int
    gates: Sequence[tuple[int, int]]
    batch: int


# At their own resolutions: 512 pixels, SDXL 1024; the embedded model's 64 with eight slots.
MODELS = {
    "sd-1.4": Model(
        [(4096, 8, 40), (1024, 8, 80), (256, 8, 160), (64, 8, 160)], 77,
        [(320, 64), (640, 32), (1280, 16)], 32, [(4096, 1280), (1024, 2560), (256, 5120)],
        2,
    ),
    "sd-2.1": Model(
        [(4096, 5, 64), (1024, 10, 64), (256, 20, 64)], 77,
        [(320, 64), (640, 32), (1280, 16)], 32, [(4096, 1280), (1024, 2560), (256, 5120)],
        2,
    ),
    "sdxl": Model(
        [(4096, 10, 64), (1024, 20, 64)], 77,
        [(320, 128), (640, 64), (1280, 32)], 32, [(4096, 2560), (1024, 5120)], 2,
    ),
    "embedded": Model(
        [(256, 2, 24), (64, 4, 24), (16, 4, 32)], 16,
        [(48, 16), (96, 8), (128, 4)], 8, [(256, 192), (64, 384), (16, 512)], 16,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One operation at one shape.

    variables: tensors, of which those that require a gradient are differentiated.
    implementations: name -> function of the variables, giving a tensor. baseline: the name of
    PyTorch's own among them. truth: the same function by its definition.
    flops: of forward and backward, None where an operation is bound by memory.
    bytes: that forward and backward must read and write, every tensor once.
    pieces: the variables in parts that the truth can be computed from one by one.
    """

    model: str
    op: str
    shape: str
    variables: Sequence[Tensor]
    implementations: dict[str, Callable]
    baseline: str
    truth: Callable
    bytes: tuple[int, int]
    flops: tuple[int, int] | None = None
    pieces: Callable[[Sequence[Tensor]], Iterable[Sequence[Tensor]]] = lambda tensors: [tensors]


def cases(
    models: Sequence[str], ops: Sequence[str], device: torch.device, dtype: torch.dtype
) -> Iterator[Case]:
    """One after the other, so that only one case's tensors live."""
    for name in models:
        model = MODELS[name]
        for tokens, heads, size in model.attention:
            for op in (op for op in OPS[:4] if op in ops):
                keys = tokens if op == "self-attention" else model.text
                # A CPU takes seconds for one sample of many tokens, and samples are alike.
                batch = 1 if device.type == "cpu" and tokens >= 4096 else model.batch
                yield _attention(name, op, (batch, heads, tokens, keys, size), device, dtype)
        for channels, side in model.norms if "group-norm-silu" in ops else ():
            # A loaded network passes on channels last.
            for layout in (torch.contiguous_format, torch.channels_last):
                x = _draw((model.batch, channels, side, side), device, dtype, 0)
                yield _group_norm(name, x.contiguous(memory_format=layout), model.groups)
        for tokens, width in model.gates if "geglu" in ops else ():
            yield _geglu(name, _draw((model.batch, tokens, 2 * width), device, dtype, 0))
        # On GPUs there is PyTorch's alone.
        for channels, side in model.norms if "conv-3x3" in ops and device.type == "cpu" else ():
            yield _conv3x3(name, _draw((model.batch, channels, side, side), device, dtype, 0))


def _attention(name, op, shape, device, dtype) -> Case:
    batch, heads, tokens, keys, size = shape
    injected = op == "injected-attention"

    def draw(rows: int, seed: int) -> Tensor:
        return _draw((batch, rows, heads, size), device, dtype, seed).transpose(1, 2)

    variables = [draw(tokens, 0), draw(keys, 1), draw(keys, 2)]
    if injected:
        mapping = torch.rand(batch, keys, keys, generator=torch.Generator().manual_seed(5))
        mapping = (mapping / mapping.sum(1, keepdim=True)).to(device, dtype)
        weight = torch.full((batch,), 0.5, device=device, dtype=dtype)
        variables += [draw(tokens, 3), draw(keys, 4), mapping, weight]
    for tensor in variables[: 1 if op == "frozen-text-attention" else 3]:
        tensor.requires_grad_()
    function = injected_attention if injected else attention
    found = _able("attention", function, shape[1:], device, dtype)
    if batch * heads * tokens * keys > _LARGEST_MAP:
        del found["reference"]
    parts, product = (2 if injected else 1), 2 * batch * heads * tokens * keys
    backward = {"frozen-text-attention": 3, "injected-attention": 7}.get(op, 5)
    row_bytes = batch * heads * size * variables[0].element_size()
    forward_rows = 2 * tokens + 2 * keys + (parts - 1) * (tokens + 2 * keys)
    backward_rows = 3 * tokens + (2 if backward == 3 else 4) * keys
    backward_rows += (parts - 1) * (tokens + 3 * keys)
    return Case(
        name, op, "x".join(map(str, shape)), variables, found, "sdpa",
        injected_attention_reference if injected else attention_reference,
        (forward_rows * row_bytes, backward_rows * row_bytes),
        (2 * parts * product * size, backward * product * size),
        partial(_each_head, batch, heads),
    )  # fmt: skip


def _each_head(batch: int, heads: int, tensors: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Parts of one head of one sample; what has no heads (mapping, weight) of the sample."""
    for b in range(batch):
        for h in range(heads):
            yield [t[b : b + 1, h : h + 1] if t.ndim == 4 else t[b : b + 1] for t in tensors]


def _group_norm(name: str, x: Tensor, groups: int) -> Case:
    weight, bias = _draw((2, x.shape[1]), x.device, x.dtype, 1)

    def pytorch(x):
        return F.silu(F.group_norm(x, groups, weight, bias, 1e-5))

    def truth(x):
        return group_norm_silu_reference(x, weight.to(x), bias.to(x), groups)

    def ours(x, impl):
        return group_norm_silu(x, weight, bias, groups, impl=impl)

    able = _able("group_norm_silu", ours, (*x.shape[1:], groups), x.device, x.dtype)
    shape = "x".join(map(str, x.shape)) + " channels last" * (not x.is_contiguous())
    return Case(
        name, "group-norm-silu", shape, [x.requires_grad_()], {PYTORCH: pytorch} | able, PYTORCH,
        truth, (2 * x.nbytes, 3 * x.nbytes),
    )  # fmt: skip


def _geglu(name: str, x: Tensor) -> Case:
    def pytorch(x):
        a, b = x.chunk(2, dim=-1)
        return a * F.gelu(b)

    able, half = _able("geglu", geglu, x.shape[1:], x.device, x.dtype), x.nbytes // 2
    return Case(
        name, "geglu", "x".join(map(str, x.shape)), [x.requires_grad_()],
        {PYTORCH: pytorch} | able, PYTORCH, geglu_reference, (3 * half, 5 * half),
    )  # fmt: skip


def _conv3x3(name: str, x: Tensor) -> Case:
    """Of as many channels, channels last, as a loaded network has it."""
    channels = x.shape[1]
    weight = _draw((channels, channels, 3, 3), x.device, x.dtype, 1) / (9 * channels) ** 0.5
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias = _draw((channels,), x.device, x.dtype, 2)

    def pytorch(x):
        return F.conv2d(x, weight, bias, padding=1)

    def truth(x):
        return F.conv2d(x, weight.to(x), bias.to(x), padding=1)

    def ours(x, impl):
        return conv2d(x, weight, bias, padding=1, impl=impl)

    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    flops = 18 * channels * x.numel()
    return Case(
        name, "conv-3x3", "x".join(map(str, x.shape)), [x],
        {PYTORCH: pytorch} | _able("frozen_conv", ours, (1,), x.device, x.dtype), PYTORCH, truth,
        (2 * x.nbytes, 2 * x.nbytes), (flops, flops),
    )  # fmt: skip


def _able(operation: str, function: Callable, shape, device, dtype) -> dict[str, Callable]:
    """The implementations of an operation that can run, "auto" aside."""
    return {
        impl: partial(function, impl=impl)
        for impl in choice.implementations(operation)[1:]
        if choice.unavailable(operation, impl, shape, dtype, device) is None
    }


def _draw(shape, device, dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)
