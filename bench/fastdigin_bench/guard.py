"""Do two checkouts give the same results, bit for bit?

    python -m fastdigin_bench.guard OLD NEW

runs the demo and eight counterfactuals in both checkouts and compares the records key by key and
the pictures byte by byte. What the last bits depend on is fixed: the attention, the slots, the
threads, and no compiled steps. It prints a table and, last, one line of JSON; the exit code is 1
where anything differs. Times are not compared. New keys are listed and are no difference.

It imports nothing of fastdigin, so that any checkout's copy can compare any two.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

RUNS = {
    "demo": ["demo", "--attention", "cpp"],
    "pairs": [
        "counterfactual", "embedded:pairs", "--classifier", "embedded:robust", "--limit", "8",
        "--attention", "cpp", "--slots", "8", "--compile", "off", "--no-cache",
    ],
}  # fmt: skip
LIBRARY = Path("kernels/fastdigin_kernels/libfastdigin_cpu.so")
TIMES = {"seconds"}
COMPLETE = "complete.json"  # says of which checkout the outputs beside it are


class GuardError(Exception):
    """Nothing was compared; the message says why."""


@dataclass
class Comparison:
    """What differs between two output folders of one run."""

    records: int = 0
    pictures: int = 0
    new_keys: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares two checkouts; returns 0 where they agree, 1 where not, 2 where they cannot run."""
    options = _parser().parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (options.keep or Path(temporary)).resolve()
            checkouts = {"old": options.old.resolve(), "new": options.new.resolve()}
            seconds = _run_both(checkouts, folder, options.threads, options.one_by_one)
            found = {name: compare(folder / "old" / name, folder / "new" / name) for name in RUNS}
    except GuardError as error:
        print(f"guard: {error}", file=sys.stderr)
        return 2
    libraries = {_digest(checkout / LIBRARY) for checkout in checkouts.values()}
    _print_table(found)
    same = not any(comparison.differences for comparison in found.values())
    line = {
        "same": same,
        "same_library": len(libraries) == 1,
        "seconds": seconds,
        **{name: asdict(comparison) for name, comparison in found.items()},
    }
    print(json.dumps(line))
    return 0 if same else 1


def compare(old: Path, new: Path) -> Comparison:
    """Compares the records and the pictures of two results folders."""
    found = Comparison()
    before, after = _read_records(old), _read_records(new)
    found.records = len(before)
    for job in sorted(before.keys() | after.keys()):
        name = "/".join(job)
        if job not in before or job not in after:
            found.differences.append(f"{name}: only in {'OLD' if job in before else 'NEW'}")
            continue
        _compare_records(name, before[job], after[job], found)
    pictures = {path.relative_to(root) for root in (old, new) for path in root.rglob("*.png")}
    found.pictures = len(pictures)
    for path in sorted(pictures):
        if not (old / path).exists() or not (new / path).exists():
            found.differences.append(f"{path}: only in {'OLD' if (old / path).exists() else 'NEW'}")
        elif (old / path).read_bytes() != (new / path).read_bytes():
            found.differences.append(f"{path}: other bytes")
    if not before:
        found.differences.append("OLD has no records")
    return found


def _compare_records(name: str, before: dict, after: dict, found: Comparison) -> None:
    for key in after.keys() - before.keys():
        if key not in found.new_keys:
            found.new_keys.append(key)
    for key in sorted(before.keys() - TIMES):
        if key not in after:
            found.differences.append(f"{name}: key {key!r} is missing in NEW")
        elif before[key] != after[key]:
            values = f"{_short(before[key])}, now {_short(after[key])}"
            found.differences.append(f"{name}: {key!r} was {values}")
    if "failed" in (before.get("status"), after.get("status")):
        # Two equal failures would say nothing of the pictures.
        found.differences.append(f"{name}: failed: {after.get('error') or before.get('error')}")


def _read_records(folder: Path) -> dict[tuple[str, str], dict]:
    """(task, id) -> the last record of it."""
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return {(record["task"], record["id"]): record for record in map(json.loads, lines)}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _run_both(
    checkouts: dict[str, Path], folder: Path, threads: int, one_by_one: bool
) -> dict[str, float | None]:
    """Runs what is needed in ``folder``/old and /new; seconds of each, None for kept outputs."""
    for checkout in checkouts.values():
        _check(checkout)
    with ThreadPoolExecutor(1 if one_by_one else len(checkouts)) as pool:
        running = {
            name: pool.submit(_run_checkout, checkout, folder / name, threads, name == "old")
            for name, checkout in checkouts.items()
        }
        return {name: seconds.result() for name, seconds in running.items()}


def _check(checkout: Path) -> None:
    """Raises GuardError for a checkout that cannot run or whose code would not be what runs."""
    if not (checkout / LIBRARY).is_file():
        raise GuardError(
            f"'{checkout}' has no {LIBRARY}: build it with 'cmake -S . -B build && cmake --build "
            f"build' there and copy the library to {LIBRARY}"
        )
    code = "import fastdigin as f, fastdigin_kernels as k; print(f.__file__, k.__file__, sep='\\n')"
    found = subprocess.run(
        [sys.executable, "-c", code], env=_environment(checkout), capture_output=True, text=True,
        cwd=tempfile.gettempdir(),  # where no code lies
    )  # fmt: skip
    files = [Path(line).resolve() for line in found.stdout.splitlines()]
    if found.returncode or not all(checkout in file.parents for file in files):
        raise GuardError(
            f"fastdigin of '{checkout}' is not what Python imports there: {files or found.stderr}"
        )


def _run_checkout(checkout: Path, out: Path, threads: int, keep: bool) -> float | None:
    """Runs everything into ``out``, unless it may be kept; returns the seconds it took."""
    origin = {
        "checkout": str(checkout),
        "library": _digest(checkout / LIBRARY),
        "threads": threads,
        "runs": RUNS,
    }
    if keep and _read_origin(out) == origin:
        return None
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    start = time.perf_counter()
    for name, command in RUNS.items():
        with (out / f"{name}.log").open("wb") as log, tempfile.TemporaryDirectory() as cache:
            environment = _environment(checkout) | {
                "FASTDIGIN_CACHE": cache,
                "OMP_NUM_THREADS": str(threads),
                "TQDM_DISABLE": "1",
            }
            code = subprocess.run(
                [sys.executable, "-m", "fastdigin.cli", *command, "--out", str(out / name)],
                env=environment, cwd=out, stdout=log, stderr=subprocess.STDOUT,
            ).returncode  # fmt: skip
        if code not in (0, 1):  # 1: some jobs failed, which the comparison says
            tail = (out / f"{name}.log").read_text(errors="replace")[-2000:]
            raise GuardError(f"{name} of '{checkout}' ended with exit code {code}:\n{tail}")
    seconds = round(time.perf_counter() - start, 1)
    (out / COMPLETE).write_text(json.dumps(origin))
    return seconds


def _read_origin(out: Path) -> dict | None:
    try:
        return json.loads((out / COMPLETE).read_text())
    except (OSError, ValueError):
        return None


def _environment(checkout: Path) -> dict[str, str]:
    path = os.pathsep.join(str(checkout / folder) for folder in ("", "kernels", "bench"))
    return os.environ | {"PYTHONPATH": path}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _print_table(found: dict[str, Comparison]) -> None:
    print(f"{'run':<8}{'records':>8}{'pictures':>10}{'differences':>13}  new keys")
    for name, one in found.items():
        keys = ", ".join(one.new_keys) or "-"
        print(f"{name:<8}{one.records:>8}{one.pictures:>10}{len(one.differences):>13}  {keys}")
    for name, one in found.items():
        print(*(f"{name}: {difference}\n" for difference in one.differences), sep="", end="")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastdigin_bench.guard",
        description="Do two checkouts give the same results, bit for bit?",
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="checkout to compare with")
    parser.add_argument("new", type=Path, metavar="NEW", help="checkout that changed")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="each (default 1)")
    parser.add_argument("--one-by-one", action="store_true", help="not both at the same time")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR",
        help="keep the outputs there, and take OLD's from there where they are complete",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
