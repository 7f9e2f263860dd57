"""The helper that counts what autograd keeps, against sums by hand."""

import pytest
import torch
from saved_bytes import saved_bytes
from torch import nn

X = torch.ones(3, 8, requires_grad=True)  # 96 bytes


def with_a_gradient_inside(x):
    (gradient,) = torch.autograd.grad(x.exp().exp().sum(), x)
    return x * gradient


@pytest.mark.parametrize(
    "function, expected",
    [
        (torch.sigmoid, 96),  # its output
        (lambda x: x.exp().exp().exp(), 3 * 96),
        (lambda x: x[0].square() * x[1].sin(), 96 + 2 * 32),  # a storage once and whole
        (with_a_gradient_inside, 96),  # the gradient that x is multiplied by; the rest is released
    ],
)
@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.enable_grad])
def test_bytes_by_hand(function, expected, grad_mode):
    with grad_mode():
        assert saved_bytes(function, X) == expected


def test_weights_of_the_networks_do_not_count():
    linear = nn.Linear(8, 5, bias=False).requires_grad_(False)
    assert saved_bytes(linear, X) == linear.weight.nbytes
    assert saved_bytes(linear, X, networks=(linear,)) == 0
    linear.requires_grad_()
    assert saved_bytes(linear, X, networks=(linear,)) == 96


def test_nothing_is_run_and_networks_may_be_fake():
    with torch.device("meta"):
        huge = torch.empty(2**20, 2**20, requires_grad=True)
    assert saved_bytes(torch.sigmoid, huge) == 2**42
    with torch._subclasses.FakeTensorMode():
        linear, x = nn.Linear(8, 8), torch.empty(3, 8, requires_grad=True)
    assert saved_bytes(lambda x: linear(x).exp(), x, networks=(linear,)) == 2 * 96
