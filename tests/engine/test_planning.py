"""Memory budgets: what they mean, what is planned from them, and what happens when they fail."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from tiny import build_classifier, make_blending, make_injection, make_job, make_source

from fastdigin.engine import memory, sampler
from fastdigin.engine.engine import Engine
from fastdigin.engine.live_bytes import LiveBytes
from fastdigin.engine.sampler import Step, StepFunctions, unrolled_backward, unrolled_forward
from fastdigin.errors import UserError
from fastdigin.objectives import ClassConfidence, Cutouts

CPU, STEPS = torch.device("cpu"), 6


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.model


def jobs(model, count, iterations=2, **arguments):
    loss = ClassConfidence(build_classifier(), 0, cutouts=Cutouts(4))
    for seed in range(count):
        yield make_job(
            model,
            id=str(seed),
            losses=[loss],
            seed=seed,
            steps=STEPS,
            iterations=iterations,
            **arguments,
        )


@pytest.mark.parametrize(
    ("text", "size"),
    [("12GiB", 12 * 2**30), ("1.5 gb", 1.5e9), ("500MB", 5e8), ("64KiB", 65536), (1000, 1000)],
)
def test_sizes_are_read(text, size):
    assert memory.parse_memory(text, CPU) == size


@pytest.mark.parametrize("text", ["", "lots", "12 parsec", "-3GB", "0", 0, "1.2.3GB", "GiB"])
def test_malformed_sizes_are_refused_before_any_work(model, text):
    with pytest.raises(UserError, match="memory must be 'auto' or a size like '12GiB'"):
        Engine(model, memory=text)


@pytest.mark.parametrize(
    ("cgroup", "files", "rest"),
    [
        ("0::/", {}, 8000),
        ("0::/a/b", {"a/b/memory.max": "5000", "a/b/memory.current": "2000"}, 3000),
        ("0::/a/b", {"a/memory.max": "5000", "a/memory.current": "2000"}, 3000),
        ("0::/far", {"memory.max": "5000", "memory.current": "4500"}, 500),
        ("0::/a", {"a/memory.max": "max", "a/memory.current": "2000"}, 8000),
        (
            "5:cpu:/x\n4:memory:/a",
            {"memory/a/memory.limit_in_bytes": "900", "memory/a/memory.usage_in_bytes": "1000"},
            0,
        ),
    ],
)
def test_free_memory_respects_control_groups(monkeypatch, tmp_path, cgroup, files, rest):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(cgroup + "\n")
    for name, content in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(content + "\n")
    monkeypatch.setattr(memory, "_PROC", proc)
    monkeypatch.setattr(memory, "_CGROUP", groups)
    available = SimpleNamespace(available=8000)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: available)
    assert memory.free_memory(CPU) == rest
    assert memory.parse_memory("auto", CPU) == int(memory.SHARE_OF_FREE * rest)


def test_live_bytes_follow_storages():
    outside = torch.ones(1000)
    with LiveBytes() as live:
        a = outside.view(10, 100)[:, :50]
        assert live.now == 0, "views of what was there before take nothing"
        b = a + 1
        view = b[2:]
        del b
        assert live.now == 500 * 4, "a view holds the whole storage"
        del view
        assert live.now == 0 and live.peak == 500 * 4
        x = torch.ones(64, 64, requires_grad=True)
        y = (x.exp() * 2).sum()
        assert live.now == 2 * 64 * 64 * 4 + 4, "exp saved its output"
        torch.autograd.grad(y, x)
        del y
        assert live.now == 64 * 64 * 4 and live.peak <= 5 * 64 * 64 * 4


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize(("slots", "kept"), [(1, 0), (2, 3), (4, 0), (4, STEPS)])
def test_the_predicted_peak_is_the_measured_one(model, slots, kept, edited):
    """And with it as the budget, no fewer steps are kept: the first may cost nothing more."""
    edits = {}
    if edited:
        source = make_source(model, "a photo of a red sneaker", STEPS)
        weights = (1.0, 1.0) + (0.0,) * (STEPS - 2)
        edits["injection"] = make_injection(model, source, "a photo of a cat", weights, "queries")
        edits["blending"] = make_blending(source, weights)
    planned = Engine(model, memory="1GiB", slots=slots, kept_steps=kept)
    with LiveBytes() as live:
        results = list(planned.run(jobs(model, slots, **edits)))
    assert [r.status for r in results] == ["done"] * slots
    assert planned.plan.predicted == pytest.approx(live.peak, rel=0.12)

    again = Engine(model, memory=planned.plan.predicted, slots=slots)
    list(again.run(jobs(model, slots, **edits)))
    assert again.plan.slots == slots and kept <= again.plan.kept_steps <= max(kept, 1)
    assert again.plan.predicted == planned.plan.predicted


def test_peak_does_not_grow_with_the_steps(embedded):
    """But for the latents of each step, and the gradients that are the result."""
    text = embedded.encode_prompts(["a photo of a red boot", ""])
    z = torch.zeros(2, *embedded.latent_shape)
    peaks = []
    for count in (5, 50):
        table = embedded.ddim_table(count)
        steps = [
            Step(t.expand(2), row.float().expand(2, 4), torch.tensor([3.0, 3.0]))
            for t, row in zip(table.timesteps, table.step, strict=True)
        ]
        cond, null = (x.expand(2, count, -1, -1) for x in text)
        with LiveBytes() as live:
            run = unrolled_forward(StepFunctions(embedded), z, cond, null, steps, 1)
            unrolled_backward(StepFunctions(embedded), run.inputs, cond, null, steps, [z])
        of_each_step = z.numel() + cond[:, 0].numel() + null[:, 0].numel()
        peaks.append(live.peak - 4 * count * of_each_step)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.05)


def test_a_budget_that_holds_nothing_is_an_error_before_work(model):
    with pytest.raises(UserError, match="memory: 10 KiB do not hold 2 slots with 0 kept steps"):
        list(Engine(model, memory="10KiB", slots=2).run(jobs(model, 2)))
    with pytest.raises(UserError, match="memory: 10 KiB do not hold 1 slot with"):
        Engine(model, memory="10KiB").slots  # noqa: B018


def test_auto_goes_on_with_the_least(model, monkeypatch, caplog):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    engine = Engine(model)
    with caplog.at_level(logging.WARNING):
        (result,) = engine.run(jobs(model, 1))
    assert result.status == "done" and (engine.slots, engine.plan.kept_steps) == (1, 0)
    assert "trying all the same" in caplog.text


def test_slots_come_before_kept_steps(model):
    """As many slots as fit without kept steps, eight at most; what is left keeps steps."""
    planned = {}
    for exponent in range(80):
        engine = Engine(model, memory=int(2**20 * 1.1**exponent))
        try:
            planned[exponent] = engine.slots
        except UserError:
            assert not planned, "what holds a slot holds it with more memory as well"
    slots = list(planned.values())
    assert slots == sorted(slots) and set(slots) == {1, 2, 4, 8}
    first = min(exponent for exponent, found in planned.items() if found == 8)
    tight, ample = (Engine(model, memory=int(2**20 * 1.1**e)) for e in (first, first + 40))
    for engine in (tight, ample):
        list(engine.run(jobs(model, 8)))
    assert tight.plan.kept_steps < ample.plan.kept_steps == STEPS


class Scarce:
    """Lets the U-Net run out of memory whenever graphs of more than ``most`` rows are alive."""

    def __init__(self, model, monkeypatch, most):
        self.graphs = self.failures = 0
        predict, pull_back = model.predict, sampler.pull_back

        def scarce(z, *args):
            if torch.is_grad_enabled():
                if len(z) * (self.graphs + 1) > most:
                    self.failures += 1
                    raise torch.OutOfMemoryError("CUDA out of memory. (pretended)")
                self.graphs += 1
            else:
                self.graphs = 0
            return predict(z, *args)

        def consume(*args):
            self.graphs -= 1
            return pull_back(*args)

        monkeypatch.setattr(model, "predict", scarce)
        monkeypatch.setattr(sampler, "pull_back", consume)


@pytest.mark.parametrize(("most", "slots", "kept"), [(16, 4, 1), (8, 4, 1), (7, 2, 0), (3, 1, 0)])
def test_running_out_of_memory_loses_nothing(model, monkeypatch, caplog, most, slots, kept):
    """Rows are twice the slots with guidance; six kept steps of four slots are 48 at once."""
    expected = {r.id: r for r in Engine(model, slots=4, kept_steps=0).run(jobs(model, 6))}
    scarce = Scarce(model, monkeypatch, most)
    engine = Engine(model, slots=4, kept_steps=STEPS)
    with caplog.at_level(logging.WARNING):
        results = list(engine.run(jobs(model, 6)))
    assert scarce.failures > 0 and "out of memory with 4 slots" in caplog.text
    assert (engine.plan.slots, engine.plan.kept_steps) == (slots, kept)
    assert sorted(r.id for r in results) == sorted(expected)
    for result in results:
        wanted = expected[result.id]
        assert result.status == "done" and len(result.history) == len(wanted.history) == 3
        torch.testing.assert_close(result.image, wanted.image, rtol=0, atol=1e-6)


def test_memory_that_never_suffices_fails_the_jobs_one_by_one(model, monkeypatch):
    Scarce(model, monkeypatch, most=0)
    results = list(Engine(model, slots=2, kept_steps=1).run(jobs(model, 3)))
    assert [r.status for r in results] == ["failed"] * 3
    assert all("out of memory even alone" in r.error for r in results)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert memory.is_out_of_memory(error) is expected
