"""What ``fastdigin bench kernels`` measures: operations at the shapes of the models' own layers.

Each case carries its inputs, its implementations, an independent truth in float64 and its
arithmetic. Attention is laid out as the U-Net lays it out, (B,N,H,d) in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdigin_kernels.attention import api as attention_module
from fastdigin_kernels.attention import choice as dispatch
from fastdigin_kernels.common import fused
from fastdigin_kernels.geglu import geglu, geglu_reference
from fastdigin_kernels.group_norm_silu import group_norm_silu, group_norm_silu_reference

OPS = (
    "self-attention",
    "cross-attention",
    "frozen-text-attention",
    "injected-attention",
    "group-norm-silu",
    "geglu",
)
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
    implementations: name -> function of the variables, giving a tensor or a tuple of them.
    baseline: the name of PyTorch's own among them. truth: the same function by its definition.
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
    flops: tuple[int, int] | None
    bytes: tuple[int, int]
    pieces: Callable[[Sequence[Tensor]], Iterator[Sequence[Tensor]]] = lambda tensors: iter(
        [tensors]
    )


def cases(
    models: Sequence[str], ops: Sequence[str], device: torch.device, dtype: torch.dtype
) -> Iterator[Case]:
    """One after the other, so that only one case's tensors live."""
    for name in models:
        model = MODELS[name]
        for tokens, heads, size in model.attention:
            for op in OPS[:4]:
                if op in ops:
                    keys = tokens if op == "self-attention" else model.text
                    # A CPU takes seconds for one sample of many tokens, and samples are alike.
                    batch = 1 if device.type == "cpu" and tokens >= 4096 else model.batch
                    shape = (batch, heads, tokens, keys, size)
                    yield _attention(name, op, shape, device, dtype)
        for channels, side in model.norms if "group-norm-silu" in ops else ():
            shape = (model.batch, channels, side, side)
            # What convolutions on a CPU prefer, and so what a loaded network passes on.
            for last in (False, True) if device.type == "cpu" else (False,):
                yield _group_norm(name, shape, last, model.groups, device, dtype)
        for tokens, width in model.gates if "geglu" in ops else ():
            yield _geglu(name, (model.batch, tokens, 2 * width), device, dtype)


def _attention(name, op, shape, device, dtype) -> Case:
    batch, heads, tokens, keys, size = shape
    draw = partial(_draw_heads, batch, heads, size, device, dtype)
    variables = [draw(tokens, 0), draw(keys, 1), draw(keys, 2)]
    if op == "injected-attention":
        mapping = torch.rand(batch, keys, keys, generator=torch.Generator().manual_seed(5))
        mapping = (mapping / mapping.sum(1, keepdim=True)).to(device, dtype)
        weight = torch.full((batch,), 0.5, device=device, dtype=dtype)
        variables += [draw(tokens, 3), draw(keys, 4), mapping, weight]
        function = attention_module.injected_attention
        truth = attention_module.injected_attention_reference
    else:
        function, truth = attention_module.attention, attention_module.attention_reference
    for tensor in variables[: 1 if op == "frozen-text-attention" else 3]:
        tensor.requires_grad_()
    impls = [
        impl
        for impl in dispatch.IMPLEMENTATIONS[1:]
        if dispatch.unavailable(impl, device, dtype, size) is None
    ]
    if batch * heads * tokens * keys > _LARGEST_MAP:
        impls.remove("reference")
    parts, product = (2 if op == "injected-attention" else 1), 2 * batch * heads * tokens * keys
    backward = {"frozen-text-attention": 3, "injected-attention": 7}.get(op, 5)
    rows, item = batch * heads * size, variables[0].element_size()
    forward_rows = 2 * tokens + 2 * keys + (parts - 1) * (tokens + 2 * keys)
    backward_rows = 3 * tokens + (2 if backward == 3 else 4) * keys
    backward_rows += (parts - 1) * (tokens + 3 * keys)
    return Case(
        name, op, f"{batch}x{heads}x{tokens}x{keys}x{size}", variables,
        {impl: partial(function, impl=impl) for impl in impls}, "sdpa", truth,
        (2 * parts * product * size, backward * product * size),
        (forward_rows * rows * item, backward_rows * rows * item),
        partial(_each_head, batch, heads),
    )  # fmt: skip


def _draw_heads(batch, heads, size, device, dtype, tokens: int, seed: int) -> Tensor:
    return _draw((batch, tokens, heads, size), device, dtype, seed).transpose(1, 2)


def _each_head(batch: int, heads: int, tensors: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Parts of one head of one sample; what has no heads (mapping, weight) of the sample."""
    for b in range(batch):
        for h in range(heads):
            yield [t[b : b + 1, h : h + 1] if t.ndim == 4 else t[b : b + 1] for t in tensors]


def _group_norm(name, shape, channels_last, groups, device, dtype) -> Case:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = _draw(shape, device, dtype, 0).contiguous(memory_format=layout).requires_grad_()
    weight, bias = _draw((2, shape[1]), device, dtype, 1)

    def pytorch(x):
        return F.silu(F.group_norm(x, groups, weight, bias, 1e-5))

    def truth(x):
        return group_norm_silu_reference(x, weight.to(x), bias.to(x), groups)

    def ours(impl):
        return lambda x: group_norm_silu(x, weight, bias, groups, impl=impl)

    size = x.numel() * x.element_size()
    return Case(
        name, "group-norm-silu", "x".join(map(str, shape)) + " channels last" * channels_last, [x],
        _fused(pytorch, ours, x),
        PYTORCH, truth, None, (2 * size, 3 * size),
    )  # fmt: skip


def _geglu(name, shape, device, dtype) -> Case:
    x = _draw(shape, device, dtype, 0).requires_grad_()

    def pytorch(x):
        a, b = x.chunk(2, dim=-1)
        return a * F.gelu(b)

    half = x.numel() * x.element_size() // 2
    return Case(
        name, "geglu", "x".join(map(str, shape)), [x],
        _fused(pytorch, lambda impl: partial(geglu, impl=impl), x), PYTORCH, geglu_reference,
        None, (3 * half, 5 * half),
    )  # fmt: skip


def _fused(pytorch: Callable, ours: Callable[[str], Callable], x: Tensor) -> dict[str, Callable]:
    """Those that can run, found by trying: their modules check what they take."""
    found = {PYTORCH: pytorch}
    for impl in fused.IMPLEMENTATIONS[1:]:
        try:
            ours(impl)(x.detach()[:1])
        except (RuntimeError, ValueError):
            continue
        found[impl] = ours(impl)
    return found


def _draw(shape, device, dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)
