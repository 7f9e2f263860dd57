"""How the Triton attention kernels cut heads and keys into tiles, and which tiles may be chosen.

Needs no Triton: the ahead-of-time build, the tuner and the tests all read it.
"""

from __future__ import annotations

from dataclasses import dataclass

SHORT_KEYS = 128  # up to here a row of scores fits the registers: one key tile, no loop over keys
MAX_HEAD_SIZE = 160  # the largest for which every kernel has a tile that spills no registers
FUSED_INJECTION = 80  # the largest for which the outputs of two attentions fit the registers
_SMALLEST_PIECE = 16  # of a tensor core's operand


@dataclass(frozen=True)
class Tile:
    """One configuration of a kernel.

    rows: queries of a tile. cols: keys of a tile. warps, stages: of a program, and of the software
    pipeline of its loop.
    """

    rows: int
    cols: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols} warps={self.warps} stages={self.stages}"


def split(n: int) -> tuple[int, int]:
    """Two powers of two (the second may be 0) that hold n with little padding.

    40 -> (32, 16), 77 -> (64, 16), 80 -> (64, 16), 160 -> (128, 32), 64 -> (64, 0), 24 -> (32, 0).
    """
    first = max(_SMALLEST_PIECE, 1 << (n.bit_length() - 1))
    if first >= n:
        return first, 0
    second = _power_of_two(n - first)
    return (first, second) if second < first else (2 * first, 0)


@dataclass(frozen=True)
class Lengthwise:
    """How one side (keys or queries) of length n is walked in tiles.

    size: of a full tile. full: how many full tiles there are, "none", "one" or "loop". tail: size
    of the last, masked tile; 0 if there is none.
    """

    size: int
    full: str
    tail: int

    @classmethod
    def walk(cls, n: int, size: int) -> Lengthwise:
        """Full tiles of ``size``, then the smallest power of two that holds the rest."""
        full = n // size
        rest = n - full * size
        tail = _power_of_two(rest) if rest else 0
        return cls(size, "none" if full == 0 else "one" if full == 1 else "loop", tail)

    @classmethod
    def keys(cls, n: int, size: int) -> Lengthwise:
        """The same, but few keys are cut in two at once, whatever ``size`` is: 77 = 64 + 16."""
        return cls.walk(n, split(n)[0] if n <= SHORT_KEYS else size)

    @classmethod
    def key_tiles(cls, n: int, size: int) -> Lengthwise:
        """For programs that take one tile of keys each: few keys in tiles of at most ``size``."""
        return cls.walk(n, min(size, split(n)[0]) if n <= SHORT_KEYS else size)

    def padded(self, n: int) -> int:
        """The length that is computed."""
        return n // self.size * self.size + self.tail


def fit_rows(rows: int, queries: int) -> int:
    """Rows of a tile of queries: fewer than ``rows`` where there are fewer queries."""
    return min(rows, _power_of_two(queries))


def tiles_for(
    kernel: str, head_size: int, keys: int, item_size: int, family: str
) -> tuple[Tile, ...]:
    """The tiles the tuner may choose from, best guess first.

    kernel: "forward", "dq" or "dkv". item_size: bytes of a number. family: "sm_80", "sm_89",
    "sm_90" or "sm_100". All of them for 16-bit numbers compile without spilling registers and fit
    the family's shared memory: the ahead-of-time build (aot.py) shows it, and tests demand it.
    """
    width = sum(split(head_size))
    if item_size == 4:  # multiplied in full precision, without tensor cores
        return (Tile(32, 32, 4, 1),) if width <= 80 else (Tile(16, 32, 4, 1),)
    table = _TILES["sm_80" if family == "sm_89" else family]
    for widest, tiles in table[kernel, keys <= SHORT_KEYS]:
        if width <= widest:
            return tiles
    raise ValueError(f"no tile for head size {head_size}")


def padded_flops_ratio(head_size: int, keys: int, cols: int, queries: int, rows: int) -> float:
    """Multiplications issued over multiplications needed; each at least 1.

    rows: by how many queries the last tile of queries is rounded up.
    """
    head = sum(split(head_size)) / head_size
    key_side = Lengthwise.keys(keys, cols).padded(keys) / keys
    return head * key_side * (-(-queries // rows) * rows / queries)


# Tensor-core instructions of sm_80 and sm_89 hold their operands in registers, those of sm_90 and
# sm_100 read shared memory: hence two tables, and below them what sm_100 has for itself (three of
# sm_90's tiles spill two registers there with Triton 3.6).
# {(kernel, few keys): ((widest padded head, tiles))}.
_TILES = {
    "sm_80": {
        ("forward", False): (
            (80, (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2))),
            (160, (Tile(128, 64, 8, 2),)),
        ),
        ("dq", False): (
            (80, (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2))),
            (160, (Tile(64, 32, 4, 2), Tile(32, 32, 4, 2))),
        ),
        ("dkv", False): (
            (80, (Tile(64, 128, 8, 2), Tile(64, 64, 8, 2))),
            (160, (Tile(16, 32, 4, 2),)),
        ),
        ("forward", True): (
            (48, (Tile(128, 64, 8, 1),)),
            (80, (Tile(64, 64, 8, 1),)),
            (160, (Tile(16, 64, 4, 1),)),
        ),
        ("dq", True): ((80, (Tile(128, 64, 8, 1),)), (160, (Tile(64, 64, 8, 1),))),
        ("dkv", True): (
            (64, (Tile(64, 64, 8, 2),)),
            (80, (Tile(32, 64, 8, 2),)),
            (160, (Tile(16, 32, 4, 2),)),
        ),
    },
    "sm_90": {
        ("forward", False): ((160, (Tile(128, 64, 8, 2), Tile(64, 64, 4, 3))),),
        ("dq", False): ((160, (Tile(128, 64, 8, 2), Tile(64, 64, 4, 3))),),
        ("dkv", False): (
            (80, (Tile(64, 128, 8, 2), Tile(64, 64, 8, 2))),
            (160, (Tile(64, 64, 8, 2), Tile(32, 128, 8, 2))),
        ),
        ("forward", True): ((160, (Tile(128, 64, 8, 1),)),),
        ("dq", True): ((160, (Tile(128, 64, 8, 1),)),),
        ("dkv", True): (
            (64, (Tile(64, 64, 8, 2),)),
            (80, (Tile(32, 64, 4, 2),)),
            (160, (Tile(32, 64, 8, 2),)),
        ),
    },
}
_TILES["sm_100"] = {
    **_TILES["sm_90"],
    ("forward", False): (
        (32, (Tile(128, 64, 8, 2),)),
        (48, (Tile(128, 64, 8, 2), Tile(64, 64, 4, 3))),
        (64, (Tile(64, 64, 4, 3),)),
        (160, (Tile(128, 64, 8, 2), Tile(64, 64, 4, 3))),
    ),
    ("dq", False): (
        (64, (Tile(128, 64, 8, 2), Tile(64, 64, 4, 3))),
        (80, (Tile(64, 64, 4, 3), Tile(128, 32, 8, 2))),
        (160, (Tile(128, 64, 8, 2), Tile(64, 64, 4, 3))),
    ),
    ("forward", True): ((48, (Tile(64, 64, 8, 1),)), (160, (Tile(128, 64, 8, 1),))),
    ("dkv", True): (
        (64, (Tile(64, 64, 8, 2),)),
        (80, (Tile(32, 64, 4, 2),)),
        (160, (Tile(16, 64, 8, 2),)),
    ),
}


def _power_of_two(n: int) -> int:
    return max(_SMALLEST_PIECE, 1 << (n - 1).bit_length())
