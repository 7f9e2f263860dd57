import pytest
import torch
from saved_bytes import saved_bytes
from torch import nn

X = torch.ones(3, 8, requires_grad=True)  # 96 bytes


def test_sigmoid_keeps_its_output():
    assert saved_bytes(torch.sigmoid, X) == 96


def test_a_chain_keeps_what_each_of_its_links_needs():
    assert saved_bytes(lambda x: x.exp().exp().exp(), X) == 3 * 96


def test_views_of_a_storage_count_once_and_whole():
    assert saved_bytes(lambda x: x[0].square() * x[1].sin(), X) == 96 + 2 * 32


def test_weights_of_the_networks_do_not_count():
    linear = nn.Linear(8, 5, bias=False).requires_grad_(False)
    assert saved_bytes(linear, X) == linear.weight.nbytes
    assert saved_bytes(linear, X, networks=(linear,)) == 0
    linear.requires_grad_()
    assert saved_bytes(linear, X, networks=(linear,)) == 96


def test_what_was_released_does_not_count():
    def with_a_gradient_inside(x):
        (gradient,) = torch.autograd.grad(x.exp().exp().sum(), x)
        return x * gradient

    assert saved_bytes(with_a_gradient_inside, X) == 96  # the gradient that x is multiplied by


def test_nothing_is_run_and_no_memory_is_taken():
    with torch.device("meta"):
        huge = torch.empty(2**20, 2**20, requires_grad=True)
    assert saved_bytes(torch.sigmoid, huge) == 2**42


def test_networks_may_be_fake_themselves():
    with torch._subclasses.FakeTensorMode():
        linear, x = nn.Linear(8, 8), torch.empty(3, 8, requires_grad=True)
    assert saved_bytes(lambda x: linear(x).exp(), x, networks=(linear,)) == 2 * 96


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.enable_grad])
def test_the_callers_grad_mode_does_not_matter(grad_mode):
    with grad_mode():
        assert saved_bytes(torch.sigmoid, X) == 96
