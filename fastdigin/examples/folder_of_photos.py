"""A folder of photos, one counterfactual each. The same command continues a stopped run."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import fastdigin as fd


def main(
    out: str | Path,
    photos: Sequence[str] = ("embedded:photos",),
    target: str = "boot",
    *,
    limit: int | None = 4,
    settings: fd.CounterfactualSettings | None = None,
) -> Path:
    """Explains the robust classifier by photos, and returns the report's path."""
    classifier = fd.Classifier.load("embedded:robust")
    engine = fd.Engine(fd.LatentDiffusion.from_pretrained("embedded"))
    finished = {record.id for record in fd.read_records(out) if record.status == "done"}
    for record in fd.counterfactuals(
        engine, fd.collect(photos, limit), classifier, target, settings=settings, skip=finished
    ):
        print(record.caption or record.error)
        record.save(out)
    return fd.write_report(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="*", default=["embedded:photos"], help="files or folders")
    parser.add_argument("--target", default="boot", help="the class that shall be seen")
    parser.add_argument("--limit", type=int, default=4, help="photos, at most")
    parser.add_argument("--out", default="folder-of-photos", help="folder for the results")
    main(**vars(parser.parse_args()))
