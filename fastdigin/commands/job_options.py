"""The options that several commands of the tasks share."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastdigin.commands.argument_types import above_0, at_least_0, comma_list, count, whole
from fastdigin.commands.shard import WHOLE, Shard

# Those of fastdigin_kernels.attention, whose import takes seconds.
ATTENTION = ("auto", "sdpa", "triton", "cpp", "reference")

# That of fastdigin.engine.compile_choice, likewise.
COMPILE = ("auto", "on", "off")


def add_neurons(parser: argparse.ArgumentParser) -> None:
    """Which neurons, of which layer."""
    parser.add_argument("--neurons", required=True, type=comma_list, metavar="3,17")
    parser.add_argument("--layer", metavar="NAME", help="module (default: the penultimate layer)")


def add_images(parser: argparse.ArgumentParser) -> None:
    """The photos."""
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


def add_regularisers(parser: argparse.ArgumentParser) -> None:
    """What keeps a result near its photo."""
    parser.add_argument(
        "--regulariser", action="append", metavar="KIND:REGION:WEIGHT",
        help="instead of the default ones; kinds: pixels-l1, pixels-l2, latents-l1, latents-l2, "
        "lpips; regions: all, foreground, background; may be given several times",
    )  # fmt: skip


def add_common(parser: argparse.ArgumentParser, out: str) -> None:
    """Of every command that makes pictures. out: the default folder."""
    parser.add_argument(
        "--out", type=Path, default=Path(out), metavar="DIR", help=f"(default {out})"
    )
    parser.add_argument("--seed", type=whole, default=0, metavar="S", help="(default 0)")
    parser.add_argument(
        "--workers", type=count, default=1, metavar="N",
        help="processes that share the jobs, the cores and the memory; one per core is fastest on "
        "CPUs, one per GPU uses them all (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--shard", type=Shard.parse, default=WHOLE, metavar="K/N",
        help="do only the K-th of N parts of the jobs, for several machines with one --out",
    )  # fmt: skip


def add_job_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Of every task: model, settings, engine."""
    add_common(parser, out)
    parser.add_argument(
        "--preset", metavar="NAME", help="options of one experiment; --preset list names them all"
    )
    parser.add_argument(
        "--model", default="embedded", metavar="MODEL",
        help="embedded, a hub id or a local diffusers folder (default embedded)",
    )  # fmt: skip
    parser.add_argument("--steps", type=count, metavar="T", help="DDIM steps (default 20)")
    parser.add_argument("--iterations", type=whole, metavar="N", help="updates (default 20)")
    parser.add_argument("--guidance-scale", type=at_least_0, metavar="G", help="(default 3)")
    parser.add_argument("--learning-rate", type=above_0, metavar="R", help="of the texts' updates")
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
    add_attention(parser)


def add_attention(parser: argparse.ArgumentParser) -> None:
    """Whose kernels the U-Net attends with."""
    parser.add_argument(
        "--attention", default="auto", choices=ATTENTION, metavar="IMPL",
        help=f"one of {', '.join(ATTENTION)} (default auto: the fastest, timed once)",
    )  # fmt: skip
