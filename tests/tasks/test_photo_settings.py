"""Settings of edited photos that the engine knows as parts of a Job."""

import json
from dataclasses import replace

import pytest
import torch
from cli_commands import CF, NCF, QUICK, TARGET, records, run
from cli_commands import SNEAKER as PHOTO

import fastdigin as fd

TASKS = {
    fd.counterfactuals: lambda schedule: {"injection_fractions": (schedule,)},
    fd.neuron_counterfactuals: lambda schedule: {"injection_fraction": schedule},
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "schedule, weights",
    [(fd.Cosine(), (1.0, 0.5)), (fd.Threshold(1.0, start=0.5), (0.0, 1.0)), (0.5, (1.0, 0.0))],
)
def test_schedules_of_injection(call, task, schedule, weights):
    """Both kinds follow theirs, in two steps."""
    changes = TASKS[task](schedule) | {"self_injection": schedule}
    (e,) = call(task, set=changes)
    job = e.result.job
    assert job.injection.weights == job.self_injection.weights == pytest.approx(weights)
    assert job.injection.layers and job.self_injection.layers
    assert not set(job.injection.layers) & set(job.self_injection.layers)
    if task is fd.counterfactuals:
        assert e.injection_fraction == pytest.approx(sum(weights) / 2)


def test_self_injection_keeps_the_layout(call, quick):
    """With all steps injected the edit is nearer to what the inversion makes of the photo."""
    start = {"optimisation": replace(quick, steps=4, iterations=0), "injection_fractions": (0.0,)}
    distances = []
    for schedule in (None, 0.0, 1.0):
        (e,) = call(fd.counterfactuals, set=start | {"self_injection": schedule})
        distances.append(float((e.image - e.pictures["initial_image"]).abs().mean()))
    assert distances[2] < 0.9 * distances[0] and distances[0] == distances[1]


@pytest.mark.parametrize("norm", ["cosine", "l2"])
def test_feature_distances(call, norm):
    judge = fd.Classifier.load("embedded:judge")
    chosen = (fd.Regulariser(f"features-{norm}", "background", 3.0),)
    (e,) = call(fd.counterfactuals, embedding=judge, set={"regularisers": chosen})
    best = e.history[e.best_iteration]
    mask, before = e.pictures["mask"], e.pictures["initial_image"]
    # Pixels of the foreground are the reference's, so that they do not count.
    mixed = torch.lerp(e.image, before, mask)
    with torch.no_grad():
        a, b = (judge.activations(x[None])[0] for x in (mixed, before))
    expected = (a - b).square().mean() if norm == "l2" else 1 - torch.cosine_similarity(a, b, dim=0)
    assert best[f"features_{norm}_background"] == pytest.approx(float(expected), rel=1e-3, abs=1e-6)
    total = best["target_loss"] + 3 * best[f"features_{norm}_background"]
    assert best["total"] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_features_and_an_embedding_need_each_other(call, clean, task):
    chosen = (fd.Regulariser("features-l2", "all", 1.0),)
    with pytest.raises(fd.UserError, match="features-l2 needs an embedding"):
        call(task, set={"regularisers": chosen})
    with pytest.raises(fd.UserError, match="embedding embedded:clean has no use"):
        call(task, embedding=clean)


@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan"), "cosine", (0.3,)])
def test_bad_schedules_are_refused(bad):
    for cls, name in (
        (fd.CounterfactualSettings, "self_injection"),
        (fd.NeuronCounterfactualSettings, "injection_fraction"),
        (fd.NeuronCounterfactualSettings, "blending_fraction"),
    ):
        with pytest.raises(fd.UserError, match=name):
            cls(**{name: bad})


def test_on_the_command_line(tmp_path, capsys):
    """They are in run.json, and a run resumes with the same ones only."""
    chosen = ["--regulariser", "features-cosine:background:2", "--embedding", "embedded:robust"]
    common = [*CF, PHOTO.path, "--target", TARGET, *QUICK, *chosen, "--out", tmp_path,
              "--injection-fractions", "0.5-1,cosine:2"]  # fmt: skip
    assert run(*common, "--self-injection", "cosine") == 0
    assert "features_cosine_background" in records(tmp_path)[0]["history"][0]
    settings = json.loads((tmp_path / "run.json").read_text())["counterfactual"]
    assert settings["injection_fractions"] == [{"until": 1.0, "start": 0.5}, {"tilt": 2.0}]
    assert settings["self_injection"] == {"tilt": 1.0}
    assert settings["embedding"] == "embedded:robust"
    assert run(*common, "--self-injection", "cosine") == 0
    capsys.readouterr()
    assert run(*common, "--self-injection", "cosine:1.5") == 2
    assert "self_injection.tilt: 1.0 there, 1.5 here" in capsys.readouterr().err
    assert run(*common) == 2
    assert run(*common, "--self-injection", "cos") == 2
    assert "schedule 'cos' is not understood" in capsys.readouterr().err


def test_a_folder_of_an_older_version_goes_on(tmp_path):
    """Its run.json does not name what there was no setting for."""
    common = [*NCF, PHOTO.path, "--neuron", 3, "--direction", "max", *QUICK, "--out", tmp_path]
    assert run(*common) == 0
    runs = json.loads((tmp_path / "run.json").read_text())
    for name in ("self_injection", "embedding"):
        assert runs["neuron-counterfactual"].pop(name) is None
    for name in ("image_size", "solver"):
        assert runs["neuron-counterfactual"].pop(name) is None
    assert runs["neuron-counterfactual"]["optimisation"].pop("leap") is None
    (tmp_path / "run.json").write_text(json.dumps(runs))
    assert run(*common) == 0
    assert run(*common, "--self-injection", "0.3") == 2
