"""Who watches torch's dispatcher still sees an operation; who does not calls its function."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdigin_kernels.common.registry import register

NAME = "fastdigin::doubled_in_a_test"


def _doubled(x: Tensor, note: str) -> Tensor:
    callers.append(sys._getframe(1).f_code.co_name)
    return 2 * x


callers: list[str] = []
doubled = register(
    NAME.partition("::")[2], _doubled, lambda x, note: x.new_empty(x.shape, device="meta")
)


@pytest.fixture(autouse=True)
def clear():
    callers.clear()


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function.name())
        return function(*args, **(kwargs or {}))


def test_unwatched_it_is_the_function_alone():
    for x in (torch.ones(3), torch.nn.Parameter(torch.ones(3))):
        assert torch.equal(doubled(x, "a note"), torch.full((3,), 2.0))
    assert callers == ["call", "call"]


def test_a_mode_sees_the_operation():
    with Watch() as watch:
        doubled(torch.ones(3), "")
    assert NAME in watch.seen


def test_a_profiler_names_the_operation():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        doubled(torch.ones(3), "")
    assert NAME in {event.key for event in profile.key_averages()}
    doubled(torch.ones(3), "")
    assert callers[-1] == "call"


def test_a_compiler_keeps_the_operation_whole():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: doubled(x, "") + 1, fullgraph=True, backend=backend)
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 3.0))
    assert any(str(node.target).startswith("fastdigin.") for node in graphs[0].graph.nodes)


def test_tensors_without_numbers_take_its_fake():
    with torch._subclasses.FakeTensorMode():
        x = torch.ones(3)
    assert doubled(x, "").shape == (3,) and callers == []


def test_what_a_transform_has_wrapped_goes_to_the_dispatcher():
    output, _ = torch.func.vjp(lambda x: doubled(x, ""), torch.ones(3))
    assert torch.equal(output, torch.full((3,), 2.0))
    assert callers and "call" not in callers
