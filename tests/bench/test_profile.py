"""Counts of the profile against counts by hand, and tasks driven with and without replay."""

import json
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdigin.hardware import LiveBytes
from fastdigin_bench.command import PROFILED_MENDS
from fastdigin_bench.profile import report, stages
from fastdigin_bench.profile.gpus import GPUS
from fastdigin_bench.profile.ledger import Counts, Ledger
from fastdigin_bench.profile.networks import build
from fastdigin_bench.profile.replay import replay
from fastdigin_bench.profile.workload import TASKS, task_class

F32 = torch.float32


@pytest.fixture
def ledger():
    """One that counts in the test, on fake tensors."""
    live = LiveBytes()
    made = Ledger(live)
    with FakeTensorMode(), live, made:
        yield made


def counted(ledger, run) -> Counts:
    counts = Counts()
    with ledger.into(counts):
        run()
    return counts


def test_products_count_flops_and_other_operations_bytes(ledger):
    a, b, x = torch.empty(8, 16), torch.empty(16, 32), torch.empty(10, 3)
    product = counted(ledger, lambda: a @ b)
    assert product.flops == {("linear", F32): 2 * 8 * 16 * 32}
    assert (product.bytes, product.kernels, product.launches) == (0, 1, 1)
    added = counted(ledger, lambda: x + x.new_empty(3).expand(10, 3))
    assert added.bytes == 4 * (30 + 3 + 30) and added.kernels == 1  # an expanded row is read once
    filled = counted(ledger, x.zero_)
    assert filled.bytes == 4 * 30  # written, not read


def test_a_convolution_and_its_backward(ledger):
    conv = nn.Conv2d(4, 8, 3, padding=1).requires_grad_(False)
    x = torch.empty(2, 4, 6, 6, requires_grad=True)
    once = 2 * (2 * 8 * 6 * 6) * (4 * 3 * 3)
    out = []
    assert counted(ledger, lambda: out.append(conv(x))).flops == {("convolution", F32): once}
    backward = counted(ledger, lambda: torch.autograd.grad(out[0].sum(), x))
    assert backward.flops["convolution", F32] == once  # the input's gradient alone


def test_attention_runs_forward_and_backward_at_rates_of_their_own(ledger):
    q, k, v = (torch.empty(2, 4, n, 8, requires_grad=True) for n in (64, 16, 16))
    out = []
    attend = nn.functional.scaled_dot_product_attention
    forward = counted(ledger, lambda: out.append(attend(q, k, v)))
    product = 2 * 2 * 4 * 64 * 16 * 8
    assert forward.flops == {("attention", F32): 2 * product}
    backward = counted(ledger, lambda: torch.autograd.grad(out[0], q, torch.empty_like(q)))
    assert backward.flops == {("attention_backward", F32): 5 * product}


@pytest.mark.parametrize(("run", "copies"), [
    (lambda x: x.contiguous(memory_format=torch.channels_last), 1),
    (lambda x: x.contiguous(), 0),
    (lambda x: x.clone(), 0),
    (lambda x: x.to(memory_format=torch.channels_last).contiguous(), 2),
    (lambda x: torch.empty_like(x, memory_format=torch.channels_last).copy_(x), 1),
    (lambda x: x.transpose(2, 3).contiguous(), 0),
    (lambda x: x.half(), 0),
])  # fmt: skip
def test_layout_copies_are_those_between_memory_formats(ledger, run, copies):
    x = torch.empty(2, 4, 6, 6)
    assert counted(ledger, lambda: run(x)).layout_copies == copies


def test_a_convolution_copies_what_is_not_in_its_weights_layout(ledger):
    conv = nn.Conv2d(4, 8, 3)
    x, weight = torch.empty(2, 4, 6, 6), torch.empty(8, 4, 3, 3)
    last = weight.contiguous(memory_format=torch.channels_last)
    convolve = nn.functional.conv2d
    assert counted(ledger, lambda: convolve(x, weight, conv.bias)).layout_copies == 0
    assert counted(ledger, lambda: convolve(x, last, conv.bias)).layout_copies == 1
    in_format = x.contiguous(memory_format=torch.channels_last)
    assert counted(ledger, lambda: convolve(in_format, last, conv.bias)).layout_copies == 0


def test_what_the_host_reads_is_a_wait_and_looks_fine(ledger):
    x = torch.empty(3)
    read = []
    counts = counted(ledger, lambda: read.extend([x.sum().item(), bool(x.isfinite().all())]))
    assert counts.waits == 2 and read == [0.5, True]
    assert counted(ledger, lambda: torch.tensor(5.0).item()).waits == 0, "it never left the host"


def test_a_graph_is_one_launch_of_many_kernels(ledger):
    x = torch.empty(3)

    def run():
        with ledger.one_launch():
            x + x
            x * x

    counts = counted(ledger, run)
    assert (counts.kernels, counts.launches) == (2, 1)


def test_seconds_follow_the_fixed_formula():
    rates = GPUS["h100"].rates
    counts = Counts(bytes=5 * 10**12)
    counts.flops["convolution", torch.bfloat16] = 900 * 10**12
    counts.flops["attention_backward", torch.float16] = 150 * 10**12
    counts.flops["linear", F32] = 100 * 10**12
    assert counts.seconds(rates) == pytest.approx(900 / 450 + 150 / 150 + 100 / 50 + 5 / 2.5)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3).requires_grad_(False)

    def forward(self, x):
        return self.conv(x).sigmoid()


def test_a_replayed_pass_costs_what_the_first_one_did(ledger):
    def passes(network):
        for batch in (2, 2, 4, 2):
            x = torch.empty(batch, 3, 8, 8, requires_grad=True)
            out = network(x)
            torch.autograd.grad(out, x, torch.empty_like(out))
            with torch.no_grad():
                network(x)

    plain, replayed = Small(), Small()
    replay(replayed, "network", ledger)
    expected, found = (counted(ledger, lambda n=n: passes(n)) for n in (plain, replayed))
    for name in ("flops", "bytes", "kernels", "launches", "layout_copies", "waits"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.calls == {
        ("network", "recorded"): 4, ("network", "backward"): 4, ("network", "plain"): 4
    }  # fmt: skip
    assert found.rows["network", "plain"] == 2 + 2 + 4 + 2


def test_a_replayed_pass_holds_and_peaks_like_the_first_one(ledger):
    def peak(network):
        ledger.live.peak = before = ledger.live.now
        x = torch.empty(2, 3, 64, 64, requires_grad=True)
        out = network(x)
        held = ledger.live.now - before
        torch.autograd.grad(out, x, torch.empty_like(out))
        return held, ledger.live.peak - before

    network = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)), nn.Sigmoid())
    network.requires_grad_(False)
    expected = peak(network)
    replay(network, "network", ledger)
    peak(network)
    assert peak(network) == pytest.approx(expected, rel=0.02)


def options(**given) -> Namespace:
    default = {
        "gpu": "h100", "model": "embedded", "task": "counterfactual", "dtype": "bf16", "slots": 2,
        "preset": None, "without": (), "contributions": False,
    }  # fmt: skip
    return Namespace(**default | given)


def driven(task="counterfactual", iterations=2, steps=4, name="embedded", **given):
    """A model at a few steps."""
    model, classifier = build(name, torch.bfloat16)
    settings = task_class(task).default_settings(model)
    settings = replace(
        settings, optimisation=replace(settings.optimisation, steps=steps, iterations=iterations)
    )
    if hasattr(settings, "null_text_steps"):
        settings = replace(settings, inversion_method="null-text", null_text_steps=2)
    return stages.drive(
        task, model, classifier, settings, GPUS["h100"], slots=2, kept_steps=1, **given
    )


@pytest.mark.slow
def test_a_drive_counts_the_same_with_and_without_replay(monkeypatch):
    found = driven(iterations=1, steps=2)
    monkeypatch.setattr(stages, "_replay_networks", lambda *_: None)
    expected = driven(iterations=1, steps=2)
    for stage in stages.STAGES:
        both = []
        for run in (found, expected):
            total = Counts()
            for (name, _), counts in run.totals.items():
                if name == stage:
                    total.add(counts)
            both.append((total.flops, total.bytes, total.kernels, total.layout_copies, total.waits))
        assert both[0] == both[1], stage
    assert found.peak == pytest.approx(expected.peak, rel=0.05)


@pytest.mark.slow
def test_iterations_that_are_noted_cost_what_they_would(monkeypatch):
    noted = driven(iterations=4, steps=2)
    monkeypatch.setattr(stages, "DRIVEN", 4)
    run = driven(iterations=4, steps=2)
    of_both = [
        {key: counts for key, counts in each.totals.items() if key[0] != "preparation"}
        for each in (noted, run)
    ]
    assert of_both[0] == of_both[1] and noted.peak == run.peak


def test_the_loop_itself_says_how_often_it_ran():
    # A graph that is recorded runs once more.
    found = driven(iterations=3, steps=4, without=tuple(PROFILED_MENDS))
    unet = found.totals["iterations", "unet"].calls
    # Of 4 steps one is kept; the others run forward, and again with a graph in the backward.
    assert (unet["unet", "plain"], unet["unet", "recorded"]) == (3 * 3, 3 * 4)
    assert unet["unet", "backward"] == 3 * 4
    inversion = found.totals["inversion", "unet"].calls
    assert inversion["unet", "backward"] == 4 * 2, "two updates of the null text a step"
    assert found.iterations == 3 and len(found.records) == 2


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_driven_to_its_records(task):
    found = driven(task, iterations=1, steps=2)
    assert [record.error for record in found.records] == [None, None]
    assert found.totals["iterations", "other"].waits == 1


@pytest.fixture(scope="module")
def usual():
    return driven(iterations=1, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize(("mend", "figure", "without_it"), [
    ("graphs", "host_launches_per_iteration", 2000),
    ("batches", "decodes_per_iteration", 4),  # 2 slots, 2 steps that count
    ("passes", "kernels_per_iteration", 2000),
    ("layout", "layout_copies_per_step", 10),
    ("gates", "kernels_per_iteration", 2000),
    ("waits", "waits_per_iteration", 2),
])  # fmt: skip
def test_a_mend_that_is_turned_off_is_missed_where_it_should_be(usual, mend, figure, without_it):
    found = driven(iterations=1, steps=2, without=[mend])
    by_figure = (report.figures(run, GPUS["h100"].rates, 2)[figure] for run in (usual, found))
    with_it, without = by_figure
    assert with_it < without and without >= without_it


@pytest.mark.slow
@pytest.mark.parametrize("task", ["counterfactual", "disagreement"])
def test_what_was_held_and_what_was_planned_make_the_peak(task):
    found = driven(task, iterations=2, steps=4, name="sd-1.4")
    assert found.held + found.plan.predicted == pytest.approx(found.peak, rel=0.05)


def test_the_line_of_json_has_what_was_agreed(capsys, monkeypatch):
    monkeypatch.setattr(report, "drive", lambda *_, **__: driven(iterations=1, steps=2))
    assert report.run(options()) == 0
    out = capsys.readouterr().out
    assert out.startswith("ESTIMATE")
    found = json.loads(out.splitlines()[-1])
    assert found["images_per_hour"] > 0 and found["slots"] == 2 and found["peak_bytes"] > 0
    for stage in found["stages"].values():
        assert {"seconds", "TFLOP", "bytes", "kernels", "host_launches"} <= stage.keys()
    seconds = sum(stage["seconds"] for stage in found["stages"].values())
    assert found["images_per_hour"] == pytest.approx(3600 * 2 / seconds, rel=0.3)
    assert found["rates"]["convolution_tflops"] == 450
    assert found["waits_per_iteration"] == 1 and found["decodes_per_iteration"] == 2
    assert found["host_launches_per_iteration"] > 100
