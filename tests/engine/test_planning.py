"""Memory budgets: what they mean, what is planned from them, and what happens when they fail."""

import logging

import pytest
import torch
from pretended import PretendedGpu
from tiny import make_job, make_source

from fastdigin import hardware
from fastdigin.editing.attention_store import store_attention
from fastdigin.engine import memory
from fastdigin.engine.engine import Engine
from fastdigin.errors import UserError

CPU, STEPS = torch.device("cpu"), 6


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.model


def jobs(model, count):
    return [make_job(model, id=str(seed), seed=seed, steps=STEPS) for seed in range(count)]


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


@pytest.mark.parametrize("slots", [0, 10**30, 2.5, True])
def test_slots_must_be_a_count(model, slots):
    with pytest.raises(UserError, match="slots must be .*, got"):
        Engine(model, slots=slots)


def test_a_budget_that_holds_nothing_is_an_error_before_work(model):
    with pytest.raises(UserError, match="memory: 10 KiB do not hold 2 slots with 0 kept steps"):
        list(Engine(model, memory="10KiB", slots=2).run(jobs(model, 2)))
    with pytest.raises(UserError, match="memory: 10 KiB do not hold 1 slot with"):
        Engine(model, memory="10KiB").slots  # noqa: B018


def test_auto_goes_on_with_the_least(model, monkeypatch, caplog):
    monkeypatch.setattr(hardware.Hardware, "free_memory", lambda self: 1000)
    engine = Engine(model)
    with caplog.at_level(logging.WARNING):
        (result,) = engine.run(jobs(model, 1))
    assert result.status == "done" and (engine.slots, engine.plan.kept_steps) == (1, 0)
    assert "trying all the same" in caplog.text


def test_slots_come_before_kept_steps(model):
    """As many slots as fit without kept steps, eight at most; what is left keeps steps."""
    planned = {}
    for exponent in range(28):
        engine = Engine(model, memory=int(2**20 * 1.35**exponent))
        try:
            planned[exponent] = engine.slots
        except UserError:
            assert not planned, "what holds a slot holds it with more memory as well"
    slots = list(planned.values())
    assert slots == sorted(slots) and set(slots) == {1, 2, 4, 8}
    first = min(exponent for exponent, found in planned.items() if found == 8)
    tight, ample = (Engine(model, memory=int(2**20 * 1.35**e)) for e in (first, first + 14))
    for engine in (tight, ample):
        list(engine.run(jobs(model, 8)))
    assert tight.plan.kept_steps < ample.plan.kept_steps == STEPS


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `create`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `create`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDNN_STATUS_NOT_SUPPORTED: not enough memory for a workspace"), True),
        (RuntimeError("CUDNN_STATUS_NOT_SUPPORTED: the input is not contiguous"), False),
        (RuntimeError("shapes differ"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert memory.is_out_of_memory(error) is expected


class Timed(PretendedGpu):
    """A GPU whose clock goes on by ``seconds_of(rows)`` with every call of the U-Net."""

    def __init__(self, model, monkeypatch, seconds_of, **options):
        super().__init__(**options)
        self.now, predict = 0.0, model.predict

        def slow(z, *args):
            self.now += seconds_of(len(z))
            return predict(z, *args)

        monkeypatch.setattr(model, "predict", slow)

    def seconds(self):
        return self.now


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize(
    ("seconds_of", "slots"),
    [
        (lambda rows: max(rows, 8), 4),  # two rows a slot: full with four
        (lambda rows: rows, 1),  # nothing is gained by a batch
        (lambda rows: 1 + rows, 8),  # 3, 2.5, 2.25, 2.125 and then 2.0625 an image
        (lambda rows: max(rows, 4), 2),
    ],
)
def test_a_gpu_has_as_many_slots_as_still_pay(model, monkeypatch, seconds_of, slots, graphs):
    gpu = Timed(model, monkeypatch, seconds_of, graphs=graphs)
    with hardware.pretend(gpu):
        assert Engine(model, compile="off").slots == slots


def test_a_gpu_is_filled_to_nine_tenths(model):
    with hardware.pretend(PretendedGpu(free=1000)):
        assert memory.parse_memory("auto", CPU) == 900


def test_sources_that_fill_a_gpu_wait_in_the_hosts_memory(model):
    sources = [make_source(model, "a photo of a sneaker", STEPS, seed) for seed in range(2)]

    class Counted(PretendedGpu):
        moved = 0

        def to_host(self, tensor):
            self.moved += 1
            return tensor.clone()

    found = {}
    for free in (2**40, 2**14):
        with hardware.pretend(Counted(free=free)) as gpu:
            stores = store_attention(model, sources, [0.5], [0.5], batch=2)
        found[gpu.moved > 0] = [store.layers for store in stores]
    for ample, scarce in zip(found[False], found[True], strict=True):
        for layer, source in ample.items():
            assert torch.equal(scarce[layer].tensor, source.tensor)
