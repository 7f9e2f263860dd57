"""What is compiled ahead of time: every Triton kernel with every tile the tuner may choose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastdigin_kernels.attention.tiles import (
    FUSED_INJECTION,
    SHORT_KEYS,
    Lengthwise,
    Tile,
    padded_flops_ratio,
    tiles_for,
)
from fastdigin_kernels.attention.triton_dkv import dkv_constants, dkv_kernel
from fastdigin_kernels.attention.triton_dq import dq_constants, dq_kernel
from fastdigin_kernels.attention.triton_forward import forward_constants, forward_kernel
from fastdigin_kernels.geglu import triton as geglu_triton
from fastdigin_kernels.group_norm_silu import triton as group_norm_triton

ALIGN = (
    8  # elements of 16 bits that are loaded at once; every width of these networks is a multiple
)

# (queries, keys, head size): self and cross attention of SD 1.x at 512 pixels, of SD 2 and SDXL
# (head size 64), and of the embedded model.
ATTENTION_SHAPES = [
    (4096, 4096, 40), (1024, 1024, 80), (256, 256, 160), (4096, 4096, 64), (256, 256, 24),
    (4096, 77, 40), (1024, 77, 80), (256, 77, 160), (4096, 77, 64), (256, 16, 24),
]  # fmt: skip
GROUP_NORM_SHAPE = (320, 32, 4096)  # channels, groups, pixels
GEGLU_WIDTH = 1280


@dataclass(frozen=True)
class Build:
    """One compilation.

    config: what is chosen, for people. constants: constexpr arguments, and None for pointers that
    are not given. full_precision: pointers to fp32 whatever the dtype of the build.
    padded_flops_ratio, bytes_ratio: multiplications issued, and bytes that programs load and
    store, over those needed.
    """

    kernel: str
    config: str
    function: object
    constants: dict
    full_precision: tuple[str, ...]
    warps: int
    stages: int
    padded_flops_ratio: float
    bytes_ratio: float


def builds(family: str) -> Iterator[Build]:
    """Everything for one architecture, in either 16-bit dtype."""
    for queries, keys, size in ATTENTION_SHAPES:
        yield from _attention(queries, keys, size, family)
    yield from _group_norm()
    yield from _geglu()


def _attention(queries: int, keys: int, size: int, family: str) -> Iterator[Build]:
    injects = [None, keys] if keys <= SHORT_KEYS and size <= FUSED_INJECTION else [None]
    for tile in tiles_for("forward", size, keys, 2, family):
        for source_keys in injects:
            yield _attention_build(
                "attention_forward" if source_keys is None else "attention_injected_forward",
                forward_kernel,
                forward_constants(
                    size, queries, keys, source_keys, ALIGN, tile
                ) | ({} if source_keys else {"weight_ptr": None}),
                ("lse_ptr", "weight_ptr", "source_lse_ptr"), (queries, keys, size), tile,
            )  # fmt: skip
    for tile in tiles_for("dq", size, keys, 2, family):
        constants = dq_constants(size, queries, keys, ALIGN, True, False, tile)
        yield _attention_build(
            "attention_dq", dq_kernel, constants | {"factor_ptr": None},
            ("lse_ptr", "delta_ptr"), (queries, keys, size), tile,
        )  # fmt: skip
    for tile in tiles_for("dkv", size, keys, 2, family):
        for v_only in [False] if len(injects) == 1 else [False, True]:
            constants = dkv_constants(size, queries, keys, ALIGN, v_only, v_only, tile)
            absent = {"delta_ptr": None} if v_only else {"factor_ptr": None}
            partial_sums = ("dk_ptr", "dv_ptr") if keys <= SHORT_KEYS else ()
            yield _attention_build(
                "attention_dv" if v_only else "attention_dkv", dkv_kernel,
                constants | absent, ("lse_ptr", "delta_ptr", "factor_ptr", *partial_sums),
                (queries, keys, size), tile,
            )  # fmt: skip


def _attention_build(kernel, function, constants, full_precision, shape, tile: Tile) -> Build:
    queries, keys, size = shape
    rows, cols = constants["ROWS"], constants["COLS"]
    padded = padded_flops_ratio(size, keys, cols, queries, rows)
    return Build(
        kernel, f"{queries}x{keys}x{size} tile {tile}", function, constants, full_precision,
        tile.warps, tile.stages, padded, _attention_bytes(kernel, constants, queries, keys, size),
    )  # fmt: skip


def _attention_bytes(kernel: str, constants: dict, queries: int, keys: int, size: int) -> float:
    """Bytes of one head that programs load and store, over each tensor once.

    What is loaded more than once comes from the level-2 cache: it is the other side's tensors, once
    per tile.
    """
    query_side, key_side = queries * size * 2, keys * size * 2
    query_tiles = -(-queries // constants["ROWS"])
    side = Lengthwise.key_tiles(keys, constants["COLS"])
    key_tiles = keys // side.size + (side.tail > 0)
    if "forward" in kernel:  # q, out and log-sum-exp; k and v
        own, other = 2 * query_side + 4 * queries, 2 * key_side
        parts = 2 if constants["INJECTED"] else 1
        minimum = own + parts * other + (parts - 1) * query_side
        return (minimum + (query_tiles - 1) * parts * other) / minimum
    if kernel == "attention_dq":  # q, dO, dQ, log-sum-exp and delta (and O, with many keys)
        own, other = 3 * query_side + 8 * queries, 2 * key_side
        moved = own + query_tiles * other + (0 if constants["SHORT"] else query_side)
        return moved / (own + other)
    tensors = 1 if constants["V_ONLY"] else 2  # k and v, and as many gradients; q, dO
    own, other = 2 * tensors * key_side, 2 * query_side + 4 * tensors * queries
    return (own + key_tiles * other) / (own + other)


def _group_norm() -> Iterator[Build]:
    """Of the images' bytes, sums read as much as the results."""
    channels, groups, pixels = GROUP_NORM_SHAPE
    statistics = {
        "CHUNK": group_norm_triton.CHUNK,
        "WIDTH": 1 << (channels // groups - 1).bit_length(),
    }
    for way, tensors in (("forward", 1), ("backward", 2)):
        for channels_last, (rows, cols) in group_norm_triton.TILE.items():
            tile = {"ROWS": rows, "COLS": cols, "CHANNELS_LAST": channels_last}
            padded = -(-channels // cols) * cols * (-(-pixels // rows) * rows) / channels / pixels
            config = f"{channels}/{groups}x{pixels} " + (
                "channels last" if channels_last else "planes"
            )
            silu = {} if way == "forward" else {"SILU": True}
            yield _norm_build(f"{way}_sums", config, tile | silu, padded, 1.0)
            moved = (2 * tensors + 1) / (tensors + 1)
            yield _norm_build(way, config, tile | {"SILU": True}, padded, moved)
        yield _norm_build(f"{way}_statistics", f"groups of {channels // groups}", statistics, 1, 1)


def _norm_build(name: str, config: str, constants: dict, padded: float, moved: float) -> Build:
    function = getattr(group_norm_triton, f"{name}_kernel")
    images = ("x_ptr", "y_ptr", "grad_ptr", "dx_ptr", "weight_ptr", "bias_ptr")
    sums = tuple(n for n in function.arg_names if n.endswith("_ptr") and n not in images)
    warps = group_norm_triton.WARPS
    return Build(
        f"group_norm_silu_{name}", config, function, constants, sums, warps, 1, padded, moved
    )


def _geglu() -> Iterator[Build]:
    cols = geglu_triton.COLS
    for name in ("forward", "backward"):
        yield Build(
            f"geglu_{name}", f"width {GEGLU_WIDTH}", getattr(geglu_triton, f"{name}_kernel"),
            {"ROWS": geglu_triton.ROWS, "COLS": cols}, (), geglu_triton.WARPS, 1,
            -(-GEGLU_WIDTH // cols) * cols / GEGLU_WIDTH, 1.0,
        )  # fmt: skip
