"""The options that commands of several kinds share. No import here takes seconds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fastdigin.commands.options import count, named, path, whole
from fastdigin.commands.shard import WHOLE, Shard

if TYPE_CHECKING:  # torch takes seconds, and --help needs none of it
    import torch

    from fastdigin.storage import TensorCache

# Those of fastdigin_kernels.attention, whose import takes seconds; a test compares them.
ATTENTION = ("auto", "sdpa", "triton", "cpp", "cudnn", "xformers", "reference")

# That of fastdigin.engine.compile_choice, likewise.
COMPILE = ("auto", "on", "off")

# "auto" and those of fastdigin.models.precision, likewise.
DTYPES = ("auto", "bf16", "fp16", "fp32")

Parser = argparse._ActionsContainer


def add_images(parser: Parser) -> None:
    """The photos, and how they are cropped."""
    parser.add_argument(
        "images", nargs="+", type=named, metavar="IMAGES",
        help="files, folders, CSV, JSONL or Parquet tables, embedded:photos, embedded:pairs, or a "
        "data set: imagenet:PATH, imagenet-pairs:PATH, cub:PATH, cars:PATH, food101:PATH, "
        "ffhq:PATH, imagefolder:PATH",
    )  # fmt: skip
    parser.add_argument(
        "--crop", action="store_true",
        help="take the middle of photos that are not square (data sets always do)",
    )  # fmt: skip


def add_layer(parser: Parser) -> None:
    """Whose activations are meant."""
    parser.add_argument("--layer", metavar="NAME", help="module (default: the penultimate layer)")


def add_photo_search(parser: Parser, out: str, top: int) -> None:
    """Of every command that looks at many photos and shows some. out: the default folder."""
    parser.add_argument(
        "photos", nargs="+", type=named, metavar="PHOTOS",
        help="folders with their subfolders, files, tables or data sets",
    )  # fmt: skip
    parser.add_argument("--top", type=int, default=top, metavar="K", help=f"photos (default {top})")
    add_out(parser, out)
    add_cache_options(parser, "features")


def add_out(parser: Parser, out: str) -> None:
    """Of every command that writes a folder. out: the default."""
    parser.add_argument(
        "--out", type=path, default=Path(out), metavar="DIR", help=f"(default {out})"
    )


def add_seed(parser: Parser) -> None:
    """Of every command that draws at random."""
    parser.add_argument("--seed", type=whole, default=0, metavar="S", help="(default 0)")


def add_cache_options(parser: Parser, kept: str) -> None:
    """--cache and --no-cache. kept: what is kept, as a plural."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--cache", type=path, metavar="DIR",
        help=f"where {kept} are kept (default: fastdigin/ in the user's cache folder)",
    )  # fmt: skip
    where.add_argument(
        "--no-cache", action="store_true", help=f"neither use nor keep {kept} of other runs"
    )


def chosen_cache(options: argparse.Namespace, kind: str) -> TensorCache | None:
    """The cache of one kind of results; None with --no-cache. UserError where it cannot be made."""
    from fastdigin.storage import TensorCache

    folder = chosen_folder(options)
    return folder and TensorCache(folder / kind)


def chosen_folder(options: argparse.Namespace) -> Path | None:
    """Where results of all kinds are kept; None with --no-cache."""
    from fastdigin_kernels.common.choices import cache_folder

    return None if options.no_cache else options.cache or cache_folder()


def add_run(parser: Parser, out: str) -> None:
    """Of every command that makes pictures. out: the default folder."""
    add_out(parser, out)
    add_seed(parser)
    parser.add_argument(
        "--workers", type=count, metavar="N",
        help="processes that share the jobs, the cores and the memory; one per core is fastest on "
        "CPUs, one per GPU uses them all (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--shard", type=Shard.parse, default=WHOLE, metavar="K/N",
        help="do only the K-th of N parts of the jobs, for several machines with one --out",
    )  # fmt: skip


def add_device(parser: Parser) -> None:
    """Where networks run, and in which floating point type."""
    parser.add_argument(
        "--device", metavar="D", help="cpu, cuda or cuda:1 (default: a GPU where there is one)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto",
        help="of the networks; latents, texts and logits stay in fp32 (default auto: bf16 on GPUs "
        "since sm_80, fp16 on older ones, fp32 on CPUs)",
    )  # fmt: skip


def chosen_device(options: argparse.Namespace) -> torch.device:
    """That of --device. UserError where it is not there."""
    from fastdigin.models.precision import choose_device

    return choose_device(options.device)


def add_engine(parser: Parser) -> None:
    """How much the engine does at a time, and with which kernels."""
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
        "--deterministic", action="store_true",
        help="the same bits in every run on a device, at some cost of speed: nothing is chosen by "
        "timing it; needs --slots, which follow from the memory otherwise",
    )  # fmt: skip
    add_attention(parser)


def add_attention(parser: Parser) -> None:
    """Whose kernels the U-Net attends with."""
    parser.add_argument(
        "--attention", default="auto", choices=ATTENTION, metavar="IMPL",
        help=f"one of {', '.join(ATTENTION)} (default auto: the fastest, timed once)",
    )  # fmt: skip
