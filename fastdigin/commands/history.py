"""Which command fills a folder, kept beside its results: for ``status`` and for ``retry``."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fastdigin.errors import UserError
from fastdigin.results.folder import COMMAND_FILE, check_entries

STARTED_BY = "FASTDIGIN_COMMAND"
"""Environment variable of a worker: the command line that started the workers, as JSON."""


@dataclass(frozen=True)
class Command:
    """The latest command line that filled a folder.

    folder: where it was given. jobs: task -> how many images it asks for, those of other shards
    included.
    """

    arguments: list[str]
    folder: str
    jobs: dict[str, int]


def remember(out: Path, arguments: Sequence[str], jobs: Mapping[str, int]) -> None:
    """Writes OUT/command.json. Of workers it is the command that started them."""
    from fastdigin.results.folder import writing
    from fastdigin.storage import write_atomically

    arguments = json.loads(os.environ.get(STARTED_BY, "null")) or list(map(str, arguments))
    command = Command(arguments, os.getcwd(), dict(jobs))
    with writing(out):
        write_atomically(out / COMMAND_FILE, json.dumps(asdict(command), indent=2).encode())


def recall(out: Path) -> Command | None:
    """What ``remember`` wrote; None where there is no such file."""
    path = out / COMMAND_FILE
    check_entries(out)
    if not os.path.exists(path):
        return None
    try:
        command = Command(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read ({error}): remove it") from None
    texts = [*command.arguments, command.folder] if isinstance(command.arguments, list) else [None]
    counts = command.jobs.values() if isinstance(command.jobs, dict) else [None]
    if not (all(map(_is_text, texts)) and all(type(n) is int and 0 <= n < 2**63 for n in counts)):
        raise UserError(f"'{path}' is not from fastdigin: remove it")
    return command


def _is_text(value: object) -> bool:
    """Whether a system takes it for an argument or a folder."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False
