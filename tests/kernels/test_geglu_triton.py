"""GEGLU by Triton against fp64. Where it runs: tests/triton_device.py."""

import pytest
import torch
from torch.nn import functional as F
from triton_device import DEVICE, DTYPES, excess, on_device, poisoned  # noqa: F401 - a fixture

pytest.importorskip("triton")
from fastdigin_kernels.geglu import triton as ops  # noqa: E402

pytestmark = on_device

SHAPES = [(1, 2), (3, 7, 192 * 2), (2, 5, 300 * 2), (17, 1280 * 2)]


def draw(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * 3
    grad = torch.randn(*shape[:-1], shape[-1] // 2, generator=generator)
    return x.to(DEVICE, dtype), grad.to(DEVICE, dtype)


def run(x, grad):
    return ops.forward(x), ops.backward(grad, x)


def run_torch(x, grad):
    x = x.detach().requires_grad_()
    a, b = x.chunk(2, dim=-1)
    y = a * F.gelu(b)
    return y.detach(), torch.autograd.grad(y, x, grad)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_errors_are_at_most_twice_those_of_torch(shape, dtype, poisoned):  # noqa: F811
    inputs = draw(shape, dtype)
    truth = run_torch(*(t.double() for t in inputs))
    for name, *result in zip(("y", "dx"), run(*inputs), run_torch(*inputs), truth, strict=True):
        assert excess(*result) <= 1, f"{name}: {excess(*result):.2f}"


def test_backward_reference_agrees_with_autograd():
    x, grad = (t.double() for t in draw(SHAPES[1], torch.float32))
    torch.testing.assert_close(ops.geglu_backward_reference(grad, x), run_torch(x, grad)[1])


def test_repeats_and_strides():
    x, grad = draw(SHAPES[1], torch.float16)
    first = run(x, grad)
    for _ in range(2 if DEVICE == "cpu" else 50):
        assert all(torch.equal(a, b) for a, b in zip(first, run(x, grad), strict=True))
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, run(strided, grad), strict=True))


def test_no_rows():
    x, grad = draw(SHAPES[1], torch.float32)
    y, dx = run(x[:0], grad[:0])
    assert y.shape == grad[:0].shape and dx.shape == x[:0].shape


def test_what_cannot_be_taken_is_named():
    x, grad = draw(SHAPES[1], torch.float32)
    for wrong, reason in [
        (x.double(), "float64"),
        (x.to("meta"), "not on meta"),
        (x[..., :-1], r"x must be \(\.\.\., 2d\)"),
    ]:
        with pytest.raises(ValueError, match=reason):
            ops.forward(wrong)
    with pytest.raises(ValueError, match="the gradient must be"):
        ops.backward(grad[:1], x)
