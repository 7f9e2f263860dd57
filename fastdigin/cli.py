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

from fastdigin import __version__
from fastdigin.commands.activating import add_activating_options
from fastdigin.commands.argument_types import comma_list, count, probability
from fastdigin.commands.cache_options import add_cache_options
from fastdigin.commands.caption import add_caption_options
from fastdigin.commands.classifier_options import CLASSIFIER_HELP, add_class_names
from fastdigin.commands.doctor import add_doctor_options
from fastdigin.commands.job_options import (
    add_attention,
    add_common,
    add_images,
    add_job_options,
    add_neurons,
    add_regularisers,
)
from fastdigin.commands.naming_options import add_naming_options
from fastdigin.commands.photo_options import add_photo_options
from fastdigin.commands.search import add_search_options
from fastdigin.errors import UserError
from fastdigin.presets import expand, list_presets, show_presets, wants_list


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
        for name in ("results", "storage", "editing.segmentation", "tasks.firing"):
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
    for add in (_demo, _counterfactual, _disagree, _neurons, _neuron_counterfactual, _helpers):
        add(commands)
    bench = commands.add_parser("bench", help="measure fastdigin itself")
    if with_benches:
        _benches(bench)
    _command(commands, "info", "versions, devices and backends in use")
    return parser


def _demo(commands) -> None:
    demo = _command(commands, "demo", "all four tasks on packaged photos, no download")
    demo.add_argument("--per-task", type=count, default=2, metavar="N", help="jobs (default 2)")
    add_common(demo, out="demo")
    add_attention(demo)


def _counterfactual(commands) -> None:
    task = _command(commands, "counterfactual", "what must change for the classifier to say TARGET")
    add_images(task)
    add_class_names(task)
    task.add_argument("--classifier", required=True, metavar="C", help=CLASSIFIER_HELP)
    task.add_argument("--target", metavar="CLASS", help="name or index (not for embedded:pairs)")
    task.add_argument("--judge", metavar="C", help="independent classifier to ask afterwards")
    task.add_argument(
        "--stop-at", type=probability, metavar="P",
        help="end an image's work once its target confidence was above P three times in a row",
    )  # fmt: skip
    add_regularisers(task)
    add_photo_options(task)
    add_job_options(task, out="counterfactuals")


def _disagree(commands) -> None:
    task = _command(commands, "disagree", "images that F is sure of and G denies")
    add_class_names(task)
    task.add_argument("--f", required=True, metavar="F", help="classifier whose confidence rises")
    task.add_argument("--g", required=True, metavar="G", help="classifier whose confidence falls")
    task.add_argument("--classes", required=True, type=comma_list, metavar="A,B")
    task.add_argument("--seeds", type=count, default=1, metavar="N", help="images per class")
    task.add_argument("--objective", choices=("conf", "log_conf", "logits"))
    task.add_argument("--f-weight", type=float, metavar="W", help="of F's loss beside G's")
    task.add_argument(
        "--draws", type=count, metavar="N", help="samples of which the best is the start"
    )
    add_job_options(task, out="disagreements")


def _neurons(commands) -> None:
    task = _command(commands, "neurons", "images that make single neurons fire")
    add_class_names(task)
    task.add_argument("--classifier", required=True, metavar="C", help=CLASSIFIER_HELP)
    add_neurons(task)
    add_naming_options(task)
    task.add_argument("--direction", choices=("max", "min"), default="max")
    task.add_argument("--per-neuron", type=count, default=1, metavar="N", help="images per neuron")
    task.add_argument(
        "--images", nargs="+", default=["embedded:photos"], metavar="IMAGES",
        help="the data set that neurons are compared with, of any size: files, folders with their "
        "subfolders, tables, data sets (default: embedded:photos)",
    )  # fmt: skip
    add_cache_options(task, "activations")
    add_job_options(task, out="neurons")


def _neuron_counterfactual(commands) -> None:
    task = _command(commands, "neuron-counterfactual", "change what a neuron sees, keep the object")
    add_images(task)
    add_class_names(task)
    task.add_argument("--classifier", required=True, metavar="C", help=CLASSIFIER_HELP)
    task.add_argument("--neuron", required=True, metavar="N")
    task.add_argument("--direction", required=True, choices=("max", "min"))
    task.add_argument("--layer", metavar="NAME", help="module (default: the penultimate layer)")
    add_regularisers(task)
    add_photo_options(task)
    add_job_options(task, out="neuron-counterfactuals")


def _helpers(commands) -> None:
    """What goes before a task, around it and after it."""
    task = _command(commands, "caption", "a table of what photos show, to be corrected and used")
    add_images(task)
    add_caption_options(task)

    search = _command(commands, "search", "real photos that resemble an image, and their labels")
    add_search_options(search)
    add_class_names(search)

    task = _command(commands, "activating", "the photos of a folder that activate neurons most")
    add_activating_options(task)
    add_neurons(task)
    add_class_names(task)

    presets = _command(commands, "presets", "the settings of the paper's experiments")
    presets.add_argument("name", nargs="?", metavar="NAME", help="show this one (default: list)")

    doctor = _command(commands, "doctor", "what is installed, what a preset needs, and what to do")
    add_doctor_options(doctor)


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


if __name__ == "__main__":
    sys.exit(main())
