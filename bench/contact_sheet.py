"""The README's picture from a finished demo: two jobs of each task, before, after, difference.

python bench/contact_sheet.py demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fastdigin.results import tasks
from fastdigin.results.pictures import contact_sheet
from fastdigin.results.store import read_lines
from fastdigin.tasks.inputs import ImageInput, read_image

PICTURE = Path(__file__).parent / "results" / "contact-sheet.png"
PER_TASK = 2


def main() -> None:
    """Draws the picture and says where it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder of a finished demo")
    out = parser.parse_args().out
    records = [r for r in read_lines(out) if r["status"] == "done"]
    rows, captions = [], []
    for task in tasks():
        jobs = [r for r in records if r["task"] == task][:PER_TASK]
        cells = [
            read_image(ImageInput(key, out / r[key]), 64)
            for r in jobs
            for key in ("initial_image", "image", "difference")
        ]
        rows.append(cells)
        captions.append(task.replace("-", "\n"))
    columns = ["before", "after", "change"] * PER_TASK
    sheet = contact_sheet(rows, captions, columns, side=112)
    sheet.save(PICTURE, optimize=True)
    print(f"{PICTURE}: {sheet.width} x {sheet.height} pixels")


if __name__ == "__main__":
    main()
