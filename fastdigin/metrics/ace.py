"""Folders in the layout of the scripts of ACE and DiME, which many methods write.

    Original/Correct/NAME.png                 photos that the classifier reads correctly,
    Original/Incorrect/NAME.png               and the others
    Results/EXPERIMENT/CC/CCF/CF/NAME.png     counterfactuals: CC or IC says whether the photo was
                                              read correctly, CCF or ICF whether the target is seen
    Results/EXPERIMENT/CC/CCF/SM/NAME.png     how much each pixel changed
    Results/EXPERIMENT/CC/CCF/Info/NAME.txt   label, pred, target, cf pred, l_inf, l_1

Source: github.com/guillaumejs2403/ACE, guided_diffusion/sample_utils.py (``ImageSaver``).
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from fastdigin.datasets.layout import images_of
from fastdigin.errors import UserError
from fastdigin.metrics.cases import Case
from fastdigin.reading import read_text
from fastdigin.results.folder import writing
from fastdigin.results.pictures import png, to_pil
from fastdigin.storage import write_atomically

log = logging.getLogger(__name__)

_ORIGINALS = {"CC": "Correct", "IC": "Incorrect"}
_FLIPS = {"CCF": True, "ICF": False}
_INFO = ("label", "pred", "target", "cf pred")


def read_ace(folder: Path, experiment: str | None = None) -> list[Case]:
    """The cases in a folder of this layout.

    Args:
        folder: holds Original/ and Results/.
        experiment: below Results/, such as "exp/explanation"; may be None where there is but one.

    Returns:
        A case per counterfactual, sorted.

    Raises:
        UserError: no such layout, no or several experiments, or a counterfactual without photo.
    """
    root = folder / "Results" / (experiment or _only_experiment(folder))
    found = []
    for part, originals in _ORIGINALS.items():
        for flip, flipped in _FLIPS.items():
            place = root / part / flip
            for after in images_of(place / "CF") if (place / "CF").is_dir() else ():
                before = folder / "Original" / originals / after.name
                if not before.is_file():
                    raise UserError(f"'{after}' has no photo: '{before}' is missing")
                info = _read_info(place / "Info" / f"{after.stem}.txt")
                known = {"source": info.get("label"), "target": info.get("target")}
                found.append(
                    Case(
                        id=f"{part}/{flip}/{after.stem}", before=before, after=after,
                        flipped=flipped, correct=part == "CC", **known,
                    )
                )  # fmt: skip
    if not found:
        raise UserError(f"'{root}' holds no counterfactuals (CC/CCF/CF and so on)")
    return found


def write_ace(cases: Sequence[Case], folder: Path, experiment: str) -> None:
    """Writes cases in this layout, numbered from 0, so that those scripts can score them.

    A case of which nobody knows whether the photo was read correctly counts as correct. Photos that
    showed the target already, which are no flip nor none, are left out with a warning.

    Args:
        cases: with pictures of any kind.
        folder: gets Original/ and Results/.
        experiment: the folder below Results/.

    Raises:
        UserError: pictures that cannot be read, an experiment that is there already, or originals
            of other photos. CannotWrite: a disk that is full, say.
    """
    root = folder / "Results" / experiment
    if root.is_dir() and any(root.rglob("*.png")):
        raise UserError(f"'{root}' holds results already: name another folder or experiment")
    known = [case for case in cases if case.flipped is not None]
    if known and len(known) < len(cases):
        log.warning(
            "%d photos that showed the target already are left out", len(cases) - len(known)
        )
        cases = known
    for number, case in enumerate(cases):
        part = "IC" if case.correct is False else "CC"
        place = root / part / ("CCF" if case.flipped else "ICF")
        before, after, _ = case.read()
        change = (after - before).abs()
        sizes = change.sum(dim=0)
        info = {"label": case.source, "target": case.target}
        info |= {"l_inf": float(change.max()), "l_1": float(change.mean())}
        text = "\n".join(f"{name}: {value}" for name, value in info.items() if value is not None)
        name = f"{number:07d}"
        original = folder / "Original" / _ORIGINALS[part] / f"{name}.png"
        if original.exists() and original.read_bytes() != _png(before):
            raise UserError(f"'{original}' is another photo than {case.id!r}: name another folder")
        _write(original, _png(before), folder)
        _write(place / "CF" / f"{name}.png", _png(after), folder)
        _write(place / "SM" / f"{name}.png", _png(sizes / sizes.max().clamp_min(1e-6)), folder)
        _write(place / "Info" / f"{name}.txt", text.encode(), folder)


def _only_experiment(folder: Path) -> str:
    """The experiment of a folder that has one."""
    results = folder / "Results"
    places = {p.parent for part in _ORIGINALS for p in results.rglob(part) if p.is_dir()}
    names = sorted(place.relative_to(results).as_posix() for place in places)
    if not names:
        raise UserError(
            f"'{folder}' is not in the layout of the ACE scripts: it needs Original/ and "
            "Results/EXPERIMENT/CC/CCF/CF"
        )
    if len(names) > 1:
        raise UserError(f"'{folder}' holds several experiments: give --experiment {names[0]}, "
                        f"or another of {', '.join(names)}")  # fmt: skip
    return names[0]


def _read_info(file: Path) -> dict[str, str | int]:
    """Key -> value of the lines "key: value"; whole numbers (also "1.0") are indices of classes."""
    if not file.exists():
        return {}
    lines = read_text(file, "the file").splitlines()
    pairs = (line.partition(": ") for line in lines)
    return {key: _class(value.strip()) for key, _, value in pairs if key in _INFO}


def _class(value: str) -> str | int:
    try:
        return int(float(value))
    except ValueError:
        return value


def _png(picture: Tensor) -> bytes:
    return png(to_pil(picture))


def _write(path: Path, content: bytes, folder: Path) -> None:
    with writing(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
