"""The command line: one command per task, and what goes before, around and after them.

stdout carries results (JSON lines with --json), stderr progress and logs. Exit codes: 0 all jobs
done, 1 some failed (the rest are kept), 2 bad usage.
"""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from fastdigin import __version__, tasks
from fastdigin.commands.streams import kept_going
from fastdigin.errors import CannotWrite, UserError, visible
from fastdigin.presets import expand, list_presets, wants_list

# Command -> what it does. The module of a command is fastdigin.commands.NAME, that of a task is
# fastdigin.commands.task; each has add_options and run.
_COMMANDS = {
    "demo": "all four tasks on packaged photos, no download",
    "audit": "what a classifier goes by, found by explanations and confirmed on photos",
    "caption": "a table of what photos show, to be corrected and used",
    "search": "real photos that resemble an image, and their labels",
    "activating": "the photos of a folder that activate neurons most",
    "score": "how good explanations are, of any method, by the metrics of the field",
    "status": "how far the run of a folder is",
    "retry": "the failed jobs of a folder once more",
    "merge": "the results of several folders in one",
    "presets": "the settings of the paper's experiments",
    "doctor": "what is installed, what a preset needs, and what to do",
    "bench": "measure fastdigin itself",
    "info": "versions, devices and backends in use",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    with kept_going():
        try:
            return _run(arguments)
        except UserError as error:
            print(f"fastdigin {visible(arguments[0])}: {error}", file=sys.stderr)
            return 1 if isinstance(error, CannotWrite) else 2
        except KeyboardInterrupt:
            print("\ninterrupted; the same command continues where it stopped", file=sys.stderr)
            return 130


def _run(arguments: Sequence[str]) -> int:
    if wants_list(arguments):
        print(list_presets())
        return 0
    options = _parse(arguments)
    _set_up_logging(options.verbose)
    if options.command == "retry":
        options = _module("retry").again(options, _parse)
    alone = getattr(options, "ray", None) is None and not getattr(options, "dry_run", False)
    if alone and (getattr(options, "workers", None) or 1) > 1:
        from fastdigin.commands.workers import run_workers

        return run_workers(arguments, options)
    return _module(options.command).run(options)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    own = {"arguments": list(arguments), "only_failed": False}
    return _parser(arguments[:1]).parse_args(expand(arguments), argparse.Namespace(**own))


def _parser(chosen: Sequence[str]) -> argparse.ArgumentParser:
    """All commands by name; only the chosen one has its options, since torch takes seconds."""
    parser = _Parser(
        prog="fastdigin", description="Look inside image classifiers with diffusion models."
    )
    parser.add_argument("--version", action="version", version=f"fastdigin {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help in (tasks.summaries() | _COMMANDS).items():
        command = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        command.add_argument("--json", action="store_true", help="print results as JSON")
        command.add_argument("-v", "--verbose", action="store_true", help="more on stderr")
        if [name] == list(chosen):
            _module(name).add_options(command, name)
    return parser


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any):
        # A preset is looked for by its whole name, so that --pres would pass and do nothing.
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        super().error(visible(message))


def _module(command: str) -> ModuleType:
    name = command if command in _COMMANDS else "task"
    try:
        return importlib.import_module(f"fastdigin.commands.{name}")
    except (ImportError, OSError, MemoryError) as error:
        said = (str(error) or "out of memory").splitlines()[0]
        raise UserError(
            f"a library cannot be loaded ({said}): allow this process more memory (ulimit -v, the "
            "container's limit), or install fastdigin again"
        ) from error


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.ERROR, format="%(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(_visible)
    logging.getLogger("fastdigin").setLevel(logging.INFO if verbose else logging.ERROR)
    rooms = (
        "results",
        "report",
        "storage",
        "photos",
        "editing.segmentation",
        "tasks.firing",
        "commands",
    )
    for room in (*rooms, "models.classifier", "models.classifiers"):
        logging.getLogger(f"fastdigin.{room}").setLevel(logging.WARNING)


def _visible(message: logging.LogRecord) -> bool:
    """Escapes control characters of file names in what is logged."""
    message.msg, message.args = visible(message.getMessage()), ()
    return True


if __name__ == "__main__":
    sys.exit(main())
