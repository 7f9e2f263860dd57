"""What a pretended GPU is given, without one."""

import pytest
import torch
from functorch.compile import make_boxed_func
from gradients import Called
from kernel_operations import INTERPRETED
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses import FakeTensorMode

from fastdigin_kernels.attention import attention, injected_attention
from fastdigin_kernels.attention import unavailable as attention_unavailable
from fastdigin_kernels.common import devices
from fastdigin_kernels.common.devices import Device, device_of, kind_of, pretend_device
from fastdigin_kernels.common.registry import BackendError
from fastdigin_kernels.geglu import geglu
from fastdigin_kernels.group_norm_silu import group_norm_silu

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="Triton would run on the CPU")
CPU = torch.device("cpu")


def step(keys):
    """A norm, cross- or self-attention and a gate, with their gradient."""
    x = torch.empty(2, 16, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    y = group_norm_silu(x, torch.empty(16), torch.empty(16), 4)
    q = y.flatten(2).transpose(1, 2).unflatten(-1, (2, 8)).transpose(1, 2)
    k = torch.empty(2, keys, 2, 8).transpose(1, 2)
    y = geglu(attention(q, k, k).transpose(1, 2).flatten(2))
    torch.autograd.grad(y, x, torch.empty_like(y))


@pytest.mark.parametrize("keys", [77, 4096])
def test_auto_takes_what_it_would_take_on_the_gpu(keys):
    with FakeTensorMode(), Called() as called, pretend_device("cuda", capability=(9, 0)):
        step(keys)
    ours = [name.removeprefix("fastdigin::") for name in called.names if "fastdigin" in name]
    attention = {77: ["attention_forward", "attention_backward"], 4096: []}[keys]
    assert ours == [
        "group_norm_silu_forward", *attention[:1], "geglu_forward",
        "geglu_backward", *attention[1:], "group_norm_silu_backward",
    ]  # fmt: skip


def test_a_compiler_sees_our_kernels_and_its_graph_has_no_break():
    """For a GPU, in half precision: each is an operation of the graph, and so is its backward."""
    graphs = []

    def keep(graph, _):
        targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
        graphs.append([str(target) for target in targets if "fastdigin" in str(target)])
        return make_boxed_func(graph.forward)

    def step(x, k, mapping):
        y = group_norm_silu(x, torch.empty(16).to(x), torch.empty(16).to(x), 4)
        q = y.flatten(2).transpose(1, 2).unflatten(-1, (2, 8)).transpose(1, 2)
        y = injected_attention(attention(q, k, k), k, k, q.detach(), k, mapping, torch.ones(2))
        return geglu(y.transpose(1, 2).flatten(2))

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    with FakeTensorMode(), pretend_device("cuda", capability=(9, 0)):
        x = torch.empty(2, 16, 8, 8, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        k, mapping = torch.empty(2, 77, 2, 8).to(x).transpose(1, 2), torch.empty(2, 77, 77)
        y = compiled(x.requires_grad_(), k, mapping)
        (dx,) = torch.autograd.grad(y, x, torch.empty_like(y))
    assert dx.is_contiguous(memory_format=torch.channels_last)
    forward = ["group_norm_silu", "attention", "attention_injected", "geglu"]
    backward = ["geglu", "attention", "attention", "group_norm_silu"]
    assert graphs == [
        [f"fastdigin.{name}_{way}.default" for name in names]
        for names, way in ((forward, "forward"), (backward, "backward"))
    ]


def test_on_gpus_that_our_kernels_cannot_run_on_it_is_pytorchs_own():
    with FakeTensorMode(), Called() as called, pretend_device("cuda", capability=(7, 5)):
        step(77)
        with pytest.raises(BackendError, match="needs a GPU of compute capability 8.0 .* not 7.5"):
            geglu(torch.empty(2, 4), impl="triton")
    assert not any("fastdigin" in name for name in called.names)


def test_the_choice_on_the_real_device_is_not_disturbed():
    x = torch.randn(2, 4)
    expected = geglu(x)
    with pretend_device(), FakeTensorMode():
        geglu(torch.empty(2, 4))
    assert torch.equal(geglu(x), expected)


def test_a_pretended_device_ends_where_it_should():
    assert devices.pretended() is None and device_of(CPU) == Device("cpu", "cpu")
    with pytest.raises(KeyError), pretend_device("cuda", (8, 0), "an A100") as outer:
        assert device_of(CPU) is outer and kind_of(CPU) == "cuda" and outer.name == "an A100"
        with pretend_device("cpu", None):
            assert kind_of(torch.device("cuda")) == "cpu"
            assert "not on cuda" not in (attention_unavailable("cpp", CPU, torch.float32, 8) or "")
        assert device_of(CPU) is outer
        raise KeyError
    assert devices.pretended() is None and kind_of(CPU) == "cpu"


@pytest.mark.parametrize(
    ("capability", "family", "shared"),
    [((8, 0), "sm_80", 163), ((8, 6), "sm_89", 99), ((8, 9), "sm_89", 99), ((9, 0), "sm_90", 227),
     ((10, 0), "sm_100", 227), ((12, 0), "sm_89", 99)],
)  # fmt: skip
def test_families(capability, family, shared):
    device = Device("cuda", "a GPU", capability)
    assert device.family == family and devices.SHARED_MEMORY[family] == shared << 10
