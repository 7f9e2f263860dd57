"""Hostile inputs by the thousand: ``python -m fastdigin_bench.fuzz --minutes 30``.

Each target gives something of a user's (pictures, tables, prompts, settings, model folders, jobs,
records) to the code that reads it. Allowed are a result that is as promised, and a UserError. Any
other exception, a wrong result and an input that takes longer than PATIENCE are failures, printed
with the smallest input that hypothesis finds. The inputs of a round follow from its number.

Prints, last, one line of JSON: inputs, tracebacks, hangs, and inputs by target.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import logging
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st
from PIL import Image

from fastdigin import embedded
from fastdigin.commands.history import recall
from fastdigin.commands.status import task_states
from fastdigin.editing.prompts import phrase_tokens, replace_phrase, token_mapping
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job, Settings
from fastdigin.errors import UserError
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.photos import ImageInput, collect, read_any_image, read_mask
from fastdigin.photos.collect import TABLE_COLUMNS
from fastdigin.presets.algorithms import load_algorithm
from fastdigin.report import results_table, write_report
from fastdigin.results import CounterfactualRecord, NeuronRecord, ResultStore, read_records, tasks
from fastdigin.results.keys import keys_of
from fastdigin.storage import TensorCache
from fastdigin.tasks.counterfactual import Counterfactuals

PATIENCE = 120  # seconds that an input may take, on a busy machine
BATCH = 40  # inputs of a target in a round; of model folders, which are slow, a quarter
MODEL = Path(embedded.__file__).parent / "model"

BYTES = st.one_of(st.binary(max_size=60), st.sampled_from([b"\0", b"\xff" * 8, b'"', b"\n"]))
# Not only what people type: also halves of surrogate pairs, controls and HTML.
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(categories=["Cs", "Cc", "Lo", "Zs", "Sm"]), max_size=10),
    st.sampled_from(["<script>alert(1)</script>", "{}", "{0}", "a" * 5000, "\ud800", "\0", "NaN"]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)


class Hang(BaseException):
    """An input took longer than PATIENCE. Not an Exception: a smaller one is not looked for."""


def changed(content: bytes, draw: st.DrawFn) -> bytes:
    """``content`` with some pieces replaced, dropped or put in, or cut short."""
    for _ in range(draw(st.integers(0, 4))):
        # Formats say most at the beginning.
        start = draw(st.one_of(st.integers(0, min(64, len(content))), st.integers(0, len(content))))
        length = draw(st.sampled_from([0, 1, 2, 4, 30]))
        content = content[:start] + draw(BYTES) + content[start + length :]
    return content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content


@cache
def pictures() -> dict[str, bytes]:
    """A small picture in every format that Pillow writes, and in several modes."""
    Image.init()
    found = {}
    for mode in Image.MODES:
        for kind in sorted(Image.SAVE):
            content = io.BytesIO()
            with contextlib.suppress(Exception):  # most formats hold few modes
                Image.linear_gradient("L").resize((24, 24)).convert(mode).save(content, kind)
                found[f"{kind} {mode}"] = content.getvalue()
    return found


def images(draw: st.DrawFn, folder: Path) -> None:
    """Pixels in [0, 1], whatever the file."""
    path = folder / "x.png"
    path.write_bytes(changed(pictures()[draw(st.sampled_from(sorted(pictures())))], draw))
    item = ImageInput("x", path, mask=path, crop=True)
    image = read_any_image(item)
    assert image.shape[0] == 3 and image.min() >= 0 and image.max() <= 1
    mask = read_mask(item, 8)
    assert mask.shape == (8, 8) and mask.min() >= 0 and mask.max() <= 1


def tables(draw: st.DrawFn, folder: Path) -> None:
    """Tables that this writes are read as they were; damaged ones too, or refused."""
    columns = draw(st.lists(st.sampled_from(TABLE_COLUMNS[1:]), unique=True, max_size=4))
    cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=9)
    names = cell.filter(lambda name: name not in ("", ".", ".."))
    row = st.fixed_dictionaries({"image": names, **dict.fromkeys(columns, cell)})
    rows = draw(st.lists(row, min_size=1, max_size=4))
    table = folder / draw(st.sampled_from(["t.csv", "t.jsonl", "t.parquet"]))
    if table.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    elif table.suffix == ".jsonl":
        table.write_text("\n".join(map(json.dumps, rows)))
    else:
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    found = collect([str(table)])
    for item, given in zip(found, rows, strict=True):
        assert item.image == folder / given["image"]
        for name in set(columns) - {"mask"}:
            wanted = given[name] or (item.image.stem if name == "id" else None)
            assert getattr(item, name) == wanted, (name, given[name])
    table.write_bytes(changed(table.read_bytes(), draw))
    assert all(isinstance(item, ImageInput) for item in collect([str(table)]))


@cache
def model() -> LatentDiffusion:
    """The packaged one, loaded once."""
    return LatentDiffusion.from_pretrained("embedded", device="cpu")


def prompts(draw: st.DrawFn, folder: Path) -> None:
    """Finite texts of the right shape, and words found where they stand."""
    prompt, word, other = draw(TEXTS), draw(TEXTS), draw(TEXTS)
    text = model().encode_prompts([prompt])
    assert torch.isfinite(text).all()
    assert all(0 <= token < text.shape[1] for token in phrase_tokens(model(), prompt, word))
    assert torch.isfinite(token_mapping(model(), prompt, replace_phrase(prompt, word, other))).all()


def settings(draw: st.DrawFn, folder: Path) -> None:
    """A user's file of an algorithm's settings."""
    usual = Counterfactuals.embedded_settings
    names = [*vars(usual), *(f"optimisation.{name}" for name in vars(usual.optimisation))]
    changes = draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=2))
    good = {"about": "mine", "settings": {"counterfactual": changes}, "notes": ["none"]}
    content = good | draw(st.dictionaries(st.sampled_from(sorted(good)), VALUES, max_size=1))
    path = folder / "mine.json"
    text = json.dumps(content).encode()
    path.write_bytes(changed(text, draw) if draw(st.booleans()) else text)
    algorithm = load_algorithm(str(path))
    algorithm.describe()
    algorithm.of(usual)


def models(draw: st.DrawFn, folder: Path) -> None:
    """A folder of a model, one of whose files is damaged or gone."""
    files = sorted(path.relative_to(MODEL) for path in MODEL.rglob("*") if path.is_file())
    chosen = draw(st.sampled_from(files))
    shutil.copytree(MODEL, folder / "model")
    path = folder / "model" / chosen
    content = changed(path.read_bytes(), draw)
    if draw(st.booleans()):
        path.write_bytes(content)
    else:
        path.unlink()
    LatentDiffusion.from_pretrained(str(folder / "model"), device="cpu")


class Brightness:
    """A loss of the simplest kind."""

    name, weight = "brightness", 1.0

    def __call__(self, candidate: Any) -> torch.Tensor:
        return candidate.image.mean()


def jobs(draw: st.DrawFn, folder: Path) -> None:
    """A job with a value of another kind in it fails alone, beside one that is good."""
    latents, (text, empty) = torch.zeros(model().latent_shape), model().encode_prompts(["a", ""])
    run = Settings(steps=1, iterations=0)
    good = {"id": "x", "latents": latents, "conditioning": text, "null_text": empty,
            "losses": [Brightness()], "settings": run, "seed": 0}  # fmt: skip
    odd = st.one_of(VALUES, st.sampled_from([latents.half(), latents[None], latents * torch.nan,
                    latents.to("meta"), text.int(), torch.zeros(0), run]))  # fmt: skip
    name = draw(st.sampled_from(sorted(good)))
    value = draw(odd)
    found = list(engine().run([Job(**good | {name: value}), Job(**good | {"id": "good"})]))
    told = [(result.id, result.status, result.error) for result in found]
    assert ("good", "done", None) in told, (name, value, told)


@cache
def engine() -> Engine:
    """One around the packaged model."""
    return Engine(model(), slots=2, compile="off")


def records(draw: st.DrawFn, folder: Path) -> None:
    """A folder of somebody else: its report is complete, and runs no script but ours."""
    names = [key.name for key in keys_of(CounterfactualRecord).values()]
    line = {"task": "counterfactual", "id": "x", "status": "done"}
    line |= draw(st.dictionaries(st.sampled_from([*names, "schema", "task", "image"]), VALUES))
    NeuronRecord(id="good", settings={"lr": 1}).save(folder)
    path = folder / "results.jsonl"
    content = path.read_bytes() + json.dumps(line).encode() + b"\n"
    path.write_bytes(changed(content, draw) if draw(st.booleans()) else content)
    run = folder / "run.json"
    task = draw(st.one_of(TEXTS, st.just("environments")))
    run.write_text(json.dumps(json.loads(run.read_text()) | {task: draw(VALUES)}))
    found = read_records(folder)
    page = write_report(folder).read_text(encoding="utf-8")
    assert page.lower().count("<script") == 1
    for task in {*tasks(), *(record.task for record in found)}:
        assert "\x1b" not in results_table(task, found)
    store = ResultStore(folder, "neurons", {"lr": 1}, {"weights": {"a": "b"}})
    NeuronRecord(id="more").save(store)
    assert [record.id for record in read_records(folder)][-1] == "more"
    command = {"arguments": ["neurons"], "folder": "/", "jobs": {"neurons": 3}}
    command |= draw(st.dictionaries(st.sampled_from(list(command)), VALUES))
    (folder / "command.json").write_text(json.dumps(command))
    for state in task_states(folder):
        json.dumps(state, allow_nan=False)
    with contextlib.suppress(OSError):
        Path(recall(folder).folder).stat()  # retry goes there


def caches(draw: st.DrawFn, folder: Path) -> None:
    """What a cache returns is what was put, or nothing."""
    cache_, kept = TensorCache(folder), {"a": torch.arange(9.0), "b": torch.zeros(2, 0)}
    cache_.put("x", kept)
    (path,) = folder.glob("*.safetensors")
    path.write_bytes(changed(path.read_bytes(), draw))
    found = cache_.get("x")
    assert found is None or all(torch.equal(found[name], kept[name]) for name in kept)


Target = Callable[[st.DrawFn, Path], None]
TARGETS: tuple[Target, ...] = (
    images, tables, records, settings, caches, prompts, jobs, models,
)  # fmt: skip


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Raises Hang where what is within takes longer."""

    def late(*_: Any) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def one_round(target: Target, number: int, counts: Counter[str]) -> None:
    """Gives a target BATCH inputs. Whatever it raises is a failure, with its smallest input."""

    @hypothesis.seed(number)
    @hypothesis.settings(
        max_examples=BATCH // 4 if target is models else BATCH, deadline=None, database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck), print_blob=False,
    )  # fmt: skip
    @hypothesis.given(st.data())
    def inputs(data: st.DataObject) -> None:
        counts[target.__name__] += 1
        allowed = contextlib.suppress(UserError)
        with tempfile.TemporaryDirectory() as folder, patience(PATIENCE), allowed:
            target(data.draw, Path(folder))

    inputs()


def fuzz(minutes: float, seed: int = 0, targets: tuple[Target, ...] = TARGETS) -> dict[str, Any]:
    """Rounds of all targets until the time is over; what came of them."""
    counts: Counter[str] = Counter()
    failures: dict[str, str] = {}
    hangs, number, end = 0, seed, time.monotonic() + 60 * minutes
    while number == seed or time.monotonic() < end:
        for target in targets:
            try:
                one_round(target, number, counts)
            except Hang:
                hangs += 1
                traceback.print_exc()
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{target.__name__}: {type(error).__name__} at {place.filename}"
                if f"{kind}:{place.lineno}" not in failures:
                    failures[f"{kind}:{place.lineno}"] = str(error)
                    traceback.print_exc()
        number += 1
        print(f"round {number}: {counts.total()} inputs, {len(failures)} faults", file=sys.stderr)
    return {
        "inputs": counts.total(), "tracebacks": len(failures), "hangs": hangs,
        "by_target": dict(counts), "rounds": number - seed, "faults": sorted(failures),
    }  # fmt: skip


def main() -> int:
    """Runs the command; 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30, metavar="N", help="default 30")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the first round's number")
    names = [target.__name__ for target in TARGETS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="TARGET")
    options = parser.parse_args()
    chosen = tuple(target for target in TARGETS if target.__name__ in options.only)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = fuzz(options.minutes, options.seed, chosen)
    finally:
        logging.disable(logging.NOTSET)
    print(json.dumps(results))
    return 1 if results["tracebacks"] or results["hangs"] else 0


if __name__ == "__main__":
    sys.exit(main())
