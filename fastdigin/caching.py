"""Results worth keeping between runs, as safetensors files in one folder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fastdigin.errors import UserError

LIMIT = 10 * 2**30  # bytes; an inversion of Stable Diffusion 1.x at 512 px and 20 steps takes 6 MB

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TensorCache:
    """Named tensors under a key, in ``folder``.

    Files are written whole or not at all, and checked by a hash when they are read: one that is
    damaged is not there. Where they take more than ``limit`` bytes, those unused for longest go.
    Several processes may share a folder.
    """

    folder: Path
    limit: int = LIMIT

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise UserError(f"limit of the cache must be at least 1 byte, got {self.limit}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cache folder '{self.folder}' cannot be made: {error}") from None

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors kept under ``key``, on the CPU, or None."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                expected = (file.metadata() or {}).get("hash")
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            log.warning("cache file '%s' is damaged and made anew: %s", path, error)
            return None
        if _tensors_hash(tensors) != expected:
            log.warning("cache file '%s' is damaged and made anew: its hash is wrong", path)
            return None
        with contextlib.suppress(OSError):  # another process may have removed it
            os.utime(path)
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps ``tensors``. A full disk costs the entry, with a warning, not the run."""
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content = save(whole, {"hash": _tensors_hash(whole)})
        try:
            handle, part = tempfile.mkstemp(dir=self.folder, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                os.replace(part, self._path(key))
            except BaseException:
                os.unlink(part)
                raise
        except OSError as error:
            log.warning("cache folder '%s' cannot be written: %s", self.folder, error)
            return
        self._evict(keep=self._path(key))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _evict(self, keep: Path) -> None:
        files = []
        for path in self.folder.glob("*.safetensors"):
            with contextlib.suppress(OSError):
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        excess = sum(size for _, size, _ in files) - self.limit
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                excess -= size


def cache_key(*parts: Any) -> str:
    """A hash of tensors (shape, dtype and values) and of whatever else ``repr`` tells apart."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            _feed(digest, part)
        else:
            content = repr(part).encode()
            digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()[:32]


def weights_fingerprint(networks: Iterable[nn.Module]) -> str:
    """A hash of all weights and buffers. About a second per GB."""
    digest = hashlib.sha256()
    for network in networks:
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            _feed(digest, tensor)
    return digest.hexdigest()[:32]


def arithmetic(device: torch.device) -> tuple:
    """What the last bits of a result depend on beside its inputs."""
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return torch.__version__, name, threads


def _feed(digest, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    if plain.numel():
        digest.update(plain.view(torch.uint8).numpy())


def _tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    return cache_key(*(part for name in sorted(tensors) for part in (name, tensors[name])))
