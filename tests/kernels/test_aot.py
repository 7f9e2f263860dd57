import json
import os
from pathlib import Path

import pytest

from fastdigin_kernels.attention.tiles import (
    Lengthwise,
    padded_flops_ratio,
    split,
    tiles_for,
)

FAMILIES = ("sm_80", "sm_89", "sm_90", "sm_100")


@pytest.mark.parametrize(
    ("n", "pieces"),
    [(1, (16, 0)), (16, (16, 0)), (24, (32, 0)), (40, (32, 16)), (64, (64, 0)), (65, (64, 16)),
     (77, (64, 16)), (80, (64, 16)), (96, (64, 32)), (112, (128, 0)), (160, (128, 32))],
)  # fmt: skip
def test_splits(n, pieces):
    assert split(n) == pieces


@pytest.mark.parametrize("n", range(1, 400, 7))
@pytest.mark.parametrize("size", [32, 64, 128])
def test_walks_cover_every_key_once(n, size):
    for side in (Lengthwise.walk(n, size), Lengthwise.keys(n, size), Lengthwise.key_tiles(n, size)):
        full = n // side.size
        assert side.full == ("none", "one")[full] if full < 2 else side.full == "loop"
        assert 0 <= side.padded(n) - n < max(16, side.tail)
        assert (side.tail == 0) == (n % side.size == 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("queries", "keys", "size", "bound"),
    [(4096, 4096, 40, 1.25), (4096, 77, 40, 1.25), (1024, 1024, 80, 1.05), (1024, 77, 80, 1.05),
     (256, 256, 160, 1.05), (256, 77, 160, 1.05), (4096, 4096, 64, 1.05), (4096, 77, 64, 1.05)],
)  # fmt: skip
def test_padding_costs_little_with_every_tile(queries, keys, size, bound, family):
    for kernel in ("forward", "dq", "dkv"):
        for tile in tiles_for(kernel, size, keys, 2, family):
            ratio = padded_flops_ratio(size, keys, tile.cols, queries, tile.rows)
            assert 1 <= ratio <= bound, (kernel, tile)


def test_the_kernels_are_compiled_with_what_the_ratios_count():
    """The ratios of aot.json come from the constants that the launchers pass."""
    pytest.importorskip("triton")
    from fastdigin_kernels.attention.triton_dkv import dkv_constants
    from fastdigin_kernels.attention.triton_dq import dq_constants
    from fastdigin_kernels.attention.triton_forward import forward_constants

    for queries, keys, size in [(4096, 77, 40), (1024, 1024, 80), (256, 77, 160)]:
        for kernel in ("forward", "dq", "dkv"):
            for tile in tiles_for(kernel, size, keys, 2, "sm_80"):
                c = {
                    "forward": lambda q, k, d, t: forward_constants(d, q, k, None, 8, t),
                    "dq": lambda q, k, d, t: dq_constants(d, q, k, 8, True, False, t),
                    "dkv": lambda q, k, d, t: dkv_constants(d, q, k, 8, False, False, t),
                }[kernel](queries, keys, size, tile)
                issued = (c["D0"] + c["D1"]) * (keys // c["COLS"] * c["COLS"] + c["TAIL"])
                ratio = padded_flops_ratio(size, keys, tile.cols, queries, tile.rows)
                assert issued / size / keys == pytest.approx(ratio)


def test_occupancy():
    from fastdigin_kernels.aot import ARCHS, occupancy

    # 8 warps of 128 registers: 65536 / (128 * 32 * 8) = 2 blocks, 16 of 64 warps.
    assert occupancy(ARCHS["sm_80"], 128, 0, 8) == 0.25
    # 80 KiB a block, and one of the 164 is reserved for each: 2 blocks of 4 warps.
    assert occupancy(ARCHS["sm_80"], 32, 80 << 10, 4) == 8 / 64
    assert occupancy(ARCHS["sm_89"], 32, 0, 4) == 1


needs_compiler = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_all_builds_spill_nothing(arch, dtype):
    """Some minutes each."""
    pytest.importorskip("triton")
    from fastdigin_kernels.aot import compile_one
    from fastdigin_kernels.aot_builds import builds

    for build in builds(arch):
        row = compile_one(build, arch, dtype)
        assert row["spills"] == 0 and row["fits"], row


@needs_compiler
def test_the_command_prints_a_table_and_json(capsys, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    from fastdigin_kernels import aot, aot_builds

    every = aot_builds.builds
    monkeypatch.setattr(
        aot_builds, "builds", lambda arch: [b for b in every(arch) if b.kernel == "geglu_forward"]
    )
    out = tmp_path / "aot.json"
    arguments = ["--arch", "sm_90", "--dtype", "fp16", "--jobs", "1", "--out", str(out)]
    assert aot.main(arguments) == 0
    *table, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["rows"]
    assert rows == json.loads(out.read_text())["rows"]
    assert len(rows) == 1 and rows[0]["arch"] == "sm_90" and rows[0]["registers"] > 0
    assert rows[0]["padded_flops_ratio"] == 1 and any("geglu_forward" in line for line in table)


RECORDED = Path(__file__).parents[2] / "bench/results/aot.json"


@pytest.mark.skipif(not RECORDED.exists(), reason="outside of a checkout")
def test_the_recorded_table_is_that_of_the_tiles_that_may_be_chosen():
    """bench/results/aot.json: whoever changes tiles compiles anew, and nothing spills."""
    pytest.importorskip("triton")
    from fastdigin_kernels.aot_builds import builds

    rows = json.loads(RECORDED.read_text())["rows"]
    found = sorted((r["arch"], r["dtype"], r["kernel"], r["config"]) for r in rows)
    assert found == sorted(
        (arch, dtype, build.kernel, build.config)
        for arch in FAMILIES
        for dtype in ("fp16", "bf16")
        for build in builds(arch)
    )
    assert all(row["spills"] == 0 and row["fits"] for row in rows)
