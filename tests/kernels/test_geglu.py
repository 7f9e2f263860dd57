from functools import partial

import pytest
import torch
from gradients import assert_all_ways_agree, kept_tensors, output_and_gradient
from torch.nn import functional as F

from fastdigin_kernels.geglu import geglu, geglu_reference

SHAPES = [(2, 5, 14), (6,), (3, 2), (1, 2, 3, 38)]


def draw(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def pytorchs(x):
    a, b = x.chunk(2, dim=-1)
    return a * F.gelu(b)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_agrees_with_its_reference(shape):
    actual = output_and_gradient(geglu, draw(shape))
    expected = output_and_gradient(geglu_reference, draw(shape))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_bit_is_pytorchs(shape, dtype):
    actual = output_and_gradient(partial(geglu, impl="torch"), draw(shape, dtype))
    expected = output_and_gradient(pytorchs, draw(shape, dtype))
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e) and a.dtype == dtype


def test_an_input_that_is_not_contiguous():
    x = draw((14, 5)).T
    actual, expected = output_and_gradient(geglu, x), output_and_gradient(pytorchs, x)
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])


def test_the_derivative_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(geglu, draw(SHAPES[0]).requires_grad_())


def test_it_works_under_transforms_and_compilation():
    assert_all_ways_agree(geglu, draw(SHAPES[0]))


def test_the_input_alone_is_kept():
    x = draw(SHAPES[0])
    (kept,) = kept_tensors(geglu, x)
    assert kept.data_ptr() == x.data_ptr() and kept.shape == x.shape


def test_without_gradients_the_bits_are_the_same():
    x = draw(SHAPES[0])
    with torch.no_grad():
        output = geglu(x.requires_grad_())
    assert not output.requires_grad
    assert torch.equal(output, pytorchs(x))


def test_a_second_derivative_is_refused():
    x = draw(SHAPES[0]).requires_grad_()
    (gradient,) = torch.autograd.grad(geglu(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), x)


def test_an_odd_last_dimension_is_refused():
    with pytest.raises(AssertionError, match="2d"):
        geglu(draw((2, 3)))
