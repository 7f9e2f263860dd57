"""Files that are whole or not there, hashes that tell inputs apart, and a cache of tensors."""

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
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
_WARNED: set[Path] = set()  # folders that cannot be written: once is enough


def write_atomically(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Writes a temporary file and renames it to ``path``: readers find all of it or none.

    durable: waits until the disk has the content, so that a power cut leaves no empty file.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        # mkstemp files are private to the user; results are meant to be shared.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def fingerprint(*parts: Any) -> str:
    """A short hash of texts, bytes, None and the values of tensors, for people and records."""
    raw = (p.detach().cpu().numpy().tobytes() if isinstance(p, Tensor) else p for p in parts)
    return _digest(raw)[:12]


def cache_key(*parts: Any) -> str:
    """A hash of tensors (shape, dtype and values) and of whatever else ``repr`` tells apart."""
    return _digest(parts)[:32]


def weights_fingerprint(networks: Iterable[nn.Module]) -> str:
    """A hash of all weights and buffers. About a second per GB."""
    digest = hashlib.sha256()
    for network in networks:
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            _feed(digest, tensor)
    return digest.hexdigest()[:32]


def text_hash(text: str, length: int) -> str:
    """``length`` hexadecimal digits that tell texts apart; also text that is not UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def arithmetic(device: torch.device) -> tuple:
    """What the last bits of a result depend on beside its inputs."""
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return torch.__version__, name, threads


def _digest(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            _feed(digest, part)
        else:
            content = part if isinstance(part, bytes) else repr(part).encode("utf-8", "replace")
            digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()


def _feed(digest, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    values = tensor.detach().cpu().contiguous().reshape(-1)
    if values.numel():
        digest.update(values.view(torch.uint8).numpy())


@dataclass(frozen=True)
class TensorCache:
    """Named tensors under a key, in a folder.

    Files are written whole or not at all, and checked by a hash when they are read: one that is
    damaged is not there. Several processes may share a folder. Where it cannot be written, nothing
    is kept.

    Args:
        folder: is made where it does not exist.
        limit: how many bytes the files may take, at least 1; those unused for longest go.

    Raises:
        UserError: a limit below 1.

    Example:
        >>> found = fd.most_activating(classifier, [76], photos, cache=fd.TensorCache(Path("kept")))
    """

    folder: Path
    limit: int = LIMIT

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise UserError(f"limit of the cache must be at least 1 byte, got {self.limit}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"cache folder '{self.folder}' cannot be made: {error}") from None
        except OSError as error:
            self._warn(error)

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
        """Keeps ``tensors``. A full or read-only disk costs the entry, with a warning."""
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content = save(whole, {"hash": _tensors_hash(whole)})
        try:
            write_atomically(self._path(key), content)
        except OSError as error:
            self._warn(error)
            return
        self._evict(keep=self._path(key))

    def _warn(self, error: OSError) -> None:
        if self.folder not in _WARNED:
            _WARNED.add(self.folder)
            log.warning(
                "cache folder '%s' cannot be written (%s); going on without it", self.folder, error
            )

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
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    self._warn(error)
                    return
                excess -= size


def _tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    return cache_key(*(part for name in sorted(tensors) for part in (name, tensors[name])))


def cached(
    cache: TensorCache | None, key: str | None, compute: Callable[[], Mapping[str, Tensor]]
) -> Mapping[str, Tensor]:
    """What is kept under ``key``, or else what ``compute`` returns, which is then kept.

    Nothing is kept where there is no cache or no key.
    """
    return cached_batch(cache, [key], lambda _: [compute()])[0]


def cached_batch(
    cache: TensorCache | None,
    keys: Sequence[str | None],
    compute: Callable[[list[int]], Iterable[Mapping[str, Tensor]]],
) -> list[Mapping[str, Tensor]]:
    """As ``cached`` for several keys: ``compute`` gets the positions of those that are not kept."""
    found: dict[int, Mapping[str, Tensor]] = {}
    for n, key in enumerate(keys):
        kept = cache.get(key) if cache and key else None
        if kept is not None:
            found[n] = kept
    missing = [n for n in range(len(keys)) if n not in found]
    for n, tensors in zip(missing, compute(missing) if missing else (), strict=True):
        found[n] = tensors
        if cache and keys[n]:
            cache.put(keys[n], tensors)
    return [found[n] for n in range(len(keys))]
