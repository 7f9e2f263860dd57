"""The pretended device catches what a GPU would refuse, and lets the rest be computed."""

import pytest
import torch
from pretended_devices import DEVICE, OnDevice, PretendedDevice
from torch import nn


@pytest.fixture
def device():
    with PretendedDevice() as mode:
        yield mode


def test_what_is_made_or_moved_there_has_numbers(device):
    a = torch.arange(6.0, device=DEVICE).view(2, 3)
    assert torch.tensor([5, 7], device=a.device).tolist() == [5, 7]
    b = torch.full((3, 2), 2.0).to(DEVICE)
    assert isinstance(a @ b, OnDevice) and (a @ b).device == DEVICE
    assert (a @ b).cpu().tolist() == [[6, 6], [24, 24]]
    c = torch.zeros_like(a)
    c[1] = a[0]
    c += 1
    assert c.cpu().tolist() == [[1, 1, 1], [1, 2, 3]]


@pytest.mark.parametrize(("index", "rows"), [
    ([2], [2]), (([2, 0],), [2, 0]), ([True, False, True], [0, 2]), ((slice(1, 3), [1]), None),
])  # fmt: skip
def test_lists_are_indices(device, index, rows):
    """They were tensors without numbers, and what was read by them whatever memory held."""
    there = torch.arange(12.0, device=DEVICE).view(3, 4)
    expected = torch.arange(12.0).view(3, 4)[index]
    assert rows is None or expected.shape == (len(rows), 4)
    assert torch.equal(there[index].cpu(), expected) and device.waits
    there[index] = 0.0
    assert not there[index].cpu().any() and there.cpu().any()


def test_what_has_no_numbers_is_refused():
    nothing = torch.empty(2, device=DEVICE)
    with PretendedDevice(), pytest.raises(RuntimeError, match="never had numbers"):
        nothing + torch.ones(2, device=DEVICE)


def test_backward_passes_are_those_of_the_cpu(device):
    conv = nn.Conv2d(2, 3, 3)
    x = torch.linspace(0, 1, 50).view(1, 2, 5, 5)
    expected = torch.autograd.grad(conv(x.requires_grad_()).square().mean(), x)[0]
    conv.to(DEVICE)
    there = x.detach().to(DEVICE).requires_grad_()
    (found,) = torch.autograd.grad(conv(there).square().mean(), there)
    assert isinstance(found, OnDevice)
    torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("mix", [
    lambda x: x + torch.ones(3),
    lambda x: torch.stack([x, torch.ones(3)]),
    lambda x: torch.where(torch.tensor([True, False, True]), x, 0),
    lambda x: nn.functional.linear(x, torch.ones(2, 3)),
    lambda x: torch.autograd.grad(x.clone().requires_grad_().sum(), x, torch.ones(())),
    lambda x: x.mul_(torch.ones(3)),
])  # fmt: skip
def test_a_planted_mix_is_caught(device, mix):
    with pytest.raises(RuntimeError, match=r"mixes devices|differentiated"):
        mix(torch.ones(3, device=DEVICE))


def test_what_a_gpu_allows_is_no_mix(device):
    x = torch.arange(3.0, device=DEVICE)
    assert (x * torch.tensor(2.0)).cpu().tolist() == [0, 2, 4]
    assert x[torch.tensor([2, 0])].cpu().tolist() == [2, 0]


@pytest.mark.parametrize(("read", "waits"), [
    (lambda x: x.sum().item(), 1),
    (lambda x: x.tolist(), 1),
    (lambda x: bool(x.sum() > 1), 1),
    (lambda x: x.nonzero(), 1),
    (lambda x: x.cpu(), 1),
    (lambda x: torch.ones(3).to(DEVICE), 1),
    (lambda x: torch.ones(3).to(DEVICE, non_blocking=True), 0),
    (lambda x: torch.tensor([1.0, 2.0], device=DEVICE).sum(), 1),
    (lambda x: x.new_tensor([1.0, 2.0]).sum(), 1),
    (lambda x: x.to(DEVICE) + x, 0),
    (lambda x: torch.ones(3).sum().item(), 0),
    (lambda x: x.new_zeros(3), 0),
])  # fmt: skip
def test_waits_are_counted(device, read, waits):
    x = torch.ones(3, device=DEVICE)
    read(x)
    assert len(device.waits) == waits
