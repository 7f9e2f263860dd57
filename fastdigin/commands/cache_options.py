"""The options that say where a command keeps what later runs can use again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds, and --help needs none of it
    from fastdigin.storage import TensorCache


def add_cache_options(parser: argparse.ArgumentParser, kept: str) -> None:
    """--cache and --no-cache. kept: what is kept, as a plural."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--cache", type=Path, metavar="DIR",
        help=f"where {kept} are kept (default: fastdigin/ in the user's cache folder)",
    )  # fmt: skip
    where.add_argument(
        "--no-cache", action="store_true", help=f"neither use nor keep {kept} of other runs"
    )


def chosen_cache(options: argparse.Namespace, kind: str) -> TensorCache | None:
    """The cache of one kind of results; None with --no-cache. UserError where it cannot be made."""
    from fastdigin.storage import TensorCache, cache_folder

    return None if options.no_cache else TensorCache((options.cache or cache_folder()) / kind)
