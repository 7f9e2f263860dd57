"""Group norm + SiLU by Triton against fp64. Where it runs: tests/triton_device.py."""

import pytest
import torch
from torch.nn import functional as F
from triton_device import DEVICE, DTYPES, excess, on_device, poisoned  # noqa: F401 - a fixture

pytest.importorskip("triton")
from fastdigin_kernels.group_norm_silu import triton as ops  # noqa: E402

pytestmark = on_device

# (B, C, H, W, groups): one pixel, odd sizes, groups of more than one block, ten channels a group.
SHAPES = [(1, 4, 1, 1, 2), (2, 6, 5, 7, 3), (1, 20, 25, 17, 2), (2, 320, 3, 3, 32)]
FORMATS = [torch.contiguous_format, torch.channels_last]


def draw(shape, dtype, memory_format=torch.contiguous_format):
    batch, channels, height, width, _ = shape
    generator = torch.Generator().manual_seed(0)
    x, grad = (
        torch.randn(batch, channels, height, width, generator=generator) * 2 + 0.5 for _ in range(2)
    )
    weight, bias = (torch.randn(channels, generator=generator) for _ in range(2))
    x, grad, weight, bias = (t.to(DEVICE, dtype) for t in (x, grad, weight, bias))
    return x.contiguous(memory_format=memory_format), grad, weight, bias


def run(x, grad, weight, bias, groups):
    y, mean, rstd = ops.forward(x, weight, bias, groups)
    return y, ops.backward(grad, x, weight, bias, mean, rstd)


def run_torch(x, grad, weight, bias, groups):
    x = x.detach().requires_grad_()
    y = F.silu(F.group_norm(x, groups, weight, bias))
    return y.detach(), torch.autograd.grad(y, x, grad)[0]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_errors_are_at_most_twice_those_of_torch(shape, dtype, memory_format, poisoned):  # noqa: F811
    inputs = draw(shape, dtype, memory_format)
    truth = run_torch(*(t.double() for t in inputs), shape[-1])
    results = zip(
        run(*inputs, shape[-1]), run_torch(*inputs, shape[-1]), truth, ("y", "dx"), strict=True
    )
    for *result, name in results:
        assert excess(*result) <= 1, f"{name}: {excess(*result):.2f}"


def test_backward_reference_agrees_with_autograd():
    inputs = [t.double() for t in draw(SHAPES[1], torch.float32)]
    x, grad, weight, bias = inputs
    _, expected = run_torch(*inputs, 3)
    actual = ops.group_norm_silu_backward_reference(grad, x, weight, bias, 3, 1e-5)
    torch.testing.assert_close(actual, expected)


def test_a_large_mean_does_not_cancel(poisoned):  # noqa: F811
    x, grad, weight, bias = draw(SHAPES[2], torch.float32)
    y, _, _ = ops.forward(x + 1000, weight, bias, 2)
    truth, _ = run_torch((x + 1000).double(), grad.double(), weight.double(), bias.double(), 2)
    torch.testing.assert_close(y.double(), truth, rtol=0, atol=2e-3)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_results_keep_the_memory_format_and_repeat(memory_format):
    inputs = draw(SHAPES[2], torch.float16, memory_format)
    first = run(*inputs, 2)
    assert all(t.is_contiguous(memory_format=memory_format) for t in first)
    for _ in range(2 if DEVICE == "cpu" else 50):
        assert all(torch.equal(a, b) for a, b in zip(first, run(*inputs, 2), strict=True))


def test_a_sample_has_the_same_bits_beside_any_others_and_in_any_strides():
    x, grad, weight, bias = draw(SHAPES[1], torch.float32)
    alone = run(x[1:], grad[1:], weight, bias, 3)
    together = run(x.transpose(2, 3).contiguous().transpose(2, 3), grad, weight, bias, 3)
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b[1:])


def test_no_samples():
    x, grad, weight, bias = draw(SHAPES[1], torch.float32)
    y, dx = run(x[:0], grad[:0], weight, bias, 3)
    assert y.shape == dx.shape == x[:0].shape


def test_what_cannot_be_taken_is_named():
    x, grad, weight, bias = draw(SHAPES[1], torch.float32)
    for arguments, reason in [
        ((x.double(), weight, bias, 3), "float64"),
        ((x.to("meta"), weight, bias, 3), "not on meta"),
        ((x[0], weight, bias, 3), r"x must be \(B,C,H,W\)"),
        ((x, weight, bias, 4), "groups must divide the 6 channels"),
        ((x, weight[:5], bias, 3), r"weight must be \(6,\)"),
        ((x, weight, bias.to("meta"), 3), r"bias must be \(6,\) on"),
    ]:
        with pytest.raises(ValueError, match=reason):
            ops.forward(*arguments)
    _, mean, rstd = ops.forward(x, weight, bias, 3)
    with pytest.raises(ValueError, match="the gradient must be"):
        ops.backward(grad[:1], x, weight, bias, mean, rstd)
