"""A GPU that is not there: the engine takes its decisions, on CPU tensors."""

from __future__ import annotations

from fastdigin.hardware import Hardware


class PretendedGpu(Hardware):
    """As large as an H100 unless told otherwise."""

    is_gpu, capability, name, total_memory = True, (9, 0), "pretended", 80 * 2**30

    def __init__(self, free: int = 79 * 2**30):
        super().__init__()
        self.free = free

    def free_memory(self) -> int:
        return self.free
