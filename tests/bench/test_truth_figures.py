"""The figures of each task on hand-made rows."""

from fastdigin import embedded
from fastdigin_bench.figures import at_least
from fastdigin_bench.truth_figures import (
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
    common = {"target": "boot", "target_confidence_before": 0.1, "outside_l1_autoencoder": 0.02}
    rows = [
        common | {"flipped": True, "judge_prediction": "boot", "target_confidence": 0.9,
                  "outside_l1": 0.02, "outside_true_l1": 0.05},
        common | {"flipped": False, "judge_prediction": "bag", "target_confidence": 0.5,
                  "outside_l1": 0.03, "outside_true_l1": 0.07},
    ]  # fmt: skip
    figures = counterfactual_figures(rows, at_least(0.5))
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
    assert "judge sees the target" not in met(counterfactual_figures(rows, None))


def test_disagreements():
    def row(f, g, before, after, name="sneaker"):
        return {
            "class": name, "f_confidence": f, "g_confidence": g, "f_confidence_before": 0.6,
            "g_confidence_before": 0.8, "seen_before": before, "seen": after,
        }  # fmt: skip

    rows = [
        row(0.9, 0.1, "grass", "brick"),
        row(0.89, 0.1, "grass", "grass"),
        row(0.95, 0.44, "brick", "plain"),
        row(0.95, 0.46, "brick", "gravel", "sandal"),
    ]
    found = values(disagreement_figures(rows))
    assert found["f at least 0.9, g at most 0.1"] == 0.25
    assert found["f leads g by at least 0.5"] == 0.75
    assert found["g before"] == 0.8
    assert found["planted background before"] == 0.75
    assert found["planted background after"] == 0.25


def test_neurons():
    rows = [
        {"activation": 3.0, "dataset_max_activation": 2.0},
        {"activation": 1.0, "dataset_max_activation": 2.0},
        {"activation": 0.5, "dataset_max_activation": 0.0},  # above, but a multiple of nothing
    ]
    above, multiple = neuron_figures(rows)
    assert (round(above.value, 3), above.n, above.met) == (0.667, 3, False)
    assert (multiple.value, multiple.n) == (1.0, 2)


def test_neuron_counterfactuals():
    grass = embedded.planted_neurons()["grass"][0]

    def row(direction, before, after, background, inside):
        return {
            "neuron": grass, "direction": direction, "activation_before": before,
            "activation": after, "background_after": background, "inside_l1": inside,
            "inside_l1_inversion": 0.1, "inside_l1_autoencoder": 0.08,
        }  # fmt: skip

    rows = [
        row("max", 1.0, 2.0, "grass", 0.2),
        row("max", 1.0, 3.0, "brick", 0.1),
        row("min", 4.0, 1.0, "brick", 0.1),
        row("min", 4.0, 5.0, "plain", 0.2),
    ]
    figures = neuron_counterfactual_figures(rows)
    found = values(figures)
    assert found["activation moves as asked"] == 0.75
    assert found["raised: planted background appears"] == 0.5
    assert found["raised: activation after"] == 2.5
    assert found["lowered: planted background vanishes"] == 1.0
    assert found["lowered: activation before"] == 4.0
    assert round(found["L1 inside the true mask, ratio"], 6) == 1.5
    only_raised = values(neuron_counterfactual_figures(rows[:2]))
    assert only_raised["lowered: planted background vanishes"] is None
