"""Models that many tests share. Nobody changes them."""

import logging
import os
import socket

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: torch, which is imported later, reads it
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory):
    """What is remembered on disk is remembered here, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDIGIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def disk_of_the_session():
    """Nobody waits for the disk: thousands of records would take minutes on a slow one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True)
def log_levels():
    """The command line is quiet; the tests after it hear what they ask for."""
    yield
    for name in list(logging.root.manager.loggerDict):
        if name == "fastdigin" or name.startswith("fastdigin."):
            logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """HF_HUB_OFFLINE as huggingface_hub has it from its import on, empty caches, and no socket."""

    def refuse(*args, **kwargs):
        pytest.fail("tried to reach the network")

    import huggingface_hub.constants

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture
def threads():
    """torch.set_num_threads, whose number is restored."""
    import torch

    count = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(count)


@pytest.fixture(scope="session")
def tiny():
    """A tiny random Stable Diffusion in fp64 that predicts noise (tests/tiny.py)."""
    from tiny import build_tiny

    return build_tiny()


@pytest.fixture(scope="session")
def tiny_v():
    """The same, predicting velocity."""
    from tiny import build_tiny

    return build_tiny("v_prediction")


@pytest.fixture(scope="session")
def model():
    """One with a single transformer, for what takes long."""
    from tiny import build_tiny

    return build_tiny(levels=1).model


@pytest.fixture(scope="session", params=["epsilon", "v_prediction"])
def either(request):
    """Both in turn."""
    return request.getfixturevalue("tiny" if request.param == "epsilon" else "tiny_v")


@pytest.fixture
def rows(tiny, monkeypatch):
    """The rows of every call of the tiny U-Net."""
    sizes, predict = [], tiny.model.predict
    monkeypatch.setattr(
        tiny.model, "predict", lambda z, *args: sizes.append(len(z)) or predict(z, *args)
    )
    return sizes


@pytest.fixture(scope="session")
def embedded():
    """The packaged model in fp32 on the CPU."""
    from fastdigin.models.diffusion import LatentDiffusion

    return LatentDiffusion.load("embedded", device="cpu")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A small CLIP (tests/clip_model.py); skips where open_clip is not installed."""
    pytest.importorskip("open_clip")
    from clip_model import save_model

    folder = tmp_path_factory.mktemp("clip")
    save_model(folder)
    return folder


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """A function from a name of families.FAMILIES to the folder of its model."""
    from functools import cache

    from families import save_family

    return cache(lambda name: save_family(name, tmp_path_factory.mktemp(name)))
