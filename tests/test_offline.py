"""HF_HUB_OFFLINE=1 in a process of its own: nothing so much as looks up an address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdigin import embedded

WATCH = """
import json, socket, sys
attempts = []

def refuse(what):
    def refused(*args, **kwargs):
        attempts.append(f"{what}{args[-1:]}")
        raise OSError("the network was tried")
    return refused

socket.socket.connect = refuse("connect")
socket.socket.connect_ex = refuse("connect_ex")
socket.getaddrinfo = refuse("getaddrinfo")
socket.create_connection = refuse("create_connection")
socket.gethostbyname = refuse("gethostbyname")
"""

# What is not there: each kind of network says which files it lacks and how to fetch them.
MISSING = """
from fastdigin.errors import Missing
from fastdigin.models.captioner import Captioner
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.models.segmenter import Segmenter
from fastdigin.retrieval import load_embedding

def error(load, spec):
    try:
        load(spec)
    except Missing as missing:
        return [str(missing), missing.command]

errors = {spec: error(Classifier.load, spec) for spec in CLASSIFIERS}
errors["someone/model"] = error(LatentDiffusion.load, "someone/model")
errors["someone/captioner"] = error(Captioner.load, "someone/captioner")
errors["hq-sam:vit_b"] = error(Segmenter.load, "hq-sam:vit_b")
errors["embedding"] = error(load_embedding, "open_clip:ViT-B-16/openai")
"""

# What is there works: folders of every kind, and a whole run.
LOCAL = """
from fastdigin import cli

LatentDiffusion.load(FOLDERS["model"], device="cpu")
Captioner.load(FOLDERS["captioner"])
Classifier.load("open_clip:" + FOLDERS["clip"], classes=["a", "b"])
Classifier.load("hf:" + FOLDERS["hf"])
code = cli.main(["counterfactual", PHOTO, "--classifier", "embedded:clean", "--target", "bag",
                 "--steps", "2", "--iterations", "1", "--captions", FOLDERS["captioner"],
                 "--out", FOLDERS["out"]])
print(json.dumps({"attempts": attempts, "errors": errors, "code": code}))
"""

FILES = {  # what is asked for: (files that the message names, the command)
    "timm:vit_base_patch16_384.augreg_in21k_ft_in1k": (
        "model.safetensors", "hf download timm/vit_base_patch16_384.augreg_in21k_ft_in1k"),
    "timm:gcvit_xxtiny.in1k": ("gcvit_xxtiny", "curl -L -o "),
    "timm:hf-hub:someone/net": ("model.safetensors", "hf download someone/net"),
    "torchvision:resnet50.IMAGENET1K_V1": ("resnet50-0676ba61.pth", "curl -L -o "),
    "hf:someone/net": ("preprocessor_config.json", "hf download someone/net"),
    "open_clip:ViT-B-16/openai": ("open_clip_model.safetensors", "hf download "),
    "open_clip:hf-hub:someone/clip": ("open_clip_model.safetensors", "hf download someone/clip"),
    "someone/model": ("someone/model", "hf download someone/model --include"),
    "someone/captioner": ("preprocessor_config.json", "hf download someone/captioner"),
    "hq-sam:vit_b": ("sam_hq_vit_b.pth", "hf download lkeab/hq-sam sam_hq_vit_b.pth"),
    "embedding": ("open_clip_model.safetensors", "hf download "),
}  # fmt: skip
CLASSIFIERS = [spec for spec in FILES if ":" in spec and not spec.startswith("hq-sam")]


def save_folders(root: Path) -> dict[str, str]:
    from captioners import save_captioner
    from clip_model import save_model
    from families import save_family
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    for name in ("clip", "hf"):
        (root / name).mkdir()
    save_family("sd1", root / "model")
    save_captioner("git", root / "captioner")
    save_model(root / "clip")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ViTForImageClassification(ViTConfig(image_size=32, **small)).save_pretrained(root / "hf")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / "hf")
    return {name: str(root / name) for name in ("model", "captioner", "clip", "hf", "out")}


@pytest.mark.slow
def test_nothing_tries_the_network(tmp_path):
    for package in ("timm", "open_clip", "torchvision", "segment_anything_hq"):
        pytest.importorskip(package)
    given = {
        "CLASSIFIERS": CLASSIFIERS, "FOLDERS": save_folders(tmp_path),
        "PHOTO": str(next(p.path for p in embedded.photos() if p.garment != "bag")),
    }  # fmt: skip
    names = "".join(f"{name} = {value!r}\n" for name, value in given.items())
    places = {
        "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "TORCH_HOME": str(tmp_path),
        "FASTDIGIN_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    unset = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", WATCH + names + MISSING + LOCAL], env=inherited | places,
        capture_output=True, text=True, timeout=600, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["attempts"] == [] and found["code"] == 0
    for spec, (file, command) in FILES.items():
        message, fetch = found["errors"][spec]
        assert file in message and fetch.startswith(command) and fetch in message, message
        assert spec in message or spec == "embedding"


def test_the_watch_sees_attempts():
    """What the test above relies on: ordinary ways to the network are noticed."""
    code = WATCH + (
        "import urllib.request\n"
        "try: urllib.request.urlopen('http://example.org')\n"
        "except OSError: pass\n"
        "print(json.dumps(attempts))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout), done.stderr
