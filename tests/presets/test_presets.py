"""Every preset is a command line that its command understands, of models that exist."""

import itertools
import json
from dataclasses import replace

import open_clip
import pytest
import timm
import torchvision

from fastdigin import cli, presets
from fastdigin.engine.job import Settings
from fastdigin.errors import UserError
from fastdigin.presets import (
    algorithm_names,
    expand,
    list_presets,
    load_algorithm,
    load_preset,
    preset_names,
)
from fastdigin.tasks import counterfactual, disagreement, neuron_counterfactual
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
        elif option == "preset":
            assert options.preset == [value, name]
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
    assert len(names) == 11
    for name in names:
        options = load_preset(name).options
        assert options["model"] == "CompVis/stable-diffusion-v1-4"
        # The model's own 20 where fast may take fewer of them.
        assert (options.get("steps", 20), options["guidance-scale"]) == (20, 3.0)
        assert (options["iterations"], options["learning-rate"]) == (20, 0.01)


def test_explicit_options_override(capsys):
    common = ("counterfactual", "photo.png", "--preset", "paper-uvce-imagenet")
    options = parsed(*common, "--steps=5", "--regulariser", "lpips:all:1", "--classifier", "hf:x")
    assert options.steps == 5 and options.regularisers == [Regulariser.parse("lpips:all:1")]
    assert options.classifier == "hf:x" and options.iterations == 20
    said = capsys.readouterr().err
    assert said.startswith(
        "preset paper-uvce-imagenet sets --preset exact --model CompVis/stable-diffusion-v1-4"
    )
    assert "--steps" not in said and "--iterations 20" in said
    with pytest.raises(SystemExit):
        parsed("counterfactual", "--pres", "embedded-uvce", "a.png")
    assert parsed("counterfactual", "--preset=embedded-uvce", "a.png", "b.png").images == [
        "a.png", "b.png",
    ]  # fmt: skip


@pytest.mark.parametrize("name", [n for n in preset_names() if n.startswith("paper-")])
def test_an_experiment_and_fast_combine(name):
    """An option of the experiment would win over what fast lowers."""
    command = load_preset(name).command
    algorithm = load_algorithm("fast")
    if "optimisation.steps" in algorithm.settings.get(command, {}):
        options = parsed(command, *NEEDED[command], "--preset", name, "--preset", "fast")
        assert options.steps is None and options.preset[-1] == "fast"


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
    assert len(listed.splitlines()) == len(preset_names() + algorithm_names())
    assert cli.main(["presets"]) == 0 and capsys.readouterr().out == listed
    assert cli.main(["presets", "paper-neurons"]) == 0
    shown = capsys.readouterr().out
    assert "--learning-rate" in shown and "0.01" in shown and "not verified" in shown
    assert cli.main(["presets", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["name"] for r in records] == list(preset_names() + algorithm_names())
    assert cli.main(["presets", "x"]) == 2
    assert cli.main(["presets", "fast"]) == 0
    assert 'counterfactual: inversion_method = "direct"' in capsys.readouterr().out


OF_TASKS = {
    "counterfactual": counterfactual.EMBEDDED,
    "disagreement": disagreement.EMBEDDED,
    "neuron-counterfactual": neuron_counterfactual.EMBEDDED,
}


@pytest.mark.parametrize("name", algorithm_names())
def test_presets_of_the_algorithm_change_nothing_else(name):
    """Every field that is named exists and is taken; models, losses and rates stay."""
    preset = load_algorithm(name)
    assert preset.notes and set(preset.settings) <= set(OF_TASKS)
    for task, before in OF_TASKS.items():
        after = preset.of(before, task)
        changed = {f for f in vars(before) if getattr(before, f) != getattr(after, f)}
        assert changed <= {path.partition(".")[0] for path in preset.settings.get(task, ())}
        assert after.optimisation.learning_rate == before.optimisation.learning_rate
        assert preset.of(after, task) == after


def test_exact_is_the_published_method():
    for task, settings in OF_TASKS.items():
        exact = presets.EXACT.of(settings, task)
        assert exact.optimisation == settings.optimisation
        if task == "disagreement":  # which inverts nothing
            assert exact.engine_settings().early_stop is None
        else:
            assert exact.inversion_method == "null-text"
    assert presets.EXACT.of(counterfactual.EMBEDDED).engine_settings().early_stop is None
    assert counterfactual.EMBEDDED.engine_settings().early_stop.settled, "the default ends in time"
    assert disagreement.EMBEDDED.engine_settings().early_stop.also, "and so it does here"
    fast = presets.FAST.of(counterfactual.EMBEDDED)
    assert fast.engine_settings().early_stop.settled and fast.optimisation.steps == 10
    few = replace(counterfactual.EMBEDDED, optimisation=Settings(steps=4))
    assert presets.FAST.of(few).optimisation.steps == 4, "a few-step model gets no more steps"


def test_presets_of_the_algorithm_combine(tmp_path, capsys):
    """With an experiment's and with options, which win."""
    quick = ["--steps", "4", "--iterations", "1", "--limit", "1", "--injection-fractions", "0.3",
             "--stop-at", "none", "--json"]  # fmt: skip
    command = ["counterfactual", "embedded:pairs", "--preset=embedded-uvce", "--preset", "fast"]
    assert cli.main([*command, *quick, "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "done"
    settings = json.loads((tmp_path / "run.json").read_text())["counterfactual"]
    assert settings["judge"] == "embedded:judge" and settings["inversion_method"] == "direct"
    assert settings["injection_fractions"] == [0.3] and settings["stop_at"] is None
    # Experiments of the paper bring the published method; a later one of the algorithm wins.
    words = expand(["counterfactual", "x.png", "--preset=paper-uvce-food", "--preset", "fast"])
    chosen = [after for word, after in itertools.pairwise(words) if word == "--preset"]
    assert chosen == ["exact", "fast"]
    with pytest.raises(UserError, match="are of different experiments: name one"):
        expand(["disagree", "--preset", "embedded-uvce", "--preset", "embedded-disagree"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"inversion": "direct"}, "inversion is no field of CounterfactualSettings: remove it"),
        ({"optimisation.steps": 0}, "steps must be at least 1 and at most 1000000, got 0"),
        ({"optimisation": {}}, "optimisation of .* holds settings: name one"),
        ({"optimisation.steps.more": 1}, "steps of Settings holds no settings"),
        ({"inversion_method": {}}, 'inversion_method must be a value or {"most": NUMBER}'),
        ({"optimisation.steps": {"most": "a"}}, 'steps must be a value or {"most": NUMBER}'),
        ({"stop_at": 10**400}, "stop_at must be .* got 1000"),
        (["optimisation"], "is no preset of the algorithm"),
        (None, "is no preset of the algorithm"),
    ],
)
def test_files_of_settings(tmp_path, content, message):
    file = tmp_path / "own.json"
    whole = {"about": "mine", "settings": {"counterfactual": content}, "notes": []}
    file.write_text(json.dumps(whole if content else {"about": "mine"}))
    with pytest.raises(UserError, match=message):
        load_algorithm(str(file)).of(counterfactual.EMBEDDED)
    with pytest.raises(UserError, match="'quick' does not exist: name one of exact, fast, or a"):
        load_algorithm("quick")
