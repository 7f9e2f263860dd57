"""What is asked about a device, in one place, and how another one is pretended.

What would run on a GPU can be found out without one: inside `pretend_device` all choices are those
for the named GPU, and fake tensors show which operations are then called. Nothing can be timed
there; each operation says what it expects to be fastest (choice.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """kind: torch.device's type. name: as its driver calls it. capability: a GPU's, else None."""

    kind: str
    name: str
    capability: tuple[int, int] | None = None

    @property
    def family(self) -> str:
        """Whose tiles a GPU takes: sm_80, sm_89, sm_90 or sm_100."""
        if self.capability[0] in (9, 10):
            return f"sm_{self.capability[0]}0"
        return "sm_80" if self.capability == (8, 0) else "sm_89"  # consumer GPUs have as little


# Bytes of shared memory that a block of threads may take.
# CUDA C++ Programming Guide, technical specifications per compute capability.
SHARED_MEMORY = {"sm_80": 163 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}

_pretended: Device | None = None


@contextlib.contextmanager
def pretend_device(
    kind: str = "cuda", capability: tuple[int, int] | None = (9, 0), name: str = "pretended"
) -> Iterator[Device]:
    """Inside, every tensor counts as one on such a device; for all threads of the process.

    Args:
        kind: "cuda" or "cpu".
        capability: The GPU's compute capability: (8, 0) A100, (8, 9) RTX 4090, (9, 0) H100,
            (10, 0) B200. None for a CPU.
        name: What `device_of` calls it.

    Example:
        >>> with pretend_device("cuda", capability=(9, 0)), FakeTensorMode():
        ...     unet(latents, timesteps, text)  # counted by a TorchDispatchMode
    """
    global _pretended
    before = _pretended
    _pretended = Device(kind, name, capability)
    try:
        yield _pretended
    finally:
        _pretended = before


def pretended() -> Device | None:
    """The device that is pretended, or None."""
    return _pretended


def kind_of(device: torch.device) -> str:
    """The type of a device, or of the pretended one."""
    return device.type if _pretended is None else _pretended.kind


def device_of(device: torch.device) -> Device:
    """What a device is, or the pretended one."""
    if _pretended is not None:
        return _pretended
    if device.type != "cuda":
        return Device(device.type, device.type)
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    return Device("cuda", name, capability)
