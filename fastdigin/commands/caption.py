"""fastdigin caption: a table of photos with captions, to be corrected and used."""

import argparse
import csv
import io
import json
from dataclasses import replace
from pathlib import Path

from fastdigin.commands.common_options import add_cache_options, add_images
from fastdigin.commands.options import path
from fastdigin.commands.output import write_text
from fastdigin.errors import UserError


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """The images and the model."""
    add_images(parser)
    parser.add_argument(
        "--captions", required=True, metavar="ID",
        help="an image-to-text model of transformers: a hub id or a folder",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=path, default=Path("captions.csv"), metavar="FILE",
        help="the table, which is IMAGES for other commands (default captions.csv)",
    )  # fmt: skip
    add_cache_options(parser, "captions")
    parser.add_argument(
        "--device", metavar="D", help="cpu, cuda or cuda:1 (default: a GPU where there is one)"
    )


def run(options: argparse.Namespace) -> int:
    """Writes the table and prints it; 1 if a photo has no caption in the end."""
    from fastdigin.commands.inputs import with_captions
    from fastdigin.photos import collect
    from fastdigin.photos.collect import TABLE_COLUMNS
    from fastdigin.report.console import print_text
    from fastdigin.tasks.captions import caption_table, needs_caption
    from fastdigin.tasks.words import check_text

    if options.out.suffix.lower() != ".csv":
        raise UserError(f"--out '{options.out}' must end in .csv, as it is a table")
    photos = [replace(p, crop=options.crop or p.crop) for p in collect(options.images)]
    for photo in photos:
        check_text("the name of a photo", str(photo.image))
    inputs = with_captions(options, photos)
    rows = caption_table(inputs, options.out.parent)
    text = io.StringIO(newline="")
    columns = [name for name in TABLE_COLUMNS if any(name in row for row in rows)]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(options.out, text.getvalue(), options.out)
    for row in rows:
        print_text(json.dumps(row) if options.json else f"{row['id']}: {row.get('caption', '-')}")
    return 1 if any(map(needs_caption, inputs)) else 0
