"""The options that say how photos are prepared."""

import json
from pathlib import Path

import pytest
from cli_commands import run

from fastdigin import embedded

PHOTOS = embedded.photos()[5:7]
QUICK = ["--steps", "2", "--iterations", "0", "--slots", "2"]
NCF = [
    "neuron-counterfactual", "--classifier", "embedded:spurious", "--neuron", "3",
    "--direction", "min", *(str(p.path) for p in PHOTOS), "--source", PHOTOS[0].garment,
    "--prompt", "a photo of a {}", *QUICK,
]  # fmt: skip


def test_the_users_cache_and_another_inversion(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDIGIN_CACHE", str(tmp_path / "mine"))
    one = [*NCF, "--limit", "1", "--inversion", "negative-prompt"]
    assert run(*one, "--out", tmp_path / "out") == 0
    assert len(list((tmp_path / "mine" / "inversions").glob("*.safetensors"))) == 1
    settings = json.loads((tmp_path / "out" / "run.json").read_text())
    assert settings["neuron-counterfactual"]["inversion_method"] == "negative-prompt"


def test_wrong_options(tmp_path, capsys):
    pytest.importorskip("segment_anything_hq")
    (tmp_path / "file").write_text("")
    for options, message in [
        (["--inversion", "exact"], "--inversion"),
        (["--cache", tmp_path, "--no-cache"], "not allowed with"),
        (["--cache", tmp_path / "file"], "cannot be made"),
        (["--segmenter", "sam"], "hq-sam:KIND"),
        (["--segmenter-weights", "x.pth"], "without --segmenter"),
        (["--segmenter", "hq-sam:vit_b", "--segmenter-weights", tmp_path / "x"], "do not exist"),
    ]:
        assert run(*NCF, *options, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.fixture
def sam_weights(tmp_path, monkeypatch):
    """A small HQ-SAM in place of vit_b, and its checkpoint."""
    pytest.importorskip("segment_anything_hq")
    import torch
    from sam import small_sam

    from fastdigin.models import segmenter

    network = small_sam()
    network.mask_threshold = -1e9  # everything is foreground, which no attention mask says
    monkeypatch.setattr(segmenter, "_registry", lambda: {"vit_b": lambda checkpoint: network})
    torch.save(small_sam().state_dict(), tmp_path / "sam.pth")
    return tmp_path / "sam.pth"


def foreground(out: Path) -> float:
    """The mean of the mask in the results."""
    import numpy as np
    from PIL import Image

    (row,) = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return float(np.asarray(Image.open(out / row["mask"]).convert("L")).mean() / 255)


def test_a_segmenter_finds_the_foreground(tmp_path, sam_weights):
    one = [*NCF, "--limit", "1", "--cache", tmp_path / "cache"]
    chosen = ["--segmenter", "hq-sam:vit_b", "--segmenter-weights", sam_weights]
    assert run(*one, *chosen, "--out", tmp_path / "sam") == 0
    assert foreground(tmp_path / "sam") == 1.0
    assert len(list((tmp_path / "cache" / "masks").iterdir())) == 1
    settings = json.loads((tmp_path / "sam" / "run.json").read_text())
    assert "hq-sam:vit_b by points" in json.dumps(settings)


def test_without_weights_attention_does(tmp_path, capsys, monkeypatch):
    pytest.importorskip("segment_anything_hq")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("FASTDIGIN_CACHE", str(tmp_path / "mine"))
    one = [*NCF, "--limit", "1", "--no-cache", "--segmenter", "hq-sam:vit_b"]
    assert run(*one, "--out", tmp_path / "out") == 0
    error = capsys.readouterr().err
    assert "warning: attention alone" in error and "hf download lkeab/hq-sam" in error
    assert 0 < foreground(tmp_path / "out") < 0.9
    assert not (tmp_path / "mine" / "inversions").exists()
