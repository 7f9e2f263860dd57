"""Makes synsets.tsv: ImageNet's classes and all WordNet synsets above them.

    python -m fastdigin.datasets.make_synsets data.noun classes.txt

data.noun is WordNet 3.0's (package wordnet-base of Debian, or wordnet.princeton.edu); classes.txt
holds the 1000 wnids of ILSVRC 2012, one a line, sorted (imagenet_synsets.txt of timm).
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastdigin.datasets.hierarchy import SYNSETS


def make(data_noun: Path, wnids: list[str]) -> str:
    """The table: wnid, index of the class, wnids of the parents, names."""
    nouns = dict(_noun(line) for line in data_noun.open(encoding="utf-8") if line[0] != " ")
    wanted, waiting = set(), list(wnids)
    while waiting:
        wnid = waiting.pop()
        if wnid not in wanted:
            wanted.add(wnid)
            waiting += nouns[wnid][1]
    index = {wnid: str(number) for number, wnid in enumerate(wnids)}
    rows = [
        "\t".join((wnid, index.get(wnid, ""), " ".join(nouns[wnid][1]), ", ".join(nouns[wnid][0])))
        for wnid in sorted(wanted)
    ]
    return "\n".join(["wnid\tindex\tparents\tnames", *rows]) + "\n"


def _noun(line: str) -> tuple[str, tuple[list[str], list[str]]]:
    """wnid -> (names, hypernyms) of one line; wndb(5WN) describes the format."""
    fields = line.split(" | ")[0].split()
    count = int(fields[3], 16)
    names = [fields[4 + 2 * i].replace("_", " ") for i in range(count)]
    pointers = fields[5 + 2 * count :]
    parents = [
        f"n{pointers[i + 1]}"
        for i in range(0, len(pointers) - 3, 4)
        if pointers[i] in ("@", "@i") and pointers[i + 2] == "n"
    ]
    return f"n{fields[0]}", (names, parents)


if __name__ == "__main__":
    SYNSETS.write_text(
        make(Path(sys.argv[1]), Path(sys.argv[2]).read_text().split()), encoding="utf-8"
    )
