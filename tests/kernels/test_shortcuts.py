"""Calls around torch's dispatcher: only where nobody watches, and only while torch can tell."""

import importlib
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from gradients import Called, assert_all_ways_agree, kept_tensors, output_and_gradient
from kernel_operations import INTERPRETED, OPERATIONS, device_of, pairs
from torch import Tensor

import fastdigin_kernels
from fastdigin_kernels.common import registry, shortcuts
from fastdigin_kernels.common.autograd import differentiable, once_differentiable

PRIVATE = {
    "_are_functorch_transforms_active": torch._C,
    "_len_torch_dispatch_stack": torch._C,
    "is_functorch_wrapped_tensor": torch._C._functorch,
    "_is_profiler_enabled": torch.autograd.profiler,
}
callers: list[str] = []


def scaled(x: Tensor) -> Tensor:
    """What the backend of an operation of these tests does."""
    callers.append(sys._getframe(1).f_code.co_name)
    return 2 * x


@registry.register("example")
def example_scaled(x: Tensor, impl: str) -> Tensor:
    return x.new_empty(x.shape)


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    """This module is the backend of that operation."""
    real = registry.backend
    this = sys.modules[__name__]
    monkeypatch.setattr(
        registry, "backend", lambda name, impl: this if name == "example" else real(name, impl)
    )
    callers.clear()


@contextmanager
def missing(name):
    """torch without one of its private names, as far as the kernels see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(PRIVATE[name], name)
        importlib.reload(shortcuts)
    assert not shortcuts.AVAILABLE
    try:
        yield
    finally:
        importlib.reload(shortcuts)
        assert shortcuts.AVAILABLE


def test_unwatched_it_is_the_function_alone():
    for x in (torch.ones(3), torch.nn.Parameter(torch.ones(3))):
        assert torch.equal(example_scaled(x, "a note"), torch.full((3,), 2.0))
    assert callers == ["call", "call"]


def test_modes_and_profilers_see_the_operation():
    with Called() as called:
        example_scaled(torch.ones(3), "")
    assert "fastdigin::example_scaled" in called.names
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        example_scaled(torch.ones(3), "")
    assert "fastdigin::example_scaled" in {event.key for event in profile.key_averages()}
    example_scaled(torch.ones(3), "")
    assert callers[-1] == "call"


def test_a_compiler_keeps_the_operation_whole():
    graphs = []
    torch._dynamo.reset()
    torch.compile(
        lambda x: example_scaled(x, "") + 1, fullgraph=True,
        backend=lambda graph, _: graphs.append(graph) or graph,
    )(torch.ones(3))  # fmt: skip
    assert any(str(node.target).startswith("fastdigin.") for node in graphs[0].graph.nodes)


def test_fake_and_transformed_tensors_go_to_the_dispatcher():
    with torch._subclasses.FakeTensorMode():
        x = torch.ones(3)
    assert example_scaled(x, "").shape == (3,) and callers == []
    output, _ = torch.func.vjp(lambda x: example_scaled(x, ""), torch.ones(3))
    assert torch.equal(output, torch.full((3,), 2.0))
    assert callers and "call" not in callers


@pytest.mark.parametrize("name", PRIVATE)
def test_without_a_private_name_the_dispatcher_is_always_taken(name):
    with missing(name):
        assert torch.equal(example_scaled(torch.ones(3), ""), torch.full((3,), 2.0))
    assert callers and "call" not in callers


@pytest.mark.parametrize(("operation", "impl"), pairs("torch", "cpp", "triton"))
def test_without_private_names_results_and_gradients_are_the_same(operation, impl):
    operation = OPERATIONS[operation]
    inputs = operation.inputs(operation.cases[0], torch.float32, device_of(impl))
    expected = operation.results(impl, inputs)
    with missing("_len_torch_dispatch_stack"):
        for a, e in zip(operation.results(impl, inputs), expected, strict=True):
            assert torch.equal(a, e)
        with torch.no_grad():
            assert torch.equal(operation.by(impl)(*inputs), expected[0])
        x, *rest = inputs
        assert_all_ways_agree(lambda x: operation.by(impl)(x, *rest), x)


@pytest.mark.skipif(INTERPRETED, reason="nothing of Triton")
def test_private_names_are_used_in_one_small_file():
    private = re.compile(r"torch(\.\w+)*\._[a-zA-Z]|from torch[\w.]* import .*\b_\w+|torch\._C")
    (folder,) = fastdigin_kernels.__path__
    found = {path.name for path in Path(folder).rglob("*.py") if private.search(path.read_text())}
    assert found == {"shortcuts.py"}


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


def cube(x):
    return differentiable(Cube)()(x)


def test_a_call_gives_what_is_not_kept_and_its_gradient():
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    output, gradient = output_and_gradient(cube, x)
    torch.testing.assert_close((output, gradient), output_and_gradient(lambda x: x * x * x, x))
    assert [t.shape for t in kept_tensors(cube, x)] == [x.shape]
    with torch.no_grad():
        assert torch.equal(cube(x.requires_grad_()), output)
