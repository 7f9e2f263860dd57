"""The figures of each task on hand-made records."""

from fastdigin import embedded
from fastdigin.results import (
    CounterfactualRecord,
    DisagreementRecord,
    NeuronCounterfactualRecord,
    NeuronRecord,
)
from fastdigin_bench.figures import at_least
from fastdigin_bench.truth_figures import (
    Backgrounds,
    Inside,
    Outside,
    counterfactual_figures,
    disagreement_figures,
    neuron_counterfactual_figures,
    neuron_figures,
)


def values(figures):
    by_name = {figure.name: figure.value for figure in figures}
    assert len(by_name) == len(figures)  # programs look figures up by name
    return by_name


def met(figures):
    return {figure.name: figure.met for figure in figures if figure.target}


def test_counterfactuals():
    def record(flipped, judged, confidence):
        return CounterfactualRecord(
            id=judged, target="boot", flipped=flipped, judge_prediction=judged,
            target_confidence_before=0.1, target_confidence=confidence,
        )  # fmt: skip

    records = [record(True, "boot", 0.9), record(False, "bag", 0.5)]
    looks = [Outside(0.02, 0.02, 0.05), Outside(0.03, 0.02, 0.07)]
    figures = counterfactual_figures(records, looks, at_least(0.5))
    found = values(figures)
    assert found["flips to the target"] == 0.5
    assert found["judge sees the target"] == 0.5
    assert found["target confidence before"] == 0.1
    assert found["target confidence after"] == 0.7
    assert round(found["L1 outside both masks, ratio"], 6) == 1.25
    assert round(found["L1 outside the true mask alone"], 6) == 0.06
    assert met(figures) == {
        "flips to the target": False,
        "judge sees the target": True,
        "L1 outside both masks, ratio": True,
    }
    assert "judge sees the target" not in met(counterfactual_figures(records, looks, None))


def test_disagreements():
    def record(f, g, name="sneaker"):
        return DisagreementRecord(
            id="x", class_=name, f_confidence=f, g_confidence=g, f_confidence_before=0.6,
            g_confidence_before=0.8,
        )  # fmt: skip

    records = [record(0.9, 0.1), record(0.89, 0.1), record(0.95, 0.44),
               record(0.95, 0.46, "sandal")]  # fmt: skip
    seen = [("grass", "brick"), ("grass", "grass"), ("brick", "plain"), ("brick", "gravel")]
    found = values(disagreement_figures(records, [Backgrounds(*pair) for pair in seen]))
    assert found["f at least 0.9, g at most 0.1"] == 0.25
    assert found["f leads g by at least 0.5"] == 0.75
    assert found["g before"] == 0.8
    assert found["planted background before"] == 0.75
    assert found["planted background after"] == 0.25


def test_neurons():
    pairs = [(3.0, 2.0), (1.0, 2.0), (0.5, 0.0)]  # the last: above, but a multiple of nothing
    above, multiple = neuron_figures(
        [NeuronRecord(id="x", activation=a, dataset_max_activation=most) for a, most in pairs]
    )
    assert (round(above.value, 3), above.n, above.met) == (0.667, 3, False)
    assert (multiple.value, multiple.n) == (1.0, 2)


def test_neuron_counterfactuals():
    grass = embedded.planted_neurons()["grass"][0]

    def record(direction, before, after, background):
        return NeuronCounterfactualRecord(
            id="x", neuron=grass, direction=direction, activation_before=before,
            activation=after, background_after=background,
        )  # fmt: skip

    records = [
        record("max", 1.0, 2.0, "grass"),
        record("max", 1.0, 3.0, "brick"),
        record("min", 4.0, 1.0, "brick"),
        record("min", 4.0, 5.0, "plain"),
    ]
    looks = [Inside(result, autoencoder=0.08, inversion=0.1) for result in (0.2, 0.1, 0.1, 0.2)]
    found = values(neuron_counterfactual_figures(records, looks))
    assert found["activation moves as asked"] == 0.75
    assert found["raised: planted background appears"] == 0.5
    assert found["raised: activation after"] == 2.5
    assert found["lowered: planted background vanishes"] == 1.0
    assert found["lowered: activation before"] == 4.0
    assert round(found["L1 inside the true mask, ratio"], 6) == 1.5
    only_raised = values(neuron_counterfactual_figures(records[:2], looks[:2]))
    assert only_raised["lowered: planted background vanishes"] is None
