"""HF_HUB_OFFLINE=1 in a process of its own: nothing so much as looks up an address."""

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

# What is there works: folders of every kind, and a whole run.
LOCAL = """
from fastdigin import cli
from fastdigin.models.captioner import Captioner
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion

LatentDiffusion.from_pretrained(FOLDERS["model"], device="cpu")
Captioner.load(FOLDERS["captioner"])
Classifier.load("open_clip:" + FOLDERS["clip"], classes=["a", "b"])
Classifier.load("hf:" + FOLDERS["hf"])
code = cli.main(["counterfactual", PHOTO, "--classifier", "embedded:clean", "--target", "bag",
                 "--steps", "2", "--iterations", "1", "--captions", FOLDERS["captioner"],
                 "--out", FOLDERS["out"]])
print(json.dumps({"attempts": attempts, "code": code}))
"""


def save_folders(root: Path) -> dict[str, str]:
    from captioners import save_captioner
    from clip_model import save_model
    from families import save_family
    from loaders import save_vit

    for name in ("clip", "hf"):
        (root / name).mkdir()
    save_family("sd1", root / "model")
    save_captioner("git", root / "captioner")
    save_model(root / "clip")
    save_vit(root / "hf")
    return {name: str(root / name) for name in ("model", "captioner", "clip", "hf", "out")}


@pytest.mark.slow
def test_nothing_tries_the_network(tmp_path):
    for package in ("timm", "open_clip", "torchvision", "segment_anything_hq"):
        pytest.importorskip(package)
    given = {
        "FOLDERS": save_folders(tmp_path),
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
        [sys.executable, "-c", WATCH + names + LOCAL], env=inherited | places,
        capture_output=True, text=True, timeout=600, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["attempts"] == [] and found["code"] == 0


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
