"""Whether a batch may go on with fewer slots: where that changes no bit.

A result on a CPU does not depend on its neighbours, so a batch whose jobs end one by one may only
shrink to a number of rows with which all operations round as before. Which these are is for the
libraries to say (how a product is blocked, which algorithm a convolution takes for so many images):
so a step is taken there and back with either number, once, and compared.
"""

import torch
from torch import Tensor

from fastdigin.engine.costs import step_inputs
from fastdigin.engine.memory import is_out_of_memory
from fastdigin.engine.sampler import StepFunctions
from fastdigin.models.diffusion import LatentDiffusion


class Widths:
    """Compares a step of some slots, as it is (not compiled), with the same step of more.

    model: whose step.
    """

    def __init__(self, model: LatentDiffusion):
        self._model, self._found = model, {}

    def agree(self, wide: int, narrow: int, guided: bool, text_length: int) -> bool:
        """Whether ``narrow`` slots come out as they do among ``wide``, bit by bit."""
        try:
            few, many = (self._step(n, guided, text_length) for n in (narrow, wide))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        return all(torch.equal(x[:narrow], y[:narrow]) for x, y in zip(few, many, strict=True))

    def _step(self, slots: int, guided: bool, text_length: int) -> list[Tensor]:
        """Outputs and gradients of a step of different rows, always the same."""
        key = slots, guided, text_length, torch.get_num_threads()
        if key not in self._found:
            z, cond, null, step = step_inputs(self._model, slots, guided, text_length)
            functions = StepFunctions(self._model)
            graph = functions.forward_with_graph(
                _numbers(z), _numbers(cond), None if null is None else _numbers(null).flip(-1), step
            )
            outputs = [graph.z_prev.detach(), graph.x0.detach()]
            gradients = functions.vjp(graph, *(_numbers(x).flip(-1) for x in outputs))
            self._found[key] = [*outputs, *gradients]
        return self._found[key]


def _numbers(like: Tensor) -> Tensor:
    """In [-1, 1], those of the first rows the same however many there are."""
    numbers = torch.arange(like.numel(), device=like.device, dtype=torch.float64).sin()
    return numbers.view(like.shape).to(like)
