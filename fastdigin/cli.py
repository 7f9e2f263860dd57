"""The command line: one command per task, and demo, bench and info.

stdout carries results (JSON lines with --json), stderr progress and logs. Exit codes: 0 all jobs
done, 1 some failed (the rest are kept), 2 bad usage.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from fastdigin import __version__
from fastdigin.commands.activating import add_activating_options
from fastdigin.commands.cache_options import add_cache_options
from fastdigin.commands.caption import add_caption_options
from fastdigin.commands.classifier_options import CLASSIFIER_HELP, add_class_names
from fastdigin.commands.doctor import add_doctor_options
from fastdigin.commands.naming_options import add_naming_options
from fastdigin.commands.photo_options import add_photo_options
from fastdigin.commands.search import add_search_options
from fastdigin.commands.shard import WHOLE, Shard
from fastdigin.errors import UserError
from fastdigin.presets import expand, list_presets, show_presets, wants_list

# Those of fastdigin_kernels.dispatch, whose import takes seconds.
ATTENTION = ("auto", "sdpa", "triton", "cpp", "xformers", "reference")

# That of fastdigin.engine.compile_choice, likewise.
COMPILE = ("auto", "on", "off")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if wants_list(arguments):
            print(list_presets())
            return 0
        options = _parser(with_benches=arguments[:1] == ["bench"]).parse_args(expand(arguments))
        logging.basicConfig(stream=sys.stderr, level=logging.ERROR, format="%(name)s: %(message)s")
        logging.getLogger("fastdigin").setLevel(logging.INFO if options.verbose else logging.ERROR)
        for name in ("report", "caching", "editing.segmentation", "tasks.firing"):
            logging.getLogger(f"fastdigin.{name}").setLevel(logging.WARNING)
        if options.command == "presets":
            return show_presets(options)
        # Imported late, so that --help and usage errors answer at once.
        if getattr(options, "workers", 1) > 1:
            from fastdigin.commands.workers import run_workers

            return run_workers(arguments, options)
        module = f"fastdigin.commands.{options.command.replace('-', '_')}"
        return importlib.import_module(module).run(options)
    except UserError as error:
        print(f"fastdigin {arguments[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues where it stopped", file=sys.stderr)
        return 130


def _parser(*, with_benches: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdigin", description="Look inside image classifiers with diffusion models."
    )
    parser.add_argument("--version", action="version", version=f"fastdigin {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = _command(commands, "demo", "all four tasks on packaged photos, no download")
    demo.add_argument("--per-task", type=count, default=2, metavar="N", help="jobs (default 2)")
    _common(demo, out="demo")

    task = _command(commands, "counterfactual", "what must change for the classifier to say TARGET")
    _images(task)
    add_class_names(task)
    task.add_argument("--classifier", required=True, metavar="C", help=CLASSIFIER_HELP)
    task.add_argument("--target", metavar="CLASS", help="name or index (not for embedded:pairs)")
    task.add_argument("--judge", metavar="C", help="independent classifier to ask afterwards")
    task.add_argument(
        "--stop-at", type=_probability, metavar="P",
        help="end an image's work once its target confidence was above P three times in a row",
    )  # fmt: skip
    _regularisers(task)
    add_photo_options(task)
    _job_options(task, out="counterfactuals")

    task = _command(commands, "disagree", "images that F is sure of and G denies")
    add_class_names(task)
    task.add_argument("--f", required=True, metavar="F", help="classifier whose confidence rises")
    task.add_argument("--g", required=True, metavar="G", help="classifier whose confidence falls")
    task.add_argument("--classes", required=True, type=_list, metavar="A,B")
    task.add_argument("--seeds", type=count, default=1, metavar="N", help="images per class")
    task.add_argument("--objective", choices=("conf", "log_conf", "logits"))
    task.add_argument("--f-weight", type=float, metavar="W", help="of F's loss beside G's")
    task.add_argument(
        "--draws", type=count, metavar="N", help="samples of which the best is the start"
    )
    _job_options(task, out="disagreements")

    task = _command(commands, "neurons", "images that make single neurons fire")
    add_class_names(task)
    task.add_argument("--classifier", required=True, metavar="C", help=CLASSIFIER_HELP)
    _neurons(task)
    add_naming_options(task)
    task.add_argument("--direction", choices=("max", "min"), default="max")
    task.add_argument("--per-neuron", type=count, default=1, metavar="N", help="images per neuron")
    task.add_argument(
        "--images", nargs="+", default=["embedded:photos"], metavar="IMAGES",
        help="the data set that neurons are compared with, of any size: files, folders with their "
        "subfolders, tables, data sets (default: embedded:photos)",
    )  # fmt: skip
    add_cache_options(task, "activations")
    _job_options(task, out="neurons")

    task = _command(commands, "neuron-counterfactual", "change what a neuron sees, keep the object")
    _images(task)
    add_class_names(task)
    task.add_argument("--classifier", required=True, metavar="C", help=CLASSIFIER_HELP)
    task.add_argument("--neuron", required=True, metavar="N")
    task.add_argument("--direction", required=True, choices=("max", "min"))
    task.add_argument("--layer", metavar="NAME", help="module (default: the penultimate layer)")
    _regularisers(task)
    add_photo_options(task)
    _job_options(task, out="neuron-counterfactuals")

    task = _command(commands, "caption", "a table of what photos show, to be corrected and used")
    _images(task)
    add_caption_options(task)

    search = _command(commands, "search", "real photos that resemble an image, and their labels")
    add_search_options(search)
    add_class_names(search)

    task = _command(commands, "activating", "the photos of a folder that activate neurons most")
    add_activating_options(task)
    _neurons(task)
    add_class_names(task)

    presets = _command(commands, "presets", "the settings of the paper's experiments")
    presets.add_argument("name", nargs="?", metavar="NAME", help="show this one (default: list)")

    doctor = _command(commands, "doctor", "what is installed, what a preset needs, and what to do")
    add_doctor_options(doctor)

    bench = commands.add_parser("bench", help="measure fastdigin itself")
    if with_benches:
        _benches(bench)

    _command(commands, "info", "versions, devices and backends in use")
    return parser


def _benches(parser: argparse.ArgumentParser) -> None:
    """The benches describe their arguments themselves; no other command imports their package."""
    try:
        from fastdigin_bench.command import add_benches
    except ModuleNotFoundError as error:
        if error.name != "fastdigin_bench":
            raise
        raise UserError(
            "the package fastdigin_bench is not installed: run 'pip install .' in a checkout of "
            "fastdigin, which holds it in bench/"
        ) from None
    add_benches(parser)


def _command(commands, name: str, help: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="more on stderr")
    return parser


def _neurons(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--neurons", required=True, type=_list, metavar="3,17")
    parser.add_argument("--layer", metavar="NAME", help="module (default: the penultimate layer)")


def _images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES",
        help="files, folders, CSV, JSONL or Parquet tables, embedded:photos, embedded:pairs, or a "
        "data set: imagenet:PATH, imagenet-pairs:PATH, cub:PATH, cars:PATH, food101:PATH, "
        "ffhq:PATH, imagefolder:PATH",
    )  # fmt: skip
    parser.add_argument(
        "--crop", action="store_true",
        help="take the middle of photos that are not square (data sets always do)",
    )  # fmt: skip


def _regularisers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--regulariser", action="append", metavar="KIND:REGION:WEIGHT",
        help="instead of the default ones; kinds: pixels-l1, pixels-l2, latents-l1, latents-l2, "
        "lpips; regions: all, foreground, background; may be given several times",
    )  # fmt: skip


def _common(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path(out), metavar="DIR", help=f"(default {out})"
    )
    parser.add_argument("--seed", type=_whole, default=0, metavar="S", help="(default 0)")
    parser.add_argument(
        "--workers", type=count, default=1, metavar="N",
        help="processes that share the jobs, the cores and the memory; one per core is fastest on "
        "CPUs, one per GPU uses them all (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--shard", type=Shard.parse, default=WHOLE, metavar="K/N",
        help="do only the K-th of N parts of the jobs, for several machines with one --out",
    )  # fmt: skip


def _job_options(parser: argparse.ArgumentParser, out: str) -> None:
    _common(parser, out)
    parser.add_argument(
        "--preset", metavar="NAME", help="options of one experiment; --preset list names them all"
    )
    parser.add_argument(
        "--model", default="embedded", metavar="MODEL",
        help="embedded, a hub id or a local diffusers folder (default embedded)",
    )  # fmt: skip
    parser.add_argument("--steps", type=count, metavar="T", help="DDIM steps (default 20)")
    parser.add_argument("--iterations", type=_whole, metavar="N", help="updates (default 20)")
    parser.add_argument("--guidance-scale", type=_at_least_0, metavar="G", help="(default 3)")
    parser.add_argument("--learning-rate", type=_above_0, metavar="R", help="of the texts' updates")
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N inputs")
    parser.add_argument(
        "--memory", default="auto", metavar="SIZE",
        help="what the engine may use, like 12GiB (default auto: most of what is free)",
    )  # fmt: skip
    parser.add_argument(
        "--slots", type=count, metavar="S",
        help="images at a time (default: as many as pay within the memory)",
    )  # fmt: skip
    parser.add_argument(
        "--compile", default="auto", choices=COMPILE,
        help="compile the diffusion model's steps: on, off, or auto, where it pays (default auto)",
    )  # fmt: skip
    parser.add_argument(
        "--attention", default="auto", choices=ATTENTION, metavar="IMPL",
        help=f"one of {', '.join(ATTENTION)} (default auto: the fastest, timed once)",
    )  # fmt: skip


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return int(text)


def count(text: str) -> int:
    """A whole number of at least 1, as the type of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a count of at least 1, got {text!r}")
    return int(text)


def _at_least_0(text: str) -> float:
    return _number(text, 0.0, "of at least 0")


def _above_0(text: str) -> float:
    return _number(text, sys.float_info.min, "above 0")


def _number(text: str, least: float, words: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number {words}, got {text!r}")
    return value


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, got {text!r}")
    return value


def _list(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise argparse.ArgumentTypeError("is empty: name at least one, separated by commas")
    return parts


if __name__ == "__main__":
    sys.exit(main())
