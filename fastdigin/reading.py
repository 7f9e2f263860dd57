"""Text files of the user's."""

from pathlib import Path

from fastdigin.errors import UserError


def read_text(path: Path, name: str) -> str:
    """A text file of the user's in UTF-8, without its byte order mark.

    Raises UserError, which begins with ``name``, where it cannot be read. A device or a pipe could
    be read for ever, and is refused.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{name} '{path}' cannot be read ({error}): give a text file") from None
