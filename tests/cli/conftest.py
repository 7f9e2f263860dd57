"""Fixtures of the command line."""

from dataclasses import replace
from pathlib import Path

import pytest
from cli_commands import QUICK, run, words_file


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer candidates and shorter inversions than the defaults, for which there is no option."""
    from fastdigin.tasks.counterfactual import Counterfactuals
    from fastdigin.tasks.neuron_counterfactual import NeuronCounterfactuals
    from fastdigin.tasks.neurons import NeuronVisualisations

    less = {"injection_fractions": (0.5,), "blending_fractions": (0.5,), "null_text_steps": 1}
    for task, changes in (
        (Counterfactuals, less),
        (NeuronCounterfactuals, {"null_text_steps": 1}),
        (NeuronVisualisations, {"samples_per_word": 2}),
    ):
        brief = replace(task.embedded_settings, **changes)
        monkeypatch.setattr(task, "embedded_settings", brief)


MODELS = {}


@pytest.fixture(scope="module", autouse=True)
def packaged_model():
    """Loaded once for all commands that take it as it is."""
    from fastdigin.models.diffusion import LatentDiffusion

    load = LatentDiffusion.from_pretrained

    def loaded(source, **options):
        key = str(options)
        if source != "embedded" or options.get("lora"):
            return load(source, **options)
        if key not in MODELS:
            MODELS[key] = load(source, **options)
        return MODELS[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LatentDiffusion, "from_pretrained", loaded)
        yield


@pytest.fixture
def words(tmp_path):
    return words_file(tmp_path / "words.txt", "sneaker on grass", "bag")


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command that must be refused before anything is written; returns its one message."""

    def refused(*arguments, out=None):
        out = tmp_path / "refused" if out is None else out
        assert run(arguments[0], *QUICK, "--out", out, *arguments[1:]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and "Traceback" not in captured.err
        if isinstance(out, Path) and out.is_dir():
            assert not list(out.iterdir())
        return captured.err

    return refused
