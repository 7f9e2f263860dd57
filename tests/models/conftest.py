from __future__ import annotations

import socket

import pytest


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
