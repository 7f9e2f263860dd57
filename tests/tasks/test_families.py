"""All four tasks, through the public calls, on every family of models."""

import math
from dataclasses import replace

import pytest
import torch
from families import FAMILIES, save_family

import fastdigin as fd
from fastdigin.engine.job import VARIABLES
from fastdigin.photos import collect, read_any_image
from fastdigin.tasks.counterfactual import Counterfactuals
from fastdigin.tasks.disagreement import Disagreements
from fastdigin.tasks.neuron_counterfactual import NeuronCounterfactuals
from fastdigin.tasks.neurons import NeuronVisualisations

pytestmark = pytest.mark.slow


def brief(task, model, **changes):
    """A task's settings for the model with few steps and one iteration."""
    settings = task.default_settings(model)
    optimisation = replace(
        settings.optimisation,
        steps=min(3, settings.optimisation.steps),
        iterations=1,
        last_steps=1,
        learning_rate=1e-4,
    )
    return replace(settings, optimisation=optimisation, **changes)


def check(explanation):
    """Done, finite, changed by the update, and reproducible from the Result."""
    result, history = explanation.result, explanation.history
    assert explanation.status == "done", explanation.error
    assert len(history) == 2
    totals = [row["total"] for row in history]
    assert all(map(math.isfinite, totals)) and totals[0] != totals[1]
    assert totals[explanation.best_iteration] == min(totals)
    assert explanation.image.isfinite().all() and explanation.image.min() >= 0
    assert explanation.image.max() <= 1 and explanation.image.std() > 0.01
    assert set(result.job.settings.variables) == set(VARIABLES)


def enlarged(item, size):
    """The packaged photos have 64 px; larger models refuse what has less than half of theirs."""
    image = read_any_image(item)[None]
    image = torch.nn.functional.interpolate(image, (size, size), mode="bilinear", antialias=True)
    return replace(item, image=image[0].clamp(0, 1))


@pytest.mark.parametrize("name", FAMILIES)
def test_all_tasks(tmp_path, clean, spurious, name):
    model = fd.LatentDiffusion.load(str(save_family(name, tmp_path)), device="cpu")
    engine = fd.Engine(model, slots=1, kept_steps=0)
    photos = [enlarged(item, model.image_size) for item in collect(["embedded:photos"], 4)]
    photo, dataset = photos[:1], [item.image for item in photos]
    of_photo = {"null_text_steps": 1}
    target = "bag" if photo[0].source != "bag" else "boot"
    (cf,) = fd.counterfactuals(
        engine, photo, clean, target,
        settings=brief(Counterfactuals, model, injection_fractions=(0.5,),
                       blending_fractions=(0.0, 0.5), **of_photo),
    )  # fmt: skip
    (dis,) = fd.disagreements(
        engine, clean, spurious, "sneaker",
        # Of a random model's images f may be so sure that a confidence has no gradient left.
        settings=brief(Disagreements, model, objective="log_conf"),
    )  # fmt: skip
    (neu,) = fd.visualise_neurons(
        engine, spurious, 3, ["sneaker"], dataset,
        settings=brief(NeuronVisualisations, model, samples_per_word=1),
    )  # fmt: skip
    (ncf,) = fd.neuron_counterfactuals(
        engine, photo, spurious, 3, "max", dataset=dataset,
        settings=brief(NeuronCounterfactuals, model, **of_photo),
    )  # fmt: skip
    for explanation in (cf, dis, neu, ncf):
        check(explanation)
    assert cf.result.job.injection is not None and ncf.result.job.injection is not None
