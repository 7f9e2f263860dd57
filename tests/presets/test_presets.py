"""Every preset is a command line that its command understands, of models that exist."""

import json

import open_clip
import pytest
import timm
import torchvision

from fastdigin import cli
from fastdigin.errors import UserError
from fastdigin.presets import expand, list_presets, load_preset, preset_names
from fastdigin.tasks.regularisers import Regulariser

NEEDED = {  # what a user has to say beside the preset
    "counterfactual": ["photo.png", "--classifier", "embedded:clean"],
    "disagree": ["--f", "embedded:clean", "--classes", "a"],
    "neurons": ["--neurons", "1"],
    "neuron-counterfactual": [
        "photo.png", "--classifier", "embedded:clean", "--neuron", "1", "--direction", "max",
    ],
}  # fmt: skip


def parsed(*arguments):
    return cli._parser(arguments[:1]).parse_args(expand(arguments))


@pytest.mark.parametrize("name", preset_names())
def test_is_understood_and_sets_what_it_says(name):
    preset = load_preset(name)
    given = [] if "f" in preset.options else NEEDED[preset.command]
    if preset.command == "disagree" and "classes" not in preset.options and not given:
        given = ["--classes", "a"]
    options = parsed(preset.command, *given, "--preset", name)
    for option, value in preset.options.items():
        if f"--{option}" in given:
            continue
        if option == "regulariser":
            assert options.regularisers == list(map(Regulariser.parse, value))
        else:
            actual = getattr(options, option.replace("-", "_"))
            assert actual == value or ",".join(actual) == value
    usage = preset.usage
    assert usage.startswith(f"fastdigin {preset.command} ") and f"--preset {name}" in usage
    assert preset.notes


@pytest.mark.parametrize("name", preset_names())
def test_classifiers_exist(name):
    for option in ("classifier", "f", "g", "judge"):
        spec = load_preset(name).options.get(option, "embedded:clean")
        kind, _, model = spec.partition(":")
        if kind == "timm":
            assert model in timm.list_pretrained()
        elif kind == "torchvision":
            architecture, _, weights = model.partition(".")
            assert weights in torchvision.models.get_model_weights(architecture).__members__
        elif kind == "open_clip":
            assert tuple(model.split("/")) in open_clip.list_pretrained()
        else:
            assert kind == "embedded"


def test_papers_defaults():
    names = [name for name in preset_names() if name.startswith("paper-")]
    assert len(names) == 10
    for name in names:
        options = load_preset(name).options
        assert options["model"] == "CompVis/stable-diffusion-v1-4"
        assert (options["steps"], options["guidance-scale"]) == (20, 3.0)
        assert (options["iterations"], options["learning-rate"]) == (20, 0.01)


def test_explicit_options_override(capsys):
    common = ("counterfactual", "photo.png", "--preset", "paper-uvce-imagenet")
    options = parsed(*common, "--steps=5", "--regulariser", "lpips:all:1", "--classifier", "hf:x")
    assert options.steps == 5 and options.regularisers == [Regulariser.parse("lpips:all:1")]
    assert options.classifier == "hf:x" and options.iterations == 20
    said = capsys.readouterr().err
    assert said.startswith("preset paper-uvce-imagenet sets --model CompVis/stable-diffusion-v1-4")
    assert "--steps" not in said and "--iterations 20" in said
    assert parsed("counterfactual", "--preset=embedded-uvce", "a.png", "b.png").images == [
        "a.png", "b.png",
    ]  # fmt: skip


def test_errors(capsys):
    with pytest.raises(UserError, match="does not exist; did you mean paper-uvce-imagenet"):
        expand(["counterfactual", "x.png", "--preset", "paper-uvce-imagnet"])
    with pytest.raises(UserError, match="is for fastdigin counterfactual, not for .* neurons"):
        expand(["neurons", "--preset", "paper-uvce-cub"])
    assert cli.main(["disagree", "--preset", "nothing"]) == 2
    assert "the presets: embedded-disagree" in capsys.readouterr().err


def test_lists_and_shows(capsys):
    assert cli.main(["neurons", "--preset", "list"]) == 0
    listed = capsys.readouterr().out
    assert listed.splitlines() == list_presets().splitlines()
    assert len(listed.splitlines()) == len(preset_names())
    assert cli.main(["presets"]) == 0 and capsys.readouterr().out == listed
    assert cli.main(["presets", "paper-neurons"]) == 0
    shown = capsys.readouterr().out
    assert "--learning-rate" in shown and "0.01" in shown and "not verified" in shown
    assert cli.main(["presets", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["name"] for r in records] == list(preset_names())
    assert cli.main(["presets", "x"]) == 2


def test_runs(tmp_path, capsys):
    out = tmp_path / "out"
    quick = ["--steps", "2", "--iterations", "1", "--limit", "1", "--guidance-scale", "2",
             "--learning-rate", "0.05", "--json"]  # fmt: skip
    assert cli.main(["disagree", "--preset", "embedded-disagree", *quick, "--out", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["class"] == "sneaker"
    settings = json.loads((out / "run.json").read_text())["disagreement"]
    assert settings["g"] == "embedded:spurious"
    optimisation = settings["optimisation"]
    assert (optimisation["guidance_scale"], optimisation["learning_rate"]) == (2.0, 0.05)


@pytest.mark.parametrize("option", ["--guidance-scale", "--learning-rate"])
def test_impossible_numbers(option, capsys):
    with pytest.raises(SystemExit):
        parsed("disagree", "--f", "a", "--g", "b", "--classes", "c", option, "-1")
    assert "must be a number" in capsys.readouterr().err
