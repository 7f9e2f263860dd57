"""What the readers of data sets share."""

from dataclasses import dataclass
from pathlib import Path

from fastdigin.errors import UserError
from fastdigin.reading import read_text

SUFFIXES = {
    ".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pfm", ".pgm", ".png",
    ".pnm", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
"""Of the formats that are read (fastdigin.results.pictures.FORMATS)."""


@dataclass(frozen=True)
class Photo:
    """One file of a data set.

    id: unique in it. name: its class, as a prompt calls it. source: its class, as a classifier
    finds it (the name, unless that is ambiguous). target: a class to turn it into, likewise.
    """

    id: str
    path: Path
    name: str | None = None
    source: str | None = None
    target: str | None = None


def is_image(path: Path) -> bool:
    """Whether a path below a folder of photos is one, by its name.

    Hidden files are none: "._x.png" is what another system's archive tells about x.png.
    """
    return path.suffix.lower() in SUFFIXES and not any(p.startswith(".") for p in path.parts)


def folders_of(folder: Path) -> list[Path]:
    """The folders in ``folder``, by name; hidden ones are not among them."""
    return [path for path in entries(folder) if path.is_dir() and not path.name.startswith(".")]


def images_of(folder: Path) -> list[Path]:
    """The images in ``folder``, by name; told by their suffix, none is opened."""
    return [path for path in entries(folder) if is_image(Path(path.name))]


def entries(folder: Path) -> list[Path]:
    """All that is in a folder, by name. UserError where it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"folder '{folder}' cannot be read ({error.strerror}): allow it, or name another one"
        ) from None


def classes_in_folders(folder: Path) -> list[Photo]:
    """The images of folders called after their classes; "_" in a name stands for a space."""
    return [
        Photo(f"{sub.name}-{path.stem}", path, name, name)
        for sub in folders_of(folder)
        for name in [sub.name.replace("_", " ")]
        for path in images_of(sub)
    ]


def first_existing(folder: Path, *names: str) -> Path | None:
    """The first of the paths below ``folder`` that exists."""
    return next((folder / name for name in names if (folder / name).exists()), None)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty. UserError where it cannot be read."""
    lines = read_text(path, "the data set's").splitlines()
    return [line.strip() for line in lines if line.strip()]


def read_mat(path: Path) -> dict:
    """A MATLAB file. UserError where scipy is not installed or the file is damaged."""
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError:
        raise UserError(
            f"'{path}' is a MATLAB file and needs the package scipy: "
            "pip install 'fastdigin[datasets]'"
        ) from None
    try:
        return loadmat(path, squeeze_me=True)
    except (OSError, ValueError, NotImplementedError, MatReadError) as error:
        raise UserError(f"'{path}' cannot be read: {error}") from None


def missing(layout: str, folder: Path, wanted: str) -> UserError:
    """The folder is not what the layout's name promises."""
    return UserError(f"{layout}:{folder}: there is no {wanted}: check the folder")
