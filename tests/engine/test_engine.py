"""What the engine does when: evaluations, refills, early stops, and how much work that takes."""

from dataclasses import replace

import pytest
import torch
from tiny import IMAGE_SHAPE, build_classifier, make_job, uniform

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Candidate, EarlyStop
from fastdigin.objectives import ClassConfidence, Cutouts, Distance

STEPS = 4


class Counter:
    """A loss that remembers what it was asked."""

    name, weight = "counted", 2.0

    def __init__(self):
        self.keys, self.gradients_wanted = [], []

    def __call__(self, candidate: Candidate):
        self.keys.append(candidate.key)
        self.gradients_wanted.append(candidate.image.requires_grad)
        return candidate.image.square().mean() + candidate.latents.square().mean()


@pytest.fixture
def calls(tiny, monkeypatch):
    """Counts calls of the model, and those with a graph; "rows" are those of the U-Net."""
    counts = {"unet": 0, "unet with graph": 0, "decode": 0, "decode with graph": 0, "rows": set()}
    for kind, name in (("unet", "predict"), ("decode", "decode")):
        original = getattr(tiny.model, name)

        def counted(latents, *args, kind=kind, original=original):
            counts[kind] += 1
            if kind == "unet":
                counts["rows"].add(len(latents))
            counts[kind + " with graph"] += torch.is_grad_enabled()
            return original(latents, *args)

        monkeypatch.setattr(tiny.model, name, counted)
    return counts


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize("last_steps", [1, 3])
def test_work_per_iteration(tiny, calls, iterations, last_steps):
    """T calls forward and T again for each update; one decode per x0; nothing for the last one."""
    loss = Counter()
    job = make_job(
        tiny.model, losses=[loss], iterations=iterations, last_steps=last_steps, seed=7
    )  # fmt: skip
    (result,) = Engine(tiny.model, slots=2, kept_steps=0).run([job])
    assert len(result.history) == iterations + 1 and result.iterations == iterations
    assert calls["unet"] == STEPS * (2 * iterations + 1)
    assert calls["unet with graph"] == STEPS * iterations
    assert calls["decode"] == last_steps * iterations + 1
    assert calls["decode with graph"] == last_steps * iterations
    # Every x0 with its key, the last one plain as well, on the same decode; at the end plain only.
    expected = []
    for i in range(iterations):
        keys = [(7, i, k) for k in range(last_steps)]
        expected += [*keys, None]
    assert loss.keys == [*expected, None]
    assert loss.gradients_wanted == [key is not None for key in loss.keys]


@pytest.mark.parametrize(("guidance", "rows"), [(3.0, 8), (1.0, 4)])
def test_without_guidance_there_is_no_null_branch(tiny, calls, guidance, rows):
    jobs = [make_job(tiny.model, str(k), iterations=1, guidance_scale=guidance) for k in range(4)]
    results = list(Engine(tiny.model, slots=4, kept_steps=1).run(jobs))
    assert [result.status for result in results] == ["done"] * 4
    assert calls["rows"] == {rows}


def test_history_is_the_plain_loss(tiny):
    """Not that on crops; unweighted terms, weighted total."""
    classifier, target = build_classifier(), uniform(*IMAGE_SHAPE)
    losses = [
        ClassConfidence(classifier, 1, cutouts=Cutouts(count=4), weight=3.0),
        Distance(target, weight=0.5),
    ]
    job = make_job(tiny.model, losses=losses, monitors={"mean": lambda image: image.mean()}, seed=2)
    (result,) = Engine(tiny.model).run([job])
    for row, image in ((result.history[0], result.initial_image),
                       (result.history[result.best_iteration], result.image)):  # fmt: skip
        confidence = -classifier.probabilities(image[None])[0, 1].log()
        distance = (image - target).square().mean()
        assert row["confidence"] == pytest.approx(float(confidence), rel=1e-12)
        assert row["distance"] == pytest.approx(float(distance), rel=1e-12)
        assert row["total"] == pytest.approx(float(3 * confidence + 0.5 * distance), rel=1e-12)
        assert row["mean"] == float(image.mean())
    assert result.best_iteration == min(
        range(len(result.history)), key=lambda i: result.history[i]["total"]
    )


class BestAtTheSecond:
    """A loss that pushes on after its best plain image."""

    name, weight = "scripted", 1.0

    def __init__(self):
        self.plain = 0

    def __call__(self, candidate: Candidate):
        loss = candidate.image.square().mean()
        if candidate.key is not None:
            return loss
        self.plain += 1
        return loss + abs(self.plain - 2)


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize("make_losses", [lambda: None, lambda: [BestAtTheSecond()]])
def test_the_result_reproduces_its_image(tiny, guidance, make_losses):
    job = make_job(
        tiny.model, losses=make_losses(), iterations=3, learning_rate=0.05, guidance_scale=guidance
    )
    (result,) = Engine(tiny.model, slots=1, kept_steps=0).run([job])
    assert result.best_iteration > 0
    x0 = Engine(tiny.model).sample(
        result.latents[None],
        result.conditioning[None],
        None if guidance == 1 else result.null_text[None],
        steps=STEPS,
        guidance_scale=guidance,
    )
    torch.testing.assert_close(tiny.model.decode(x0)[0], result.image, rtol=0, atol=1e-12)
    assert (result.null_text is None) == (guidance == 1)


def test_evaluate_keeps_the_order_and_does_not_optimise(tiny, calls):
    jobs = [make_job(tiny.model, str(n), seed=n, iterations=9, steps=2 + n % 2) for n in range(5)]
    results = Engine(tiny.model, slots=2).evaluate(jobs)
    assert [r.id for r in results] == [job.id for job in jobs]
    for job, result in zip(jobs, results, strict=True):
        assert len(result.history) == 1 and result.status == "done"
        assert torch.equal(result.image, result.initial_image)
        assert torch.equal(result.latents, job.latents)
    assert calls["unet with graph"] == 0
    (optimised,) = Engine(tiny.model, slots=1).run([replace(jobs[0], settings=replace(
        jobs[0].settings, iterations=1))])  # fmt: skip
    assert results[0].history[0]["total"] == pytest.approx(optimised.history[0]["total"])


def test_evaluate_of_the_same_job_twice(tiny):
    job = make_job(tiny.model)
    first, second = Engine(tiny.model, slots=2).evaluate([job, job])
    assert first.history == second.history


@pytest.mark.parametrize(
    ("read", "stop", "expected"),
    [
        ([3.0, 2.0, 0.4, 0.6, 0.4, 0.4, 0.1], {"below": 0.5}, [3.0, 2.0, 0.4, 0.6, 0.4, 0.4]),
        ([0.1, 0.95, 0.2, 0.92, 0.97, 0.99, 1], {"above": 0.9}, [0.1, 0.95, 0.2, 0.92, 0.97]),
    ],
)
def test_early_stop_counts_in_a_row(tiny, read, stop, expected):
    values = iter(read)
    job = make_job(
        tiny.model,
        iterations=6,
        monitors={"confidence": lambda image: next(values)},
        early_stop=EarlyStop(**stop, of="confidence", held_for=2),
    )
    (result,) = Engine(tiny.model, slots=1, kept_steps=0).run([job])
    assert result.status == "done"
    assert [row["confidence"] for row in result.history] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("confidences", "distances", "ends"),
    [
        ([0.1, 0.95, 0.95, 0.95], [1.6, 1.6, 1.5, 1.5], False),  # it fell within the last three
        ([0.1, 0.95, 0.95, 0.95], [1.5, 1.6, 1.46, 1.6], True),  # by less than three hundredths
        ([0.95, 0.95, 0.95, 0.8], [1.5, 1.6, 1.6, 1.6], False),  # the confidence did not hold
        ([0.95, 0.95, 0.95], [1.5, 1.6, 1.6], False),  # nothing before to compare with
    ],
)
def test_early_stop_waits_until_a_sum_of_losses_has_settled(confidences, distances, ends):
    """Weighted: the second loss is half of the first, and counts twice."""
    stop = EarlyStop(above=0.9, of="confidence", held_for=3, settled=("near", "far"))
    history = [
        {"confidence": c, "near": d / 2, "far": d / 4}
        for c, d in zip(confidences, distances, strict=True)
    ]
    assert stop.ends(history, {"near": 1.0, "far": 2.0}) == ends


@pytest.mark.parametrize(
    ("f", "g", "ends"),
    [
        ([0.9, 0.99, 0.99], [0.9, 0.01, 0.01], True),
        ([0.9, 0.99, 0.99], [0.01, 0.01, 0.2], False),
        ([0.99, 0.99, 0.9], [0.01, 0.01, 0.01], False),
        ([0.99, 0.99, 0.9], [0.9, 0.01, 0.01], False),  # each held, but not at the same time
    ],
)
def test_two_rules_end_a_job_at_the_same_time(f, g, ends):
    also = EarlyStop(below=0.05, of="g", held_for=2)
    stop = EarlyStop(above=0.95, of="f", held_for=2, also=also)
    history = [{"f": x, "g": y} for x, y in zip(f, g, strict=True)]
    assert stop.ends(history, {}) == ends


def test_early_stop_at_once_costs_one_iteration(tiny, calls):
    """Figures are read when an iteration is over: its backward has been, the next has not."""
    job = make_job(tiny.model, iterations=5, early_stop=EarlyStop(1e9))
    advanced = []
    (result,) = Engine(tiny.model, slots=1, kept_steps=0).run([job], advanced.append)
    assert len(result.history) == 1 and result.best_iteration == 0
    assert sum(advanced) == pytest.approx(6), "what it will not do counts as done"
    assert calls["unet"] == 2 * STEPS and calls["unet with graph"] == STEPS


def test_refilled_slots_keep_the_batch_full(tiny, calls):
    """Five jobs of 1 to 3 iterations in two slots: as few U-Net calls as that takes."""
    lengths = [3, 1, 2, 1, 2]
    jobs = [make_job(tiny.model, str(n), seed=n, iterations=i) for n, i in enumerate(lengths)]
    advanced = []
    results = list(Engine(tiny.model, slots=2, kept_steps=0).run(jobs, advanced.append))
    assert [r.iterations for r in sorted(results, key=lambda r: r.id)] == lengths
    assert calls["rows"] == {4, 2}, "two slots with two branches each; the last job is left alone"
    # Slot 0: jobs 0 (4 evaluations), 3 (2), 4 (3). Slot 1: jobs 1 (2), 2 (3); then it is empty.
    assert sum(advanced) == pytest.approx(sum(lengths) + len(jobs))
    assert advanced[0] == pytest.approx(2 / (3 * STEPS)), "the first call of the U-Net"
    assert [r.id for r in results][:2] == ["1", "0"]


def test_results_stream_and_jobs_are_taken_lazily(tiny):
    taken = []

    def jobs():
        for n in range(6):
            taken.append(n)
            yield make_job(tiny.model, str(n), seed=n, iterations=1)

    stream = Engine(tiny.model, slots=2).run(jobs())
    next(stream)
    assert len(taken) <= 3
    assert len(list(stream)) == 5


def test_jobs_that_cannot_share_a_batch_take_turns(tiny):
    """Other numbers of steps, guidance off, other text lengths."""
    model = tiny.model
    short = make_job(model, "short text", seed=4)
    short = replace(short, conditioning=short.conditioning[:9], null_text=short.null_text[:9])
    jobs = [
        make_job(model, "four steps", seed=1),
        make_job(model, "two steps", seed=2, steps=2),
        make_job(model, "unguided", seed=3, guidance_scale=1.0),
        short,
        make_job(model, "four again", seed=5),
    ]
    results = {r.id: r for r in Engine(model, slots=3).run(jobs)}
    assert set(results) == {job.id for job in jobs}
    for job in jobs:
        (single,) = Engine(model, slots=1).run([job])
        assert results[job.id].status == "done"
        torch.testing.assert_close(results[job.id].image, single.image, rtol=0, atol=1e-8)


def test_no_jobs(tiny):
    assert list(Engine(tiny.model).run([])) == []
    assert Engine(tiny.model).evaluate([]) == []


def test_jobs_are_not_changed(tiny):
    """Neither their tensors nor those of the caller's classifier."""
    job = make_job(tiny.model)
    before = [x.clone() for x in (job.latents, job.conditioning, job.null_text)]
    list(Engine(tiny.model).run([job]))
    for x, y in zip((job.latents, job.conditioning, job.null_text), before, strict=True):
        assert torch.equal(x, y) and not x.requires_grad
