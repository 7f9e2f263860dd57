"""What is assumed of each GPU: nothing here was measured by us.

The rates of an H100 are assumptions about what good kernels of these shapes reach: 45% of the peak
for convolutions, 35% for linear layers, 20% and 15% for attention, 75% in fp32 and of the memory's
bandwidth. Those of the others are in the same proportion to the peaks of their data sheets, which
are for dense products:

    GPU       fp16/bf16 TFLOP/s   fp32 TFLOP/s   TB/s    source
    H100      989.4               67.0           3.35    NVIDIA H100 data sheet, SXM5 80 GB
    A100      312                 19.5           2.039   NVIDIA A100 data sheet, SXM4 80 GB
    RTX 4090  165.2               82.6           1.008   NVIDIA Ada whitepaper, fp32 accumulation

So a convolution on an A100 runs at 450 * 312 / 989.4 = 142 TFLOP/s.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Rates:
    """TFLOP/s of products by kind in half precision, of all products in fp32, and TB/s of memory.

    fp32 serves fp64 too, of which the engine has no product.
    """

    convolution: float
    linear: float
    attention: float
    attention_backward: float
    fp32: float
    memory: float

    def of(self, kind: str, dtype: torch.dtype) -> float:
        """FLOP/s."""
        return 1e12 * (getattr(self, kind) if dtype in HALF else self.fp32)

    def scaled(self, half: float, fp32: float, memory: float) -> Rates:
        """Those of a GPU whose peaks are so many times these."""
        products = (self.convolution, self.linear, self.attention, self.attention_backward)
        return Rates(*(round(half * rate, 1) for rate in products),
                     round(fp32 * self.fp32, 1), round(memory * self.memory, 2))  # fmt: skip

    def described(self) -> dict[str, float]:
        """As the line of JSON says them."""
        known = asdict(self)
        memory = known.pop("memory")
        return {f"{k}_tflops": rate for k, rate in known.items()} | {"memory_tb_per_s": memory}


@dataclass(frozen=True)
class Gpu:
    """name: as its driver calls it. memory: in bytes, as much as a process may use."""

    name: str
    capability: tuple[int, int]
    memory: int
    rates: Rates


_H100 = Rates(450, 350, 200, 150, 50, 2.5)

GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 79 * 2**30, _H100),
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB", (8, 0), 79 * 2**30,
        _H100.scaled(312 / 989.4, 19.5 / 67.0, 2.039 / 3.35),
    ),
    "rtx4090": Gpu(
        "NVIDIA GeForce RTX 4090", (8, 9), 23 * 2**30,
        _H100.scaled(165.2 / 989.4, 82.6 / 67.0, 1.008 / 3.35),
    ),
}  # fmt: skip
