"""fastdigin merge: the results of several folders in one."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdigin.commands.options import path
from fastdigin.errors import UserError


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """The folders, and where their results go."""
    parser.add_argument(
        "folders", nargs="+", type=path, metavar="DIR", help="each the --out of a run"
    )
    parser.add_argument(
        "--out", type=path, metavar="DIR", help="where to (default: into the first folder)"
    )


def run(options: argparse.Namespace) -> int:
    """Checks all folders, then copies what the target lacks; 1 if a job of the result failed."""
    from fastdigin.report import write_report
    from fastdigin.report.console import print_text
    from fastdigin.results.store import read_lines

    out = options.out or options.folders[0]
    others = list(dict.fromkeys(Path(os.path.realpath(path)) for path in options.folders))
    if len(others) < len(options.folders) or (len(others) < 2 and options.out is None):
        raise UserError("folders to merge must be two at least, each named once")
    merge(others, out)
    lines = read_lines(out)
    failed = sum(line["status"] == "failed" for line in lines)
    summary = {"out": str(out), "done": len(lines) - failed, "failed": failed}
    page = write_report(out)
    if options.json:
        print(json.dumps(summary))
    else:
        print_text(f"{summary['done']} done, {failed} failed in {out}\nreport: {page}")
    return 1 if failed else 0


def merge(folders: Sequence[Path], out: Path) -> None:
    """Adds to ``out`` what the folders hold beside it.

    A job that is done in two folders must be the same in both; one that failed, or whose pictures
    are lost, gives way to one that is done. Nothing is written before everything has been checked.

    Raises:
        UserError: no results, other settings, or another result of the same id.
    """
    from fastdigin.results import ResultStore
    from fastdigin.results.store import (
        check_same_settings,
        read_environments,
        read_lines,
        read_runs,
    )

    out = Path(os.path.realpath(out))
    known = {(x["task"], x["id"]): (out, x) for x in read_lines(out)}
    settings = read_runs(out)
    wanted: dict[tuple[str, str], tuple[Path, dict]] = {}
    for folder in folders:
        runs = read_runs(folder)
        if not runs:
            raise UserError(f"'{folder}' holds no results: name the --out of a run")
        for task, own in runs.items():
            check_same_settings(out, task, settings.setdefault(task, own), own)
        for line in read_lines(folder) if folder != out else ():
            key = (line["task"], line["id"])
            before = known.get(key)
            if before is None or _worth(*before) < _worth(folder, line):
                known[key] = wanted[key] = (folder, line)
            elif _worth(folder, line) == 2:
                _check_same(before, (folder, line))
    stores = {task: ResultStore(out, task, settings[task]) for task in settings}
    first = next(iter(settings))  # the folder keeps what made all of its tasks' results together
    for environment in (each for folder in folders for each in read_environments(folder)):
        ResultStore(out, first, settings[first], environment)
    for folder, line in wanted.values():
        _copy_pictures(folder, line, out)
        stores[line["task"]].append(line)


def _worth(folder: Path, line: Mapping[str, Any]) -> int:
    """0 of a job that failed, 1 of one that is done and lacks pictures, 2 of a whole one."""
    from fastdigin.results.store import IMAGE_KEYS, picture_path

    named = [line[key] for key in IMAGE_KEYS if line.get(key)]
    whole = all(picture_path(folder, relative) is not None for relative in named)
    return 0 if line["status"] == "failed" else 1 + whole


def _check_same(one: tuple[Path, Mapping[str, Any]], other: tuple[Path, Mapping[str, Any]]) -> None:
    """Raises UserError where two records of an id differ, their pictures included."""
    (a, first), (b, second) = one, other
    timeless = ({k: v for k, v in line.items() if k != "seconds"} for line in (first, second))
    left, right = timeless
    if left != right or _pictures(a, first) != _pictures(b, second):
        raise UserError(
            f"'{a}' and '{b}' hold different results of {first['id']!r}: remove one of them, or "
            "keep the folders apart"
        )


def _pictures(folder: Path, line: Mapping[str, Any]) -> dict[str, bytes]:
    """Below the folder -> content, of the pictures that a record names."""
    from fastdigin.results.store import IMAGE_KEYS, picture_path

    paths = [picture_path(folder, line.get(key)) for key in IMAGE_KEYS]
    root = os.path.realpath(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path}


def _copy_pictures(folder: Path, line: Mapping[str, Any], out: Path) -> None:
    """They are on the disk before their record is."""
    from fastdigin.results.folder import writing
    from fastdigin.storage import write_atomically

    for relative, content in _pictures(folder, line).items():
        with writing(out):
            (out / relative).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out / relative, content, durable=True)
