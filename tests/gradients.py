"""Ways to take the gradient of a function, what autograd keeps for it, and what runs."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdigin.engine.compile_choice import cannot_compile

Function = Callable[[Tensor], Tensor]


def probe(output: Tensor) -> Tensor:
    """Some incoming gradient, in the memory format of the output."""
    values = torch.cos(torch.arange(output.numel(), dtype=torch.float64)).view(output.shape)
    return torch.empty_like(output).copy_(values)


def output_and_gradient(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """By autograd, in eager mode."""
    x = x.detach().requires_grad_()
    output = function(x)
    return output.detach(), torch.autograd.grad(output, x, probe(output))[0]


def assert_all_ways_agree(function: Function, x: Tensor) -> None:
    """torch.func.vjp and the three ways to compile a gradient give what autograd gives."""
    expected = output_and_gradient(function, x)
    incoming = probe(expected[0])

    def by_vjp(x):
        output, vjp = torch.func.vjp(function, x)
        return output, vjp(incoming)[0]

    def by_grad(x):
        x = x.detach().requires_grad_()
        output = function(x)
        return output.detach(), torch.autograd.grad(output, x, incoming)[0]

    def compiled(f):
        torch._dynamo.reset()
        return torch.compile(f, fullgraph=True, backend="aot_eager")

    ways = {"func.vjp": by_vjp}
    if cannot_compile(x.device) is None:
        ways["compiled func.vjp"] = compiled(by_vjp)
        ways["compiled autograd graph"] = lambda x: output_and_gradient(compiled(function), x)
        if hasattr(torch._dynamo.config, "trace_autograd_ops"):
            traced = torch._dynamo.config.patch(trace_autograd_ops=True)
            ways["compiled autograd.grad"] = traced(lambda x: compiled(by_grad)(x))
    for name, way in ways.items():
        for part, actual, wanted in zip(("output", "gradient"), way(x), expected, strict=True):
            torch.testing.assert_close(
                actual, wanted, msg=lambda m, n=name, p=part: f"{p} by {n}: {m}"
            )


def kept_tensors(function: Function, x: Tensor) -> list[Tensor]:
    """What autograd keeps for the backward of ``function(x)``."""
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(x.detach().requires_grad_())
    return kept


class Called(TorchDispatchMode):
    """calls: (operation, arguments) of what runs inside. names: of them, like "aten::mm"."""

    def __init__(self):
        super().__init__()
        self.calls = []

    @property
    def names(self) -> list[str]:
        return [function.name() for function, _ in self.calls]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls.append((function, args))
        return function(*args, **(kwargs or {}))
