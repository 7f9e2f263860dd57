"""fastdigin retry: the failed jobs of a folder once more, and nothing else."""

import argparse
import os
import sys

from fastdigin.commands.history import COMMAND_FILE, recall
from fastdigin.commands.options import path
from fastdigin.commands.shard import WHOLE
from fastdigin.errors import UserError, visible


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """The folder."""
    parser.add_argument("out", type=path, metavar="DIR", help="the --out of a run")


def again(options: argparse.Namespace, parse) -> argparse.Namespace:
    """The options of the command that filled the folder, for its failed jobs only.

    parse: makes options of a command line. This process goes to where the command was given.
    """
    out = options.out.absolute()
    command = recall(out)
    if command is None:
        raise UserError(f"'{out}' holds no {COMMAND_FILE}: give its command once more instead")
    print(visible(f"again: fastdigin {' '.join(command.arguments)}"), file=sys.stderr)
    try:
        os.chdir(command.folder)
    except OSError as error:
        raise UserError(
            f"the folder '{command.folder}' of that command is gone ({error.strerror})"
        ) from None
    found = parse(command.arguments)
    if not hasattr(found, "shard"):
        raise UserError(f"'{out / COMMAND_FILE}' holds no command of a task: remove it")
    found.out, found.shard, found.workers, found.only_failed = out, WHOLE, None, True
    found.json, found.verbose = options.json, options.verbose
    found.dry_run, found.ray = False, None
    return found
