"""--device and --dtype: where networks run, in which type, and what a folder keeps of it."""

import pytest
import torch
from cli_commands import CF, NEURONS, PHOTO, QUICK, TARGET, records, run
from safetensors.torch import save_file

from fastdigin import cli
from fastdigin.commands.task import load_task
from fastdigin.tasks.counterfactual import Counterfactuals

OF_PHOTO = [*CF, PHOTO.path, "--target", TARGET]


def parsed(*arguments):
    return cli._parse([str(a) for a in arguments])


@pytest.mark.parametrize(
    "given, model, classifier",
    [
        ([], torch.float32, torch.float32),
        (["--device", "cpu", "--dtype", "bf16"], torch.bfloat16, torch.bfloat16),
        (["--dtype", "bf16", "--classifier-dtype", "fp32"], torch.bfloat16, torch.float32),
        (["--classifier-dtype", "bf16"], torch.float32, torch.bfloat16),
    ],
)
def test_dtypes(given, model, classifier):
    task = load_task(Counterfactuals, parsed(*OF_PHOTO, "--device", "cpu", *given))
    assert task.model.dtype is model and task.model.device.type == "cpu"
    assert task.classifier.dtype is task.judge.dtype is classifier
    assert task.model.state_dtype is torch.float32
    image = torch.rand(1, 3, 64, 64)
    assert task.classifier.logits(image).dtype is torch.float32
    assert task.classifier.probabilities(image).sum() == pytest.approx(1, abs=1e-5)
    unusual = {key: value for key, value in task.run_settings.items() if "dtype" in key and value}
    assert unusual == {
        name: "bfloat16"
        for name, dtype in (
            ("dtype", model), ("classifier_dtype", classifier), ("judge_dtype", classifier),
        )
        if dtype is torch.bfloat16
    }  # fmt: skip


@pytest.mark.parametrize("command", [
    OF_PHOTO,
    [*NEURONS, "--neurons", 3],
    ["activating", PHOTO.path, "--classifier", "embedded:clean", "--neurons", 3],
    ["search", PHOTO.path, PHOTO.path, "--embedding", "embedded:judge"],
    ["demo"],
], ids=lambda command: command[0])  # fmt: skip
@pytest.mark.parametrize(
    "given, words", [(["--device", "gpu"], "'gpu'"), (["--device", "cuda:99"], "cuda:99"),
                     (["--dtype", "fp64"], "--dtype")],
)  # fmt: skip
def test_what_is_not_there_is_refused_by_name(command, given, words, tmp_path, capsys):
    assert run(*command, *given, "--out", tmp_path / "out") == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.fixture
def unpinned():
    yield
    torch.use_deterministic_algorithms(False)


def test_a_deterministic_run_chooses_nothing_by_time(tmp_path, monkeypatch, unpinned):
    """Two runs on a machine that remembers no timings: the same records and pictures."""
    from fastdigin_kernels.common import choice

    monkeypatch.setattr(choice, "_chosen", {})
    monkeypatch.setattr(choice, "time_in_turns", lambda *_: pytest.fail("timed"))
    pinned = ["--deterministic", "--slots", 2, "--compile", "off", "--device", "cpu", "--no-cache"]
    found = []
    for name in ("one", "two"):
        assert run(*OF_PHOTO, *QUICK, *pinned, "--out", tmp_path / name) == 0
        (record,) = records(tmp_path / name)
        picture = (tmp_path / name / record["image"]).read_bytes()
        found.append((record | {"seconds": None}, picture))
    assert found[0] == found[1]


def test_a_deterministic_run_says_what_it_needs(tmp_path, capsys):
    for given in ([], ["--slots", 2], ["--compile", "off"]):
        assert run(*OF_PHOTO, "--deterministic", *given, "--out", tmp_path / "out") == 2
        assert "needs slots (--slots N) and compile on or off" in capsys.readouterr().err


def test_lora(tmp_path):
    """Added at their scales, and part of the model's name, which a folder of results keeps."""
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    before = load_task(Counterfactuals, parsed(*OF_PHOTO, "--device", "cpu")).model
    weight = before.unet.get_submodule(layer).weight
    a, b = torch.ones(1, weight.shape[1]), torch.ones(len(weight), 1)
    save_file({f"unet.{layer}.lora_A.weight": a, f"unet.{layer}.lora_B.weight": b},
              tmp_path / "l.safetensors")  # fmt: skip
    loras = [f"{tmp_path / 'l.safetensors'}{scale}" for scale in (":0.5", "")]
    given = [word for lora in loras for word in ("--lora", lora)]
    model = load_task(Counterfactuals, parsed(*OF_PHOTO, "--device", "cpu", *given)).model
    torch.testing.assert_close(model.unet.get_submodule(layer).weight, weight + 1.5)
    assert model.name == " + ".join(["embedded", *loras])
