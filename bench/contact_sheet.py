"""The README's picture from a finished demo: two jobs of each task, before, after, difference.

python bench/contact_sheet.py demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fastdigin.results import read_records, tasks
from fastdigin_bench.pictures import contact_sheet

PICTURE = Path(__file__).parent / "results" / "contact-sheet.png"
PER_TASK = 2


def main() -> None:
    """Draws the picture and says where it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder of a finished demo")
    out = parser.parse_args().out
    records = [record for record in read_records(out) if record.status == "done"]
    jobs = {task: [r for r in records if r.task == task][:PER_TASK] for task in tasks()}
    rows = [[x for r in found for x in (r.initial_image, r.image, r.difference)]
            for found in jobs.values()]  # fmt: skip
    captions = [task.replace("-", "\n") for task in jobs]
    columns = ["before", "after", "change"] * PER_TASK
    sheet = contact_sheet(rows, captions, columns, side=112)
    sheet.save(PICTURE, optimize=True)
    print(f"{PICTURE}: {sheet.width} x {sheet.height} pixels")


if __name__ == "__main__":
    main()
