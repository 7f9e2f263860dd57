"""The kernels' operations as the tests see them: inputs, truth, and what each implementation takes.

Triton's kernels run on a GPU (``pytest -m gpu``) or in Triton's interpreter, which must be chosen
before Triton is imported, and beside which nothing compiles: test_triton_interpreted.py runs their
tests in a process of its own. By hand: TRITON_INTERPRET=1 pytest tests/kernels/test_conformance.py
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastdigin_kernels.attention import attention, injected_attention
from fastdigin_kernels.attention.reference import attention_reference, injected_attention_reference
from fastdigin_kernels.common import native
from fastdigin_kernels.frozen_conv import conv2d
from fastdigin_kernels.geglu import geglu
from fastdigin_kernels.geglu.reference import geglu_reference
from fastdigin_kernels.group_norm_silu import group_norm, group_norm_silu
from fastdigin_kernels.group_norm_silu.reference import (
    group_norm_reference,
    group_norm_silu_reference,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON_DEVICE = "cpu" if INTERPRETED else "cuda"
on_device = [] if INTERPRETED else [pytest.mark.gpu]
"""For a test of Triton kernels."""

_HALF = [torch.float16, torch.bfloat16]
DTYPES = {
    "sdpa": [torch.float32, *_HALF],
    "torch": [torch.float32, *_HALF],
    "cpp": [torch.float32],
    "cpp portable": [torch.float32],
    "triton": [torch.float32, *(_HALF[:1] if INTERPRETED else _HALF)],  # bfloat16: wrong products
}
"""implementation -> what it takes. "cpp portable" is "cpp" without the processor's own vectors."""


@dataclass(frozen=True)
class Operation:
    """function: of inputs and ``impl``. reference: of inputs, by definition. pytorch: PyTorch's own
    operations, differentiated by autograd. implementations: beside reference and auto.

    draw: of a case's numbers, the inputs in fp64 (tensors and numbers). cases: small ones, the
    first has three samples; the interpreter takes eight. large: what slow tests take as well.
    empty: without a sample, and such.
    wanted: which inputs get a gradient. batched: which have a first dimension of samples.
    rounds: how much more than PyTorch's own it may lose to rounding. linear: in its first input.
    """

    function: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    pytorch: Callable[..., Tensor]
    implementations: Sequence[str]
    draw: Callable[..., list]
    cases: Sequence[tuple]
    empty: Sequence[tuple] = ()
    large: Sequence[tuple] = ()
    wanted: Sequence[int] = (0,)
    batched: Sequence[int] = (0,)
    rounds: float = 1
    linear: bool = False

    def by(self, impl: str) -> Callable[..., Tensor]:
        """The function of inputs; also by "pytorch" and "reference"."""
        own = {"pytorch": self.pytorch, "reference": self.reference}
        return own.get(impl, lambda *inputs: self.function(*inputs, impl=impl.split()[0]))

    def results(self, impl: str, inputs: Sequence, grad: Tensor | None = None) -> list[Tensor]:
        """The output, and the gradient of every wanted input."""
        inputs = [x.detach() if isinstance(x, Tensor) else x for x in inputs]
        variables = [inputs[i].requires_grad_() for i in self.wanted]
        output = self.by(impl)(*inputs)
        if grad is None:
            grad = torch.empty_like(output).copy_(_normal(7, *output.shape))
        return [output.detach(), *torch.autograd.grad(output, variables, grad)]

    def inputs(self, case: Sequence, dtype: torch.dtype, device: str = "cpu") -> list:
        """As drawn, in another dtype."""
        return cast(self.draw(*case), dtype, device)


def cast(inputs: Sequence, dtype: torch.dtype, device: str = "cpu") -> list:
    """Tensors in another dtype or elsewhere; numbers as they are."""
    return [x.to(device, dtype) if isinstance(x, Tensor) else x for x in inputs]


def device_of(impl: str) -> str:
    """Where the tests run an implementation."""
    return TRITON_DEVICE if impl == "triton" else "cpu"


def _normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _heads(seed: int, batch: int, heads: int, tokens: int, size: int) -> Tensor:
    """In the layout of the U-Net: (B,tokens,H,d) in memory."""
    return _normal(seed, batch, tokens, heads, size).transpose(1, 2)


def _draw_attention(batch, heads, queries, keys, size) -> list:
    return [_heads(i, batch, heads, n, size) for i, n in enumerate((queries, keys, keys))]


def _draw_injection(batch, heads, queries, keys, source_keys, size) -> list:
    """Weights from 0 to 1, or a half."""
    source = _draw_attention(batch, heads, queries, source_keys, size)[:2]
    mapping = _normal(5, batch, keys, source_keys).abs()
    mapping /= mapping.sum(1, keepdim=True)
    weight = torch.linspace(0 if batch > 1 else 0.5, 1, batch, dtype=torch.float64)
    own = _draw_attention(batch, heads, queries, keys, size)
    return [*own, source[0] + 1, source[1] + 0.5, mapping, weight]


def _draw_norm(shape, groups, memory_format=torch.contiguous_format) -> list:
    """x, whose mean is not 0."""
    x = (2 * _normal(0, *shape) + 1).to(memory_format=memory_format)
    return [x, 1 + _normal(1, shape[1]), _normal(2, shape[1]), groups, 1e-3]


def _draw_conv(size, weight_size, stride, padding, dilation, groups, last=False) -> list:
    layout = torch.channels_last if last else torch.contiguous_format
    weight = _normal(1, weight_size[0], size[1] // groups, *weight_size[1:])
    x, weight = (t.to(memory_format=layout) for t in (_normal(0, *size), weight))
    return [x, weight, _normal(2, weight_size[0]), stride, padding, dilation, groups]


def _pytorch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _pytorch_injection(q, k, v, source_q, source_k, mapping, weight) -> Tensor:
    weight = weight.view(-1, 1, 1, 1)
    mapped_v = mapping.transpose(1, 2)[:, None] @ v
    injected = F.scaled_dot_product_attention(source_q, source_k, mapped_v)
    return weight * injected + (1 - weight) * F.scaled_dot_product_attention(q, k, v)


def _pytorch_norm(x, weight, bias, groups, eps) -> Tensor:
    return F.group_norm(x, groups, weight, bias, eps)


def _pytorch_norm_silu(*norm) -> Tensor:
    return F.silu(_pytorch_norm(*norm))


def _pytorch_gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return a * F.gelu(b)


OPERATIONS = {
    # (B, H, queries, keys, d): the heads and lengths of SD 1, 2, XL and of the embedded model, odd
    # lengths around tiles and blocks, one row, one key, a head below a vector.
    "attention": Operation(
        attention, attention_reference, _pytorch_attention, ("sdpa", "cpp", "triton"),
        _draw_attention,
        [(3, 1, 5, 20, 40), (1, 2, 1, 1, 1), (1, 1, 63, 77, 40), (1, 1, 33, 129, 17),
         (1, 1, 47, 13, 80), (1, 1, 20, 200, 64), (1, 1, 77, 1, 128), (1, 1, 17, 131, 160),
         (1, 1, 64, 16, 24), (1, 2, 17, 16, 32), (1, 1, 1, 77, 3)],
        empty=[(0, 2, 5, 7, 8), (2, 2, 0, 7, 8)],
        # With more than 1024 queries Triton splits them among programs.
        large=[(1, 1, 1023, 1023, 40), (1, 1, 2100, 77, 40), (1, 1, 1023, 77, 80),
               (1, 1, 65, 1023, 160), (1, 1, 256, 256, 160)],
        wanted=(0, 1, 2), batched=(0, 1, 2),
    ),
    "injected attention": Operation(
        injected_attention, injected_attention_reference, _pytorch_injection,
        ("sdpa", "cpp", "triton"), _draw_injection,
        [(3, 1, 5, 20, 20, 40), (1, 1, 20, 77, 16, 24), (1, 1, 17, 150, 140, 80),
         (1, 2, 17, 9, 1, 100)],
        empty=[(0, 2, 5, 7, 4, 8), (2, 2, 0, 7, 4, 8)],
        wanted=(0, 1, 2), batched=range(7),
    ),
    # (B, C, H, W), groups: odd sizes, one pixel, one channel a group, one group, groups that share
    # a line of 16 channels, more pixels than one sum takes, a sum that is full at a partial line.
    "group norm": Operation(
        group_norm_silu, group_norm_silu_reference, _pytorch_norm_silu, ("torch", "cpp", "triton"),
        _draw_norm,
        [(size, groups, layout)
         for size, groups in [((3, 4, 5, 7), 2), ((1, 4, 1, 1), 2), ((1, 20, 25, 17), 2),
                              ((1, 140, 3, 3), 2), ((2, 7, 8, 8), 1), ((1, 5, 3, 4), 5),
                              ((1, 2, 37, 55), 2)]
         for layout in (torch.contiguous_format, torch.channels_last)],
        empty=[((0, 4, 3, 3), 2)],
    ),
    "geglu": Operation(
        geglu, geglu_reference, _pytorch_gate, ("torch", "cpp", "triton"),
        lambda *shape: [2 * _normal(0, *shape)],
        [(3, 7, 38), (6,), (3, 2), (2, 5, 600), (17, 2560)],
        empty=[(0, 6), (3, 0)],
    ),
    # (B, I, H, W), (O, kernel height and width), stride, padding, dilation, groups
    "frozen convolution": Operation(
        conv2d, F.conv2d, F.conv2d, ("torch",),
        _draw_conv,
        [((3, 5, 7, 9), (4, 3, 3), 1, 1, 1, 1),
         ((1, 6, 5, 3), (7, 1, 1), 1, 0, 1, 1),
         ((2, 3, 8, 10), (4, 3, 3), 2, 1, 1, 1),  # the last row and column are not read
         ((2, 3, 7, 9), (4, 3, 3), 2, 1, 1, 1),
         ((1, 3, 11, 12), (2, 3, 2), (4, 5), 0, 1, 1),  # several are not read
         ((3, 4, 13, 11), (6, 3, 5), (2, 3), (0, 4), (3, 2), 2),
         ((2, 6, 5, 7), (6, 3, 3), 1, 1, 1, 6),
         ((1, 2, 1, 1), (3, 3, 3), 1, 1, 1, 1),
         ((2, 6, 5, 7), (4, 3, 3), 1, 1, 1, 1, True)],
        linear=True,
    ),
    # (B, I, H, W), O: tiles of 4x4 that are cut, one pixel, channels around panels of 16.
    "convolution of 3x3": Operation(
        conv2d, F.conv2d, F.conv2d, ("cpp",),
        lambda size, outputs, *last: _draw_conv(size, (outputs, 3, 3), 1, 1, 1, 1, *last),
        [((3, 5, 7, 9), 4), ((2, 48, 16, 16), 48, True), ((1, 16, 4, 4), 33, True),
         ((1, 33, 1, 1), 16), ((2, 20, 8, 5), 70, True), ((1, 128, 4, 4), 128, True)],
        empty=[((0, 5, 7, 9), 4)], rounds=4, linear=True,
    ),
}  # fmt: skip
NORM_ALONE = Operation(
    group_norm, group_norm_reference, _pytorch_norm, ("triton",), _draw_norm,
    [((2, 12, 5, 7), 3, torch.channels_last), ((1, 80, 17, 16), 2, torch.channels_last)],
)  # fmt: skip
"""The same kernels without SiLU: what they promise is tested with it."""


def pairs(*implementations: str, portable: bool = False) -> list:
    """Parameters (operation, impl): all of an operation's, or those named; Triton's marked."""
    found = []
    for name, operation in OPERATIONS.items():
        for impl in operation.implementations:
            if not implementations or impl in implementations:
                found += [(name, impl)]
                found += [(name, "cpp portable")] if portable and impl == "cpp" else []
    return [
        pytest.param(name, impl, marks=marks(impl), id=f"{name} by {impl}") for name, impl in found
    ]


def marks(impl: str) -> list:
    """In the interpreter only Triton's kernels are tested, and elsewhere only on a GPU."""
    if impl == "triton":
        return on_device
    missing = impl.startswith("cpp") and native.library_path() is None
    return [
        pytest.mark.skipif(INTERPRETED, reason="only Triton's kernels are interpreted"),
        pytest.mark.skipif(missing, reason="installed without the CPU library"),
    ]
