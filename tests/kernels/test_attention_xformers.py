"""What is handed to xFormers and taken from it. Its kernels are stood in for by the definition."""

import math
import sys
import types

import pytest
import torch

from fastdigin_kernels.attention import attention
from fastdigin_kernels.attention.reference import attention_reference
from fastdigin_kernels.common import choice
from fastdigin_kernels.common.registry import BackendError, backend

MODULE = "fastdigin_kernels.attention.xformers"


def _forward(q, k, v, *, op):
    assert op == "forward" and all(x.stride(-1) == 1 for x in (q, k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    lse = torch.logsumexp(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
    out = attention_reference(q, k, v).transpose(1, 2).contiguous()
    return out, torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=math.inf)


def _backward(grad, out, lse, q, k, v, *, op):
    assert op == "backward" and lse.shape[-1] % 32 == 0 and lse.shape[-1] >= q.shape[1]
    torch.testing.assert_close(
        lse[..., : q.shape[1]], _forward(q, k, v, op="forward")[1][..., : q.shape[1]]
    )
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        expected = attention_reference(*(x.transpose(1, 2) for x in leaves)).transpose(1, 2)
        torch.testing.assert_close(out, expected)
        return torch.autograd.grad(expected, leaves, grad)


def forget():
    sys.modules.pop(MODULE, None)
    backend.cache_clear()
    choice._chosen.clear()


@pytest.fixture
def xformers(monkeypatch):
    """A stand-in for xformers.ops that runs on the CPU."""
    fmha = types.SimpleNamespace(
        memory_efficient_attention_forward_requires_grad=_forward,
        memory_efficient_attention_backward=_backward,
        cutlass=types.SimpleNamespace(FwOp="forward", BwOp="backward"),
    )
    package, module = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    module.fmha = fmha
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", module)
    forget()
    yield backend("attention", "xformers")
    forget()


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).transpose(1, 2)


def test_output_and_gradients_are_laid_out_as_the_unets(xformers, monkeypatch):
    monkeypatch.setattr(xformers, "unsupported", lambda *asked: None)
    q, k, v = (draw(2, rows, 3, 8) for rows in (21, 7, 7))
    v = v.contiguous().transpose(2, 3).contiguous().transpose(2, 3)  # no contiguous rows
    inputs = [x.requires_grad_() for x in (q, k, v)]
    grad = draw(2, 21, 3, 8)
    found, expected = (
        [out := attention(*inputs, impl=impl), *torch.autograd.grad(out, inputs, grad)]
        for impl in ("xformers", "reference")
    )
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e)
        assert f.transpose(1, 2).is_contiguous()
    q_alone = attention(q, k.detach(), v.detach(), impl="xformers")
    torch.testing.assert_close(torch.autograd.grad(q_alone, q, grad)[0], expected[1])


def test_what_it_cannot_take_is_refused(xformers):
    q, k, v = (draw(1, rows, 1, 8) for rows in (3, 5, 5))
    with pytest.raises(BackendError, match="runs on CUDA devices, not on cpu"):
        attention(q, k, v, impl="xformers")


def test_without_xformers_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    forget()
    q, k, v = (draw(1, rows, 1, 8) for rows in (3, 5, 5))
    with pytest.raises(BackendError, match="'xformers' cannot .*xformers"):
        attention(q, k, v, impl="xformers")
    forget()
