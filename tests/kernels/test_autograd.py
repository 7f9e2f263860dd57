import pytest
import torch
from gradients import assert_all_ways_agree, kept_tensors, output_and_gradient

from fastdigin_kernels.common.autograd import differentiable, once_differentiable


class Cube(torch.autograd.Function):
    """x^3, with x^2 for its backward alone."""

    @staticmethod
    def forward(x):
        return x**3, x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        return 3 * ctx.saved_tensors[0] * grad


cube = differentiable(Cube, kept=1)


def draw():
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_a_call_gives_what_is_not_kept_and_its_gradient():
    x = draw()
    output, gradient = output_and_gradient(cube, x)
    expected = output_and_gradient(lambda x: x * x * x, x)
    torch.testing.assert_close((output, gradient), expected)
    assert [t.shape for t in kept_tensors(cube, x)] == [x.shape]
    with torch.no_grad():
        assert torch.equal(cube(x.requires_grad_()), output)


def test_transforms_and_compilers_give_the_same():
    assert_all_ways_agree(cube, draw())


def test_two_outputs_that_are_not_kept_stay_a_pair():
    class Both(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return 2 * x, 3 * x, x.sum()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.mark_non_differentiable(output[2])

        @staticmethod
        def backward(ctx, grad_double, grad_triple, *_):
            return 2 * grad_double + 3 * grad_triple

    x = draw().requires_grad_()
    double, triple = differentiable(Both, kept=1)(x)
    assert torch.equal(double, 2 * x) and torch.equal(triple, 3 * x)
    (gradient,) = torch.autograd.grad(double.sum() + triple.sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 5))


def test_there_is_no_second_derivative():
    x = draw().requires_grad_()
    (gradient,) = torch.autograd.grad(cube(x).square().sum(), x, create_graph=True)
    torch.testing.assert_close(gradient.detach(), 6 * x.detach() ** 5)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
