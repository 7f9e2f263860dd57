"""What is here, what is missing, how much memory it takes, and what to do."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from captioners import save_captioner
from families import save_family
from loaders import LOADERS, hub_snapshot, read, write

from fastdigin import cli
from fastdigin.doctor import machine, memory
from fastdigin.doctor.needs import check_needs
from fastdigin.embedded import model_folder
from fastdigin.engine.costs import measure_step
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.models.missing import kept_offline
from fastdigin.presets import load_preset, preset_names

ROOM = {"name": "a device", "kind": "cpu", "free": 2**40}


def test_the_extras_are_those_of_pyproject():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads(
        (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]

    def names(requirements):
        return tuple(re.split(r"[>\[]", line)[0] for line in requirements)

    extras = {name: names(r) for name, r in project["optional-dependencies"].items()}
    assert {k: v for k, v in extras.items() if k != "test"} == machine.EXTRAS
    assert names(project["dependencies"]) == machine.CORE
    assert machine.packages(("no-such-package",)) == {"no-such-package": None}


@pytest.mark.parametrize("name", [n for n in preset_names() if n.startswith("paper")])
def test_every_papers_preset_says_what_to_fetch(no_network, name):
    options = load_preset(name).options
    needs = check_needs(options)
    specs = [options[k] for k in ("model", "classifier", "f", "g", "segmenter") if k in options]
    assert [need.name for need in needs] == specs
    for need in needs:
        assert need.status == "missing" and need.name in need.problem
        assert need.command.startswith(("hf download ", "curl -L -o "))
        assert need.command in need.problem


def test_what_is_here_and_what_is_wrong(tmp_path):
    """A backbone without a head is enough for similarities, and no classifier."""
    from transformers import AutoModel

    save_captioner("git", tmp_path / "git")
    backbone = LOADERS["hf"].save(tmp_path / "vit")
    AutoModel.from_pretrained(tmp_path / "vit").save_pretrained(tmp_path / "vit")
    wanted = {
        "model": "embedded", "classifier": ["embedded:clean", "nonsense"], "steps": 20,
        "judge": backbone, "embedding": backbone,
        "captions": str(tmp_path / "git"), "words-from": f"captions:{tmp_path / 'none'}",
    }  # fmt: skip
    found = [(need.option, need.status, need.command) for need in check_needs(wanted)]
    assert found == [
        ("model", "here", None), ("classifier", "here", None), ("classifier", "wrong", None),
        ("judge", "wrong", None), ("embedding", "here", None),
        ("captions", "here", None), ("words-from", "wrong", None),
    ]  # fmt: skip


def test_packages_that_a_network_needs(monkeypatch):
    for module in ("timm", "open_clip", "segment_anything_hq", "torchvision.models", "torchvision"):
        monkeypatch.setitem(sys.modules, module, None)
    ours = "fastdigin.models.classifiers."
    for module in [name for name in sys.modules if name.startswith(ours)]:
        monkeypatch.delitem(sys.modules, module)  # those that have imported them already
    options = {
        "f": "timm:resnet18", "g": "open_clip:ViT-B-16/openai", "judge": "torchvision:resnet18",
        "segmenter": "hq-sam:vit_b",
    }  # fmt: skip
    found = {need.name: (need.status, need.command) for need in check_needs(options)}
    extras = ("timm", "clip", "torchvision", "segment")
    for name, extra in zip(options.values(), extras, strict=True):
        assert found[name] == ("missing", f"pip install 'fastdigin[{extra}]'")


def test_a_segmenter_with_weights_of_ones_own(tmp_path):
    """--dry-run must not ask the hub for what the run would not take from there."""
    pytest.importorskip("segment_anything_hq")
    options = {"segmenter": "hq-sam:vit_tiny", "segmenter-weights": str(tmp_path / "mine.pth")}
    (need,) = check_needs(options)
    assert need.status == "wrong" and "mine.pth' does not exist" in need.problem
    (tmp_path / "mine.pth").touch()
    (need,) = check_needs(options)
    assert need.status == "here"


@pytest.mark.parametrize("part", ["unet", "vae", "text encoder", "second text encoder"])
@pytest.mark.parametrize("change", ["none", "missing", "foreign", "shape", "old names"])
def test_the_headers_of_a_model_are_read(tmp_path, monkeypatch, part, change):
    """Without a weight: what a file lacks is wrong here as it is in a run."""
    loader = LOADERS[part]
    source = loader.save(tmp_path)
    state = read(tmp_path / loader.weights)
    name = sorted(name for name in state if name.endswith(".weight"))[-1]
    if change == "missing":
        del state[name]
    elif change == "foreign":
        name = name.replace(".weight", ".lora_A.weight")
        state[name] = torch.ones(2, 2)
    elif change == "shape":
        state[name] = torch.ones(3)
    elif change == "old names":  # of Stable Diffusion 1.4's own files
        for new, old in (("to_q", "query"), ("to_out.0", "proj_attn")):
            state = {key.replace(f"mid_block.attentions.0.{new}", f"mid_block.attentions.0.{old}")
                     if part == "vae" else key: value for key, value in state.items()}  # fmt: skip
    write(tmp_path / loader.weights, state)
    monkeypatch.setattr("safetensors.torch.load_file", None)
    (need,) = check_needs({"model": source})
    right = change in ("none", "old names")
    assert need.status == ("here" if right else "wrong")
    assert right or name.removeprefix("text_model.") in need.problem


def test_the_headers_of_shards_are_read(tmp_path, embedded):
    folder = Path(shutil.copytree(model_folder(), tmp_path / "model"))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    embedded.unet.save_pretrained(folder / "unet", max_shard_size="2MB")
    assert [need.status for need in check_needs({"model": str(folder)})] == ["here"]
    shard = sorted((folder / "unet").glob("*-of-*"))[1]
    state = read(shard)
    name = sorted(state)[0]
    write(shard, {key: value for key, value in state.items() if key != name})
    (need,) = check_needs({"model": str(folder)})
    assert need.status == "wrong" and f"its weights lack {name}" in need.problem
    shard.write_bytes(shard.read_bytes()[:50])
    (need,) = check_needs({"model": str(folder)})
    assert need.status == "wrong" and "cannot be loaded" in need.problem


@pytest.mark.parametrize("offline", [False, True])
def test_looking_leaves_the_network_as_it_was(monkeypatch, offline):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(KeyError), kept_offline():
        assert constants.HF_HUB_OFFLINE
        raise KeyError
    assert offline == constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("family", ["embedded", "sdxl"])
def test_memory_is_that_of_the_loaded_model(tmp_path, family):
    """Weights to the byte; a step beside what the planner measures of it."""
    source = family if family == "embedded" else str(save_family(family, tmp_path))
    found = memory.estimate(source, ROOM)
    model = LatentDiffusion.from_pretrained(source, device="cpu")
    assert found["side"] == model.image_size
    parameters = sum(p.numel() for n in model.networks for p in n.parameters())
    assert found["weights"] == pytest.approx(4 * parameters, rel=1e-4)
    peak = measure_step(model, True, 77).peak
    assert 0.7 < found["step"] / peak < 1.4
    assert found["least"] >= found["weights"] + found["slot"]
    assert found["slots"] > 100
    assert memory.estimate(source, ROOM | {"free": found["weights"]})["slots"] == 0


def run(*arguments) -> int:
    return cli.main(["doctor", *(str(a) for a in arguments)])


def test_command(capsys, monkeypatch, no_network):
    monkeypatch.setattr(memory, "PUBLISHED", {})
    assert run("--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["needs"] == report["commands"] == [] and report["memory"] is None
    assert report["packages"]["torch"] and report["devices"][-1]["kind"] == "cpu"
    assert report["caches"]["hub"]["holds"] == {} and report["caches"]["offline"]

    assert run("--preset", "embedded-uvce") == 0
    printed = capsys.readouterr().out
    assert "here    --judge embedded:judge" in printed and "nothing is missing" in printed
    assert "memory of embedded at 64 px" in printed and "at a time fit" in printed

    assert run("--preset", "paper-uvce-imagenet", "--classifier", "embedded:clean", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    names = {need["name"]: need["status"] for need in report["needs"]}
    assert names["embedded:clean"] == "here" and names["hq-sam:vit_h"] == "missing"
    assert not any(name.startswith("timm") for name in names)
    assert "hf download lkeab/hq-sam sam_hq_vit_h.pth" in report["commands"]

    assert run("--preset", "paper-neurons") == 1
    printed = capsys.readouterr().out
    assert "missing --classifier timm:seresnet152d.ra2_in1k" in printed
    assert "\n  hf download timm/seresnet152d.ra2_in1k\n" in printed
    assert "usage: fastdigin neurons --preset paper-neurons" in printed

    assert run("--classifier", "nonsense") == 1
    printed = capsys.readouterr().out
    assert "wrong   --classifier nonsense" in printed and "is not understood" in printed
    assert run("--preset", "paper-nothing") == 2


def test_cached_models_are_listed(no_network, capsys):
    save_captioner("git", hub_snapshot("someone/git"))
    assert run("--captions", "someone/git") == 0
    printed = capsys.readouterr().out
    assert "    someone/git  " in printed and "here    --captions someone/git" in printed
