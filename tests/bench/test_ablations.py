"""The bench of ablations: each changes what its name says, and a run goes on where it stopped."""

import json
from dataclasses import asdict, replace

import pytest
import torch

import fastdigin as fd
from fastdigin.objectives import Cutouts
from fastdigin.tasks.counterfactual import Counterfactuals
from fastdigin_bench import ablations
from fastdigin_bench.methods.by_task import ByCounterfactuals

QUICK = {
    "optimisation.steps": 4, "injection_fractions": (0.3,), "blending_fractions": (0.0,),
    "optimisation.iterations": 1,
}  # fmt: skip


def flat(settings, prefix=""):
    """Every field, those of nested settings with a dot."""
    found = {}
    for name, value in settings.items():
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def test_each_ablation_changes_its_settings_alone():
    model = fd.LatentDiffusion.from_pretrained("embedded")
    usual = flat(asdict(Counterfactuals.default_settings(model)))
    first, *others = ablations.ABLATIONS
    assert first.classifier == "robust"
    names = [one.name for one in ablations.ABLATIONS]
    assert len(names) == len(set(names))
    for one in ablations.ABLATIONS:
        changed = one.method.change(Counterfactuals.default_settings(model))
        now = flat(asdict(changed))
        differs = {name for name in usual if usual[name] != now[name]}
        assert differs == set(one.settings)
        assert len(differs) + (one.classifier != "robust") >= (one in others)


def test_no_crops_is_the_plain_image():
    (one,) = (one for one in ablations.ABLATIONS if one.name == "no crops")
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    values = {name.removeprefix("cutouts."): value for name, value in one.settings.items()}
    crops = Cutouts(**values)(image, size=32, key=(7, 3, 1))
    halved = torch.nn.functional.avg_pool2d(image, 2)
    torch.testing.assert_close(crops, halved[None], rtol=0, atol=1e-4)


def row(**values):
    return dict.fromkeys(ablations.SHOWN, 0.5) | {"flip_rate": True, "judge": True} | values


def test_the_table_marks_what_surely_differs():
    rows = {
        "default": [row(confidence=0.9)] * 6,
        "K = 1": [row(confidence=0.9 - 0.01 * n) for n in range(1, 7)],
        "K = 6": [row(confidence=0.9 + 0.01 * (-1) ** n) for n in range(6)],
    }
    told = ablations.text(rows)
    assert "**0.865** (0.85" in told and told.count("**") == 2
    plain = {one["name"]: one for one in ablations.compared(rows)}
    assert plain["K = 1"]["minus_default"]["confidence"]["value"] == -0.035
    assert plain["K = 6"]["settings"] == {"optimisation.last_steps": "6"}


def test_a_run_is_continued_and_ends_in_one_line(tmp_path, capsys, monkeypatch):
    quick = [replace(one, settings=QUICK | one.settings) for one in ablations.ABLATIONS]
    monkeypatch.setattr(ablations, "ABLATIONS", quick)
    command = ["--photos", "1", "--only", "optimised: nothing", "classifier: spurious", "--out"]
    command += [str(tmp_path / "out"), "--results", str(tmp_path)]
    assert ablations.main(command) == 0
    printed = capsys.readouterr().out
    last = json.loads(printed.splitlines()[-1])
    assert last == json.loads((tmp_path / "ablations.json").read_text())
    names = ["default", "optimised: nothing", "classifier: spurious"]
    assert [one["name"] for one in last["ablations"]] == names
    first, nothing, spurious = last["ablations"]
    assert {"flip_rate", "judge", "confidence", "background_l1", "seconds"} <= set(first)
    assert nothing["confidence"] < first["confidence"]
    assert spurious["classifier"] == "spurious"
    assert (tmp_path / "ablations.png").stat().st_size > 1000

    def refuse(*_):
        pytest.fail("a finished photo was made again")

    monkeypatch.setattr(ByCounterfactuals, "__call__", refuse)
    assert ablations.main(command) == 0 and capsys.readouterr().out == printed


def test_an_unknown_ablation_is_refused(tmp_path, capsys):
    assert ablations.main(["--only", "no brain", "--out", str(tmp_path)]) == 2
    assert "--only 'no brain' is no ablation: name some of default" in capsys.readouterr().err
