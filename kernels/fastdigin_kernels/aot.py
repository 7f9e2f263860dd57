"""Compiles every Triton kernel ahead of time, without a GPU, and reports what came of it.

    python -m fastdigin_kernels.aot [--arch sm_90 ...] [--dtype fp16 ...] [--jobs 2] [--out FILE]

Prints a table and, last, one line of JSON. Nothing is kept but Triton's own cache, so a second run
is quick. Registers and spills are those of the machine code, as cuobjdump reads them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fastdigin_kernels.common.devices import SHARED_MEMORY

DTYPES = ("fp16", "bf16")


@dataclass(frozen=True)
class Arch:
    """What one streaming multiprocessor has: bytes of shared memory, resident warps and blocks.

    (CUDA C++ Programming Guide, technical specifications per compute capability.)
    """

    shared: int
    warps: int
    blocks: int


ARCHS = {
    "sm_80": Arch(164 << 10, 64, 32),
    "sm_89": Arch(100 << 10, 48, 24),
    "sm_90": Arch(228 << 10, 64, 32),
    "sm_100": Arch(228 << 10, 64, 32),
}


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if a configuration spills or does not fit its architecture, else 0."""
    options = _parse(arguments)
    try:
        import triton  # noqa: F401
    except ImportError:
        sys.exit("the ahead-of-time build needs Triton: pip install triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET is set: the interpreter compiles nothing; unset it")
    rows = compile_all(options.arch, options.dtype, options.jobs)
    if options.out is not None:
        options.out.write_text(_one_row_a_line(triton.__version__, rows))
    wrong = [row for row in rows if row["spills"] or not row["fits"]]
    for row in wrong:
        print(f"spills or does not fit: {_line(row)}", file=sys.stderr)
    print(json.dumps({"triton": triton.__version__, "rows": rows}))
    return 1 if wrong else 0


def compile_all(archs: list[str], dtypes: list[str], jobs: int) -> list[dict]:
    """One row per kernel, configuration, dtype and architecture; prints the table as it goes."""
    from fastdigin_kernels.aot_builds import builds

    work = [
        (arch, dtype, i)
        for dtype in dtypes
        for arch in archs
        for i in range(len(list(builds(arch))))
    ]
    print(_HEADER, flush=True)
    rows = []
    with ProcessPoolExecutor(jobs) if jobs > 1 else contextlib.nullcontext() as pool:
        for row in (pool.map if pool else map)(_compile_numbered, work):
            print(_line(row), flush=True)
            rows.append(row)
    return rows


def compile_one(build, arch: str, dtype: str) -> dict:
    """Compiles one aot_builds.Build and measures it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(build.function, *_signature(build, dtype))
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", int(arch.removeprefix("sm_")), 32),
        options={"num_warps": build.warps, "num_stages": build.stages},
    )
    registers, stack = _registers_and_stack(compiled.asm["cubin"])
    shared = compiled.metadata.shared
    return {
        "kernel": build.kernel,
        "config": build.config,
        "arch": arch,
        "dtype": dtype,
        "registers": registers,
        "spills": stack // 4,  # registers of a thread that live in local memory
        "shared_bytes": shared,
        "fits": shared <= SHARED_MEMORY[arch],
        "occupancy": round(occupancy(ARCHS[arch], registers, shared, build.warps), 3),
        "padded_flops_ratio": round(build.padded_flops_ratio, 4),
        "bytes_ratio": round(build.bytes_ratio, 3),
    }


def occupancy(arch: Arch, registers: int, shared: int, warps: int) -> float:
    """Share of a multiprocessor's warps that can be resident at once.

    Registers are given to warps in units of 256 out of 65536, shared memory to blocks in units of
    128 bytes after one reserved kilobyte.
    """
    registers_of_warp = -(-registers * 32 // 256) * 256
    by_registers = 65536 // registers_of_warp // warps
    by_shared = arch.shared // (-(-shared // 128) * 128 + 1024)
    return min(by_registers, by_shared, arch.warps // warps, arch.blocks) * warps / arch.warps


def _compile_numbered(work: tuple[str, str, int]) -> dict:
    """In a worker: kernels cannot be pickled, their numbers can."""
    from fastdigin_kernels.aot_builds import builds

    arch, dtype, i = work
    return compile_one(list(builds(arch))[i], arch, dtype)


def _signature(build, dtype: str) -> tuple[dict, dict, dict]:
    """Argument types, constants by position, and which pointers are aligned to 16 bytes: all."""
    types, constants, attributes = {}, {}, {}
    for i, name in enumerate(build.function.arg_names):
        if name in build.constants:
            types[name] = "constexpr"
            constants[i,] = build.constants[name]
        elif name.endswith("_ptr"):
            types[name] = "*fp32" if name in build.full_precision else f"*{dtype}"
            attributes[i,] = [["tt.divisibility", 16]]
        else:
            types[name] = "fp32" if name in ("scale", "scale_log2", "eps") else "i32"
    return types, constants, attributes


def _registers_and_stack(cubin: bytes) -> tuple[int, int]:
    import triton

    cuobjdump = Path(triton.__path__[0], "backends", "nvidia", "bin", "cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [cuobjdump, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return int(registers), int(stack)


_HEADER = (
    f"{'kernel':28}{'config':44}{'arch':>7}{'dtype':>6}{'regs':>5}{'spills':>7}{'shared':>8}"
    f"{'occup.':>7}{'FLOPs':>7}{'bytes':>7}"
)


def _line(row: dict) -> str:
    return (
        f"{row['kernel']:28}{row['config']:44}{row['arch']:>7}{row['dtype']:>6}"
        f"{row['registers']:5}{row['spills']:7}{row['shared_bytes']:8}{row['occupancy']:7.2f}"
        f"{row['padded_flops_ratio']:7.3f}{row['bytes_ratio']:7.2f}"
    )


def _one_row_a_line(version: str, rows: list[dict]) -> str:
    lines = ",\n".join(json.dumps(row) for row in rows)
    return f'{{"triton": "{version}", "rows": [\n{lines}\n]}}\n'


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fastdigin_kernels.aot", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--arch", nargs="+", choices=ARCHS, default=list(ARCHS))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="also write the rows to this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
