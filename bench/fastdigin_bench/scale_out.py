"""What scale-out on Ray survives, and what it costs, with an engine that only sleeps.

    python -m fastdigin_bench.scale_out chaos  [--jobs 2000] [--kills 25] [--driver-kills 10]
    python -m fastdigin_bench.scale_out growth [--jobs 1000 10000 100000] [--workers 16]
    python -m fastdigin_bench.scale_out overhead [--photos 112] [--rounds 2] [--ways WAY ...]

chaos: workers and the driver are killed (SIGKILL) at random moments of their work, one job runs out
of memory once and one finds the disk full once; in the end every job must have exactly one record,
and its pictures must be those of an undisturbed run. growth: the driver's memory and the time per
job as the jobs become many; every path is the real one but for the engine. overhead: seconds an
image, by turns, of one process, of processes and of Ray on the same cores; the engine is real, and
the machine must have nothing else to do. Last comes one line of JSON, also written to
bench/results/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from fastdigin import embedded
from fastdigin.results.store import RESULTS_FILE, ResultStore
from fastdigin_bench.output import results_folder
from fastdigin_bench.sleep_task import SLOTS, Sleep, SleepEngine, SleepRecord, load, picture


def drive(out: Path, faults: Path, jobs: int, workers: int, seconds: float) -> dict[str, Any]:
    """One run, as ``fastdigin TASK --ray`` makes it; what it cost."""
    from fastdigin.scale.driver import Pool, Run, connect
    from fastdigin.scale.tail import Finished

    connect(None)
    task = Sleep(engine=SleepEngine(seconds, faults), count=jobs)
    ResultStore(out, task.name, task.run_settings)
    done = Finished(out)
    done.read()
    ids = [r.id for r in task.requests if not done.line(task.name, r.id)]
    began, first = time.monotonic(), {}

    def on_record(line: Mapping[str, Any]) -> None:
        if not first:
            first.update(seconds=time.monotonic() - began, **_processor_seconds())

    run = Run(
        task=task.name, ids=ids, out=out, load=partial(load, seconds, str(faults), jobs),
        pool=Pool.of_cluster(workers), slots=SLOTS, finished=jobs - len(ids),
        on_record=on_record,
    )  # fmt: skip
    run.run()
    last = {"seconds": time.monotonic() - began, **_processor_seconds()}
    return {
        "jobs": jobs, "errors": len(run.errors), "seconds_to_first": first.get("seconds"),
        "ms_per_job": {key: 1e3 * (last[key] - first.get(key, 0.0)) / jobs for key in last},
        "driver_mib": psutil.Process().memory_info().rss / 2**20,
    }  # fmt: skip


def _processor_seconds() -> dict[str, float]:
    """Of this process, and of all that it has started and that live."""
    own, all = psutil.Process(), 0.0
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            all += times.user + times.system
    return {"driver": time.process_time(), "all": all}


def check(out: Path, jobs: int) -> dict[str, int]:
    """How many jobs lack a record, have two, or a picture that is not theirs."""
    lines = [json.loads(line) for line in (out / RESULTS_FILE).read_bytes().splitlines()]
    times = Counter(line["id"] for line in lines if line["status"] == "done")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for id in times:
            record = SleepRecord(id=id, pictures={"image": picture(id)})
            expected = Path(folder) / record.save(folder)["image"]
            wrong += expected.read_bytes() != (out / expected.relative_to(folder)).read_bytes()
            expected.unlink()
    return {
        "missing": jobs - len(times),
        "twice": sum(count > 1 for count in times.values()),
        "wrong_pictures": wrong,
    }


def chaos(jobs: int, kills: int, driver_kills: int, seconds: float) -> dict[str, Any]:
    """Kills while two workers do the jobs, until all are done."""
    rng, began = random.Random(0), time.monotonic()
    killed = {"workers": 0, "drivers": 0}
    every = max(1, 2 * jobs // (3 * (kills + driver_kills)))  # all come before the end
    codes = []
    with tempfile.TemporaryDirectory() as folder, _cluster() as cluster:
        out, faults = Path(folder) / "out", Path(folder) / "faults"
        faults.mkdir()
        for fault, number in (("memory", jobs // 3), ("disk", jobs // 2)):
            (faults / f"{fault}-job-{number:07d}").touch()
        command = [
            sys.executable, "-m", "fastdigin_bench.scale_out", "drive", str(out), str(faults),
            str(jobs), "2", str(seconds),
        ]  # fmt: skip
        while not codes or codes[-1] != 0:
            driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            codes.append(_disturb(driver, cluster, out, rng, killed, kills, driver_kills, every))
            print(
                f"driver ended with {codes[-1]}: {_count(out)} records, {killed}", file=sys.stderr
            )
        left = [path.name for path in faults.iterdir()]
        found = check(out, jobs)
    return {
        "jobs": jobs, "killed": killed, "driver_codes": codes, "faults_left": left,
        "minutes": round((time.monotonic() - began) / 60, 1), **found,
    }  # fmt: skip


@contextlib.contextmanager
def _cluster() -> Iterator[int]:
    """The id of a process that has a Ray of its own, which the drivers join: it outlives them."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    code = "import ray; print(ray.init(num_cpus=2).address_info['address'], flush=True); input()"
    keeper = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    os.environ["RAY_ADDRESS"] = keeper.stdout.readline().strip()
    if not os.environ["RAY_ADDRESS"]:
        raise SystemExit("Ray does not start on this machine")
    try:
        yield keeper.pid
    finally:
        keeper.communicate("\n")


def _disturb(
    driver, cluster: int, out: Path, rng, killed, kills: int, driver_kills: int, every: int
) -> int:
    """Kills the cluster's workers as records come, and the driver in the end; its exit code.

    every: how many records come between two kills, on average. A kill by the clock alone would
    find workers that still load, on a busy machine.
    """
    share = math.ceil((kills - killed["workers"]) / (driver_kills - killed["drivers"] + 1))
    mine, following = 0, _count(out) + rng.randrange(2 * every)
    while driver.poll() is None:
        time.sleep(rng.uniform(0, 2))
        workers = _workers_of(cluster)
        if not workers or _count(out) < following:
            continue
        if mine < share and killed["workers"] < kills:
            rng.choice(workers).kill()
            killed["workers"] += 1
            mine += 1
        elif killed["drivers"] < driver_kills:
            driver.kill()
            killed["drivers"] += 1
        following = _count(out) + rng.randrange(2 * every)
    return driver.wait()


def _count(out: Path) -> int:
    """Records, also of what is being written."""
    path = out / RESULTS_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _workers_of(pid: int) -> list[psutil.Process]:
    found = []
    try:
        for process in psutil.Process(pid).children(recursive=True):
            if "MapWorker" in " ".join(process.cmdline()):
                found.append(process)
    except psutil.NoSuchProcess:
        pass
    return found


def growth(sizes: list[int], workers: int, seconds: float) -> dict[str, Any]:
    """The same run with ever more jobs, each in a process of its own."""
    rows = []
    for jobs in sizes:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable, "-m", "fastdigin_bench.scale_out", "drive", f"{folder}/out",
                folder, str(jobs), str(workers), str(seconds),
            ]  # fmt: skip
            shown = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(shown.stdout.splitlines()[-1])
            row |= check(Path(folder) / "out", jobs)
        rows.append(row)
        cost = row["ms_per_job"]
        print(
            f"{jobs:9,} jobs: first record after {row['seconds_to_first']:.1f} s, then "
            f"{cost['seconds']:.2f} ms a job; of processors {cost['all']:.2f} ms, of which the "
            f"driver {cost['driver']:.3f}; driver {row['driver_mib']:.0f} MiB", file=sys.stderr,
        )  # fmt: skip
    return {"workers": workers, "seconds_per_job": seconds, "runs": rows}


WAYS = {
    "one process": (),
    "two processes": ("--workers", "2"),
    "Ray, one worker": ("--ray", "--workers", "1"),
    "Ray, two workers": ("--ray", "--workers", "2"),
}
"""Of running a command on the same cores."""


def overhead(photos: int, rounds: int, ways: Sequence[str]) -> dict[str, Any]:
    """Seconds an image after start-up, of each way in turn, and beside those without Ray."""
    # A photo of the target itself would fail.
    chosen = [photo for photo in embedded.photos() if photo.garment != "boot"][:photos]
    table = "image,source\n" + "".join(f"{p.path},{p.garment}\n" for p in chosen)
    command = [
        sys.executable, "-m", "fastdigin.cli", "counterfactual", "--classifier", "embedded:robust",
        "--target", "boot", "--slots", str(SLOTS),
    ]  # fmt: skip
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            with tempfile.TemporaryDirectory() as folder:
                # Nobody finds an inversion of the run before.
                own = {"FASTDIGIN_CACHE": folder, "OMP_NUM_THREADS": str(os.cpu_count())}
                out, inputs = Path(folder) / "out", Path(folder) / "photos.csv"
                inputs.write_text(table)
                subprocess.run(
                    [*command, str(inputs), "--out", str(out), *WAYS[way]], check=True,
                    env=os.environ | own, stdout=subprocess.DEVNULL,
                )  # fmt: skip
                found[way].append(_seconds_an_image(out))
            print(f"{way:17} {found[way][-1]:.2f} s an image", file=sys.stderr)
    medians = {way: statistics.median(times) for way, times in found.items()}
    return {
        "photos": len(chosen), "load": os.getloadavg(), "seconds_an_image": found,
        "medians": medians,
        "overheads": {
            f"{ray} beside {plain}": medians[ray] / medians[plain] - 1
            for ray in ways if ray.startswith("Ray")
            for plain in ways if not plain.startswith("Ray")
        },
    }  # fmt: skip


def _seconds_an_image(out: Path) -> float:
    """From the end of the first batch to that of the last, by the times of the pictures."""
    lines = [json.loads(line) for line in (out / RESULTS_FILE).read_bytes().splitlines()]
    times = sorted((out / line["image"]).stat().st_mtime for line in lines)
    return (times[-1] - times[SLOTS - 1]) / (len(times) - SLOTS)


def main() -> int:
    """Runs the command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fastdigin_bench.scale_out")
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("chaos")
    one.add_argument("--jobs", type=int, default=2000)
    one.add_argument("--kills", type=int, default=25)
    one.add_argument("--driver-kills", type=int, default=10)
    one.add_argument("--seconds", type=float, default=0.1, help="that a job sleeps")
    many = kinds.add_parser("growth")
    many.add_argument("--jobs", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    many.add_argument("--workers", type=int, default=16)
    many.add_argument("--seconds", type=float, default=0.01, help="that a job sleeps")
    real = kinds.add_parser("overhead")
    real.add_argument("--photos", type=int, default=112)
    real.add_argument("--rounds", type=int, default=2)
    real.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    single = kinds.add_parser("drive")
    for name, kind in (("out", Path), ("faults", Path), ("jobs", int), ("workers", int),
                       ("seconds", float)):  # fmt: skip
        single.add_argument(name, type=kind)
    options = parser.parse_args()
    if options.kind == "drive":
        result = drive(options.out, options.faults, options.jobs, options.workers, options.seconds)
        print(json.dumps(result))
        sys.stdout.flush()
        os._exit(1 if result["errors"] else 0)  # Ray's own end takes seconds, and a thread waits
    if options.kind == "chaos":
        result = chaos(options.jobs, options.kills, options.driver_kills, options.seconds)
        bad = any(result[key] for key in ("missing", "twice", "wrong_pictures", "faults_left"))
        bad |= result["killed"] != {"workers": options.kills, "drivers": options.driver_kills}
    elif options.kind == "overhead":
        result = overhead(options.photos, options.rounds, options.ways)
        costs = result["overheads"].items()  # one worker a core is what --ray starts by itself
        bad = any(cost > 0.05 for pair, cost in costs if pair.startswith("Ray, two workers"))
    else:
        result = growth(options.jobs, options.workers, options.seconds)
        bad = any(r["missing"] or r["twice"] or r["wrong_pictures"] for r in result["runs"])
    text = json.dumps({"bench": f"scale_out {options.kind}", **result})
    (results_folder(None) / f"scale-{options.kind}.json").write_text(text + "\n")
    print(text)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
