"""``fastdigin bench NAME``: which benches there are, and their arguments.

A new bench is an entry of BENCHES here and a module ``fastdigin_bench/NAME.py`` with a function
``run(options)`` that returns the exit code; the folder ``options.results`` then exists. Nothing
heavy is imported before a bench runs, so that --help answers at once.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fastdigin.commands.common_options import COMPILE
from fastdigin.commands.options import count

TRUTH_PARTS = (
    "world",
    "counterfactual-clean",
    "counterfactual-robust",
    "disagreement",
    "neurons",
    "neuron-counterfactual",
)

# What fastdigin_bench.kernel_cases has, whose import takes seconds.
KERNEL_MODELS = ("sd-1.4", "sd-2.1", "sdxl", "embedded")
KERNEL_OPS = (
    "self-attention",
    "cross-attention",
    "frozen-text-attention",
    "injected-attention",
    "group-norm-silu",
    "geglu",
    "conv-3x3",
)

# Those of fastdigin_bench.gpu and fastdigin_bench.profile, likewise.
GPU_PARTS = (
    "smoke", "counterfactual", "tests", "slots", "graphs", "dtypes", "kernels", "disagreement",
    "plain-loop", "sdxl-counterfactual", "neuron", "neuron-counterfactual",
)  # fmt: skip
PROFILED_GPUS = ("h100", "a100", "rtx4090")
PROFILED_MODELS = ("sd-1.4", "sd-2.1", "sdxl", "embedded")
PROFILED_MENDS = {
    "precision": "networks in bf16 instead of fp32",
    "graphs": "CUDA graphs",
    "batches": "decoder and classifiers on many images at once",
    "passes": "one pass over the plain image for all who ask",
    "layout": "group norm that stays in channels last",
    "gates": "GEGLU that keeps its input alone",
    "attention": "attention by our kernels",
    "waits": "figures of all slots read at once",
}
PROFILED_TASKS = ("counterfactual", "disagreement", "neuron", "neuron-counterfactual")


def _truth_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("truth"), metavar="DIR",
        help="pictures and records; the same folder continues a run (default truth)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=count, metavar="N", help="at most N of each part, for a quick look"
    )
    parser.add_argument(
        "--compare", metavar="NAME,NAME",
        help="the same photos by several settings: default, a preset of the algorithm or its file",
    )  # fmt: skip
    parser.add_argument(
        "--tuning", action="store_true", help="compare on the photos that are no part of a report"
    )
    parser.add_argument(
        "--only", nargs="+", choices=TRUTH_PARTS, default=TRUTH_PARTS, metavar="PART",
        help=f"some of: {', '.join(TRUTH_PARTS)}",
    )  # fmt: skip


def _throughput_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--jobs", type=count, default=16, metavar="N", help="photos (default 16)")
    parser.add_argument(
        "--rounds", type=count, default=2, metavar="N",
        help="shares of the jobs that the engine does in turns with the plain loop (default 2)",
    )  # fmt: skip
    parser.add_argument(
        "--no-processes", dest="processes", action="store_false",
        help="leave out both sides' form of two processes with one thread each",
    )  # fmt: skip
    parser.add_argument(
        "--cause-repeats", type=int, default=4, metavar="N",
        help="of the engine without each of its ideas; 0 leaves that out (default 4)",
    )  # fmt: skip
    parser.add_argument("--iterations", type=count, metavar="N", help="fewer, for a quick look")
    parser.add_argument("--compile", default="auto", choices=COMPILE, help="(default auto)")
    parser.add_argument("--slots", type=count, metavar="S", help="(default: planned)")
    parser.add_argument("--memory", default="auto", metavar="SIZE", help="(default auto)")


def _kernels_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--models", nargs="+", choices=KERNEL_MODELS, metavar="MODEL",
        help=f"whose shapes, some of: {', '.join(KERNEL_MODELS)} (default all)",
    )  # fmt: skip
    parser.add_argument(
        "--ops", nargs="+", choices=KERNEL_OPS, metavar="OP",
        help=f"some of: {', '.join(KERNEL_OPS)} (default all)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", nargs="+", choices=("float32", "float16", "bfloat16"),
        help="(default float32 on the CPU, float16 and bfloat16 on a GPU)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=0.4, metavar="S",
        help="to measure a pass of an operation for (default 0.4)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", nargs="+", choices=("embedded", "sd-1.4"), metavar="MODEL",
        help="also the shares of a whole step, of embedded or sd-1.4 (4 GB), and engine iterations",
    )  # fmt: skip


def _gpu_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--name", help="of the results' file (default: the GPU's)")
    parser.add_argument(
        "--minutes", type=float, default=25, metavar="M",
        help="no part begins later; the same command goes on (default 25)",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", choices=GPU_PARTS, metavar="PART",
        help=f"some of: {', '.join(GPU_PARTS)}",
    )  # fmt: skip
    parser.add_argument("--device", help="(default: the GPU, else the CPU)")
    parser.add_argument(
        "--tiny", action="store_true",
        help="the packaged model at a few steps, to see on any machine that everything runs",
    )  # fmt: skip


def _memory_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--no-account", dest="account", action="store_false",
        help="without the count of Stable Diffusion's networks, which takes minutes",
    )  # fmt: skip


def _methods_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("methods"), metavar="DIR",
        help="pictures; the same folder continues a run (default methods)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="eight photos and eight neurons, within ten minutes"
    )
    parser.add_argument("--photos", type=count, default=50, metavar="N", help="(default 50)")
    parser.add_argument("--neurons", type=count, default=24, metavar="N", help="(default 24)")
    parser.add_argument(
        "--classifier", default="robust", metavar="C",
        help="which one is explained: robust, clean, spurious, imagenet (EfficientNet-Lite0), or "
        "the folder of a world (default robust)",
    )  # fmt: skip
    parser.add_argument(
        "--half", choices=("reporting", "tuning"), default="reporting",
        help="of the photos: those to report on, or to tune on (default reporting)",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="METHOD", help="names as in the table"
    )


def _profile_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--gpu", choices=PROFILED_GPUS, default="h100", help="(default h100)")
    parser.add_argument(
        "--model", choices=PROFILED_MODELS, default="sd-1.4", help="(default sd-1.4)"
    )
    parser.add_argument(
        "--task", choices=PROFILED_TASKS, default="counterfactual", help="(default counterfactual)"
    )
    parser.add_argument(
        "--dtype", choices=("bf16", "fp16", "fp32"), default="bf16", help="(default bf16)"
    )
    parser.add_argument("--slots", type=count, metavar="N", help="(default: planned)")
    parser.add_argument("--preset", metavar="P", help="whose settings of the task are taken")
    parser.add_argument(
        "--without", type=_mends, default=(), metavar="NAME,NAME",
        help="what to turn off of: "
        + "; ".join(f"{name} ({told})" for name, told in PROFILED_MENDS.items()),
    )  # fmt: skip
    parser.add_argument(
        "--baseline", dest="without", action="store_const", const=tuple(PROFILED_MENDS),
        help="without all of these: the old way of running",
    )  # fmt: skip
    parser.add_argument(
        "--contributions", action="store_true",
        help="also without each of these by itself, and without all: ten times as long",
    )  # fmt: skip


def _mends(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in PROFILED_MENDS:
            raise ArgumentTypeError(f"{name!r} is none of {', '.join(PROFILED_MENDS)}")
    return names


def _scaling_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--repeats", type=count, default=3, metavar="N", help="(default 3)")
    parser.add_argument(
        "--jobs", type=count, default=64, metavar="N",
        help="counterfactuals of the run whose occupancy is counted (default 64)",
    )  # fmt: skip
    parser.add_argument(
        "--no-occupancy", dest="occupancy", action="store_false",
        help="without that run, which takes half of the time",
    )  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """help: a sentence for ``fastdigin bench --help``. add_arguments: those it has of its own."""

    help: str
    add_arguments: Callable[[ArgumentParser], None]


BENCHES = {
    "gpu": Bench("all that is estimated about a GPU, measured on one", _gpu_arguments),
    "kernels": Bench("every implementation of every operation", _kernels_arguments),
    "memory": Bench("peak memory, predicted and measured", _memory_arguments),
    "methods": Bench("our counterfactuals beside those of other methods", _methods_arguments),
    "profile": Bench("an estimate of the speed on a GPU, from counts alone", _profile_arguments),
    "scaling": Bench("speed by jobs, steps and resolution; occupancy", _scaling_arguments),
    "throughput": Bench("images per minute beside a plain loop", _throughput_arguments),
    "truth": Bench("the embedded model and the four tasks against planted truth", _truth_arguments),
}


def add_benches(parser: ArgumentParser) -> None:
    """Gives ``fastdigin bench`` a sub-command for every bench."""
    names = parser.add_subparsers(dest="bench", required=True, metavar="NAME")
    for name, bench in BENCHES.items():
        description = bench.help[0].upper() + bench.help[1:] + "."
        command = names.add_parser(name, help=bench.help, description=description)
        bench.add_arguments(command)
        command.add_argument(
            "--results", type=Path, metavar="DIR",
            help=f"for {name}.json (default bench/results where it exists, else bench-results)",
        )  # fmt: skip
        command.add_argument("-v", "--verbose", action="store_true", help="more on stderr")


def run(options: Namespace) -> int:
    """Runs the bench called ``options.bench``; returns its exit code.

    Raises UserError before the work starts where its results could not be kept.
    """
    from fastdigin_bench.output import results_folder

    options.results = results_folder(options.results)
    return import_module(f"fastdigin_bench.{options.bench}").run(options)
