"""What the kernels mean to a whole step."""

import pytest
import torch

from fastdigin.errors import UserError
from fastdigin_bench import kernel_steps


def test_other_losses_are_not_compared(monkeypatch):
    losses = {"sdpa": torch.ones(2), "cpp": torch.ones(2)}
    monkeypatch.setattr(kernel_steps, "Engine", lambda model, **kwargs: model)
    monkeypatch.setattr(kernel_steps.LatentDiffusion, "load", lambda name, attention: attention)
    monkeypatch.setattr(kernel_steps, "losses_of", losses.get)
    seconds = {"sdpa": [4.0, 6.0], "cpp": [2.0, 4.0]}
    monkeypatch.setattr(kernel_steps, "time_in_turns", lambda *given: seconds)
    found = kernel_steps.engine_ratio(["sdpa", "cpp"])
    assert found["ratio"] == {"cpp": 1.75} and found["loss_difference"] == 0
    assert found["seconds"] == {"sdpa": 2.5, "cpp": 1.5}, "of two iterations"
    losses["cpp"] = torch.tensor([1.0, 1.01])
    with pytest.raises(UserError, match="'cpp' and 'sdpa' differ by"):
        kernel_steps.engine_ratio(["sdpa", "cpp"])


def test_shares_of_the_embedded_step(monkeypatch):
    monkeypatch.setattr(kernel_steps, "_PROFILED", {"embedded": 1})
    found = kernel_steps.step_shares("embedded", "sdpa")
    assert found["seconds"] > 0 and found["attention"] > 0.02 and found["convolutions"] > 0.1
    assert sum(found.values()) - found["seconds"] == pytest.approx(1, abs=0.01)
