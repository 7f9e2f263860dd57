"""What is handed to xFormers and taken from it. Its kernels are stood in for by the definition."""

import sys
import types

import pytest
import torch

from fastdigin_kernels.attention import attention
from fastdigin_kernels.attention.reference import attention_reference
from fastdigin_kernels.common import choice
from fastdigin_kernels.common.registry import BackendError, backend

MODULE = "fastdigin_kernels.attention.xformers"


def forget():
    sys.modules.pop(MODULE, None)
    backend.cache_clear()
    choice._chosen.clear()


def definition(q_bnhd, k_bthd, v_bthd, *, op):
    assert op == ("there", "back") and all(x.is_contiguous() for x in (q_bnhd, k_bthd, v_bthd))
    out = attention_reference(*(x.transpose(1, 2) for x in (q_bnhd, k_bthd, v_bthd)))
    return out.transpose(1, 2).contiguous()


@pytest.fixture
def xformers(monkeypatch):
    """A stand-in for xformers.ops that runs on the CPU."""
    package, module = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    module.fmha = types.SimpleNamespace(
        memory_efficient_attention=definition,
        cutlass=types.SimpleNamespace(FwOp="there", BwOp="back"),
    )
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", module)
    forget()
    yield backend("attention", "xformers")
    forget()


@pytest.mark.parametrize("wanted", ["qkv", "q"])
def test_output_and_gradients(xformers, monkeypatch, wanted):
    monkeypatch.setattr(xformers, "unsupported", lambda *asked: None)
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (
        torch.randn(2, rows, 3, 8, generator=generator).transpose(1, 2) for rows in (5, 7, 7, 5)
    )
    inputs = dict(zip("qkv", (q, k, v), strict=True))
    leaves = [inputs[name].requires_grad_() for name in wanted]
    found, expected = (
        (out, *torch.autograd.grad(out, leaves, grad))
        for out in (attention(q, k, v, impl=impl) for impl in ("xformers", "reference"))
    )
    torch.testing.assert_close(found, expected)
    assert found[0].stride() == q.stride()


def test_what_it_cannot_take_is_refused(xformers):
    q = torch.randn(1, 2, 4, 8)
    with pytest.raises(BackendError, match="runs on CUDA devices, not on cpu"):
        attention(q, q, q, impl="xformers")
    assert "not torch.float64" in xformers.unsupported(torch.device("cuda"), torch.float64, (8,))


def test_without_xformers_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    forget()
    q = torch.randn(1, 2, 4, 8)
    with pytest.raises(BackendError, match="'xformers' cannot .*xformers"):
        attention(q, q, q, impl="xformers")
    forget()
