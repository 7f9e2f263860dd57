"""Packages, devices, memory and caches of this machine; nothing here tries the network."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from fastdigin import hardware
from fastdigin_kernels.common import native
from fastdigin_kernels.common.choices import cache_folder

CORE = (
    "torch", "diffusers", "transformers", "safetensors", "numpy", "pillow", "tqdm", "jinja2",
    "filelock", "psutil",
)  # fmt: skip

EXTRAS = {
    "timm": ("timm",),
    "lpips": ("lpips",),
    "clip": ("open_clip_torch",),
    "torchvision": ("torchvision",),
    "datasets": ("pyarrow", "scipy"),
    "segment": ("segment-anything-hq", "timm", "torchvision"),
    "xformers": ("xformers",),
    "train": ("scikit-image", "scipy"),
    "bench": ("matplotlib",),
    "ray": ("ray",),
    "metrics": ("torch-fidelity", "lpips"),
}
"""The optional dependencies of pyproject.toml, but for those of the tests."""


def packages(names: tuple[str, ...] = CORE) -> dict[str, str | None]:
    """Package -> version, None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def extras() -> dict[str, dict[str, str | None]]:
    """Extra -> its packages; it is installed where none of them is None."""
    return {extra: packages(names) for extra, names in EXTRAS.items()}


def devices() -> list[dict[str, Any]]:
    """CUDA devices and the CPU, with total and free bytes; the first is the default one."""
    found = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        free = hardware.of(f"cuda:{index}").free_memory()
        found.append({"name": about.name, "kind": "cuda", "total": about.total_memory,
                      "free": free, "capability": f"{about.major}.{about.minor}"})  # fmt: skip
    cpu = {"name": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads", "kind": "cpu"}
    cpu["total"] = psutil.virtual_memory().total
    cpu["free"] = hardware.of("cpu").free_memory()
    cpu["native library"] = str(native.library_path() or "") or None
    return [*found, cpu]


def caches() -> dict[str, Any]:
    """Where downloaded and computed files are kept, what is there, and the room that is left."""
    from huggingface_hub import constants

    folders = {
        "hub": Path(constants.HF_HUB_CACHE),
        "torch": Path(torch.hub.get_dir()) / "checkpoints",
        "fastdigin": cache_folder(),
    }
    found: dict[str, Any] = {
        name: {"folder": str(folder), "holds": _contents(name, folder), "free": _free_disk(folder)}
        for name, folder in folders.items()
    }
    found["offline"] = bool(constants.HF_HUB_OFFLINE)
    return found


def _contents(kind: str, folder: Path) -> dict[str, int]:
    """Model or file or kind of result -> bytes."""
    if not os.path.isdir(folder):
        return {}
    if kind != "hub":
        return {p.name: _size(p) for p in sorted(folder.iterdir())}
    from huggingface_hub import scan_cache_dir

    return {
        repo.repo_id: repo.size_on_disk for repo in sorted(scan_cache_dir(folder).repos, key=str)
    }


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _free_disk(folder: Path) -> int:
    there = next(p for p in (folder, *folder.absolute().parents) if os.path.isdir(p))
    return shutil.disk_usage(there).free
