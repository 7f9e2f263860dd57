"""The validation photos of ImageNet (ILSVRC 2012), in each of the layouts it is found in."""

import csv
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

from fastdigin.datasets.hierarchy import Synset, classes, nearest_classes, synsets
from fastdigin.datasets.layout import (
    Photo,
    first_existing,
    folders_of,
    images_of,
    missing,
    read_lines,
    read_mat,
)
from fastdigin.errors import UserError

MOST_TARGETS = 10
DEVKIT = "ILSVRC2012_devkit_t12/data"
TRUTH = (
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "val.txt",
    "ILSVRC2012_validation_ground_truth.txt",
    f"{DEVKIT}/ILSVRC2012_validation_ground_truth.txt",
)


def imagenet(folder: Path) -> list[Photo]:
    """ImageNet's validation photos with their classes.

    Either a folder for each synset (n01440764/*.JPEG), in PATH or PATH/val; or all photos in one
    folder (PATH/val or PATH), with one of TRUTH in PATH or beside the photos: a table of ids and
    synsets, a synset a line, "FILE INDEX" a line, or the devkit's numbers (with its meta.mat, which
    needs scipy). A class is called by its first synonym, and given to the classifier with all of
    them, or as its index where even those are ambiguous (both cranes).
    """
    root = folder / "val" if (folder / "val").is_dir() else folder
    known = {synset.wnid: synset for synset in classes()}
    by_synset = [sub for sub in folders_of(root) if sub.name in known]
    files = [(path, sub.name) for sub in by_synset for path in images_of(sub)]
    if not by_synset:
        files = _flat(folder, root, list(known))
    return [
        Photo(path.stem, path, known[wnid].word, classifier_name(known[wnid]))
        for path, wnid in files
    ]


def imagenet_pairs(folder: Path) -> list[Photo]:
    """As ``imagenet``, each photo with a target: another class of its cluster in WordNet.

    The photos of a class take the MOST_TARGETS nearest classes of its cluster in turn.
    """
    by_source = {classifier_name(synset): synset.wnid for synset in classes()}
    turn: Counter[str] = Counter()
    pairs = []
    for photo in imagenet(folder):
        wnid = by_source[photo.source]
        others = nearest_classes(wnid)[:MOST_TARGETS]
        target = synsets()[others[turn[wnid] % len(others)]]
        turn[wnid] += 1
        pairs.append(replace(photo, target=classifier_name(target)))
    return pairs


def classifier_name(synset: Synset) -> str:
    """The name by which a classifier finds a class: all its synonyms, or its index."""
    return str(synset.index) if synset.names.casefold() in ambiguous_names() else synset.names


@cache
def ambiguous_names() -> set[str]:
    """Whole names that are also a name of another class, as Classifier.class_index sees them."""
    uses: Counter[str] = Counter()
    for synset in classes():
        names = synset.names.casefold()
        uses.update({names, *(alias.strip() for alias in names.split(","))})
    return {s.names.casefold() for s in classes() if uses[s.names.casefold()] > 1}


def _flat(folder: Path, root: Path, wnids: list[str]) -> list[tuple[Path, str]]:
    """(photo, synset) where all photos lie in one folder."""
    photos = images_of(root)
    truth = first_existing(folder, *TRUTH) or first_existing(root, *TRUTH)
    if not photos or truth is None:
        raise missing(
            "imagenet", folder,
            "folder for each synset (n01440764 and so on), nor a flat val/ with its labels in one "
            f"of {', '.join(TRUTH)}",
        )  # fmt: skip
    labels = _labels(truth, wnids)
    found = []
    for path in photos:
        number = path.stem.rpartition("_")[2]
        wnid = labels.get(path.stem) or labels.get(str(int(number)) if number.isdecimal() else "")
        if wnid not in wnids:
            raise UserError(f"'{truth}' does not say which of the 1000 classes '{path.name}' is")
        found.append((path, wnid))
    return found


def _labels(truth: Path, wnids: list[str]) -> dict[str, str]:
    """Stem of the file, or its number from 1 -> synset."""
    lines = read_lines(truth)
    if truth.suffix == ".csv":
        rows = csv.DictReader(lines)
        return {r["ImageId"]: r["PredictionString"].split(maxsplit=1)[0] for r in rows}
    if all(len(line.split()) == 2 for line in lines):  # FILE INDEX, by sorted synsets
        pairs = [line.split() for line in lines]
        return {Path(name).stem: wnids[int(index)] for name, index in pairs}
    if all(line.isdecimal() for line in lines):
        by_id = _devkit_synsets(truth)
        lines = [by_id[int(line)] for line in lines]
    return {str(number): wnid for number, wnid in enumerate(lines, start=1)}


def _devkit_synsets(truth: Path) -> dict[int, str]:
    """The devkit numbers classes in an order of its own, which only its meta.mat tells."""
    meta = first_existing(truth.parent, "meta.mat", f"{DEVKIT}/meta.mat")
    if meta is None:
        raise UserError(
            f"'{truth}' holds the devkit's own class numbers, which need its meta.mat: put that "
            "beside it"
        )
    rows = read_mat(meta)["synsets"].reshape(-1)
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
