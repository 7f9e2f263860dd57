"""What all benches share of their output: conditions, tables, results files, the last line."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastdigin.errors import UserError
from fastdigin.metrics.figures import Figure
from fastdigin.report.console import table
from fastdigin.storage import write_atomically
from fastdigin_kernels.common import native

CHECKOUT_RESULTS = Path("bench/results")
OTHER_RESULTS = Path("bench-results")


def conditions() -> dict[str, Any]:
    """Where figures were measured. No date: the same run twice gives the same file."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "cpu": native.cpu_model(),
    }


def rows_table(rows: Sequence[Any], columns: Mapping[str, str | Callable[[Any], object]]) -> str:
    """A table of ``rows``. columns: title -> key of a row, or what makes the cell of a row."""
    cells = [
        [str(cell(row) if callable(cell) else row[cell]) for cell in columns.values()]
        for row in rows
    ]
    return table(list(columns), cells)


def figures_table(figures: Sequence[Figure]) -> str:
    """A row a figure."""
    met = {None: "", True: "yes", False: "NO"}
    rows = [[f.name, f.show(), f.show_target(), met[f.met]] for f in figures]
    return table(["figure", "value", "target", "met"], rows)


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def results_folder(given: Path | None) -> Path:
    """``given``, or bench/results in a checkout and ./bench-results elsewhere; it then exists."""
    default = CHECKOUT_RESULTS if CHECKOUT_RESULTS.is_dir() else OTHER_RESULTS
    return make_folder(given or default, "--results")


def make_folder(folder: Path, argument: str) -> Path:
    """``folder``, made where it is missing. UserError if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{argument} '{folder}' cannot be made a folder ({error.strerror}): name one that you "
            "may write to"
        ) from None
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file that a bench wrote; {} without the file, UserError for other content."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as JSON ({error}): delete it") from None
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds no JSON object: delete it")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces the file at once or not at all. UserError where it cannot be written."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be written ({error.strerror}): name a folder that you may write to"
        ) from None


def finish(file: Path, results: Mapping[str, Any]) -> None:
    """Keeps the results, and prints them for programs.

    They are one line of JSON, after which a bench prints nothing.
    """
    write_json(file, results)
    print(json.dumps(results, allow_nan=False), flush=True)
