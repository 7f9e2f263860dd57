"""What the tests of the command line share: commands that are quick, and what they write."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from fastdigin import cli, embedded

QUICK = ["--steps", "2", "--iterations", "1"]

PHOTO = embedded.photos()[5]  # whatever it shows, it is a good photo
SNEAKER = next(p for p in embedded.photos() if p.garment == "sneaker" and p.background == "grass")
TARGET = "bag" if PHOTO.garment != "bag" else "boot"

CF = ["counterfactual", "--classifier", "embedded:clean"]
NCF = ["neuron-counterfactual", "--classifier", "embedded:spurious"]
NEURONS = ["neurons", "--classifier", "embedded:spurious"]
DISAGREE = ["disagree", "--f", "embedded:clean", "--g", "embedded:spurious", "--draws", "2"]


def run(*arguments) -> int:
    """The exit code, also where argparse ends the process."""
    try:
        return cli.main([str(a) for a in arguments])
    except SystemExit as error:
        return error.code


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def check_record(record: dict, out: Path) -> None:
    """What is promised of every line, beside its keys (tests/results/test_records.py)."""
    assert record["status"] in ("done", "failed")
    assert (record["status"] == "failed") == ("error" in record)
    for key in ("image", "initial_image", "input_image", "difference", "mask"):
        if record[key] is not None:
            assert not Path(record[key]).is_absolute() and ".." not in Path(record[key]).parts
            with Image.open(out / record[key]) as picture:
                assert picture.size == (64, 64)
    if record["status"] == "done":
        assert record["image"] and record["initial_image"]


def save_copy(path: Path, size: int = 64, mode: str = "RGB") -> Path:
    with Image.open(PHOTO.path) as photo:
        photo.convert(mode).resize((size, size)).save(path)
    return path


def words_file(path: Path, *words: str) -> Path:
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return path


def start_process(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "fastdigin.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
