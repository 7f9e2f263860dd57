"""What each command does: options in, an exit code out."""

from __future__ import annotations

import json
import platform
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tqdm import tqdm

import fastdigin
from fastdigin.activating_command import TOP_IMAGES, find_activating
from fastdigin.classifier_arguments import load_classifier, load_pair, read_lines
from fastdigin.demo import demo_parts
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import EarlyStop
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED, LatentDiffusion
from fastdigin.naming_options import load_naming
from fastdigin.photo_options import load_photo_tools, with_captions
from fastdigin.report import ResultStore, print_results, read_records, write_report
from fastdigin.report.store import jsonable
from fastdigin.tasks import counterfactual as cf
from fastdigin.tasks import disagreement as dis
from fastdigin.tasks import neuron_counterfactual as ncf
from fastdigin.tasks import neurons as neu
from fastdigin.tasks.inputs import ImageInput, collect, read_images
from fastdigin.tasks.part import Part
from fastdigin.tasks.regularisers import Regulariser

DEMO_SLOTS = 8
"""Not planned: another number would change the last bits of the pictures in the README.

So would compiled steps, which are off.
"""


def demo(options: Namespace) -> int:
    """All four tasks on the embedded model."""
    engine = load_engine(EMBEDDED, slots=DEMO_SLOTS, compile="off")
    parts = demo_parts(engine, options.per_task, options.seed)
    return run_parts(parts, options.out, as_json=options.json)


def counterfactual(options: Namespace) -> int:
    """Counterfactuals of the user's images."""
    inputs = with_captions(options, _described_inputs(options, target=options.target))
    engine = _engine(options)
    classifier = load_classifier(options.classifier, options)
    settings = _with_options(cf.default_settings(engine.model), options)
    if options.stop_at is not None:
        stop = EarlyStop(above=options.stop_at, of=cf.CONFIDENCE, held_for=3)
        settings = replace(settings, optimisation=replace(settings.optimisation, early_stop=stop))
    judge_spec = options.judge or ("embedded:judge" if options.model == EMBEDDED else None)
    judge = load_classifier(judge_spec, options, classifier.classes) if judge_spec else None
    tools = load_photo_tools(options, engine.model)
    part = Part(
        cf.TASK,
        cf.run_settings(engine.model, settings, classifier, judge, options.seed, tools),
        len(inputs),
        lambda skip, tick: cf.counterfactuals(
            engine, inputs, classifier, settings=settings, judge=judge, seed=options.seed,
            tools=tools, skip=skip, on_progress=tick,
        ),
        dict(zip(cf.job_ids(inputs, classifier), inputs, strict=True)),
    )  # fmt: skip
    return run_parts([part], options.out, as_json=options.json)


def disagree(options: Namespace) -> int:
    """Disagreements of two classifiers."""
    engine = _engine(options)
    f, g = load_pair(options.f, options.g, options)
    settings = _with_options(dis.default_settings(engine.model), options)
    given = {name: getattr(options, name) for name in ("objective", "f_weight", "draws")}
    settings = replace(settings, **{name: v for name, v in given.items() if v is not None})
    classes = options.classes[: options.limit]
    part = Part(
        dis.TASK,
        dis.run_settings(engine.model, settings, f, g, options.seed),
        len(classes) * options.seeds,
        lambda skip, tick: dis.disagreements(
            engine, f, g, classes, seeds=options.seeds, settings=settings, seed=options.seed,
            skip=skip, on_progress=tick,
        ),
    )  # fmt: skip
    return run_parts([part], options.out, as_json=options.json)


def neurons(options: Namespace) -> int:
    """Visualisations of single neurons."""
    words = None if options.words_from else listed_words(options)
    engine = _engine(options)
    classifier = _with_layer(load_classifier(options.classifier, options), options.layer)
    wanted = list(dict.fromkeys(classifier.check_neuron(n) for n in options.neurons))
    wanted = wanted[: options.limit]
    classifier.to(engine.model.device)
    dataset = find_activating(classifier, wanted, options.images, TOP_IMAGES, options)
    settings = _with_options(neu.default_settings(engine.model), options)
    settings = replace(settings, direction=options.direction)
    if words is None:
        words = load_naming(options, engine.model.device)
    part = Part(
        neu.TASK,
        neu.run_settings(engine.model, settings, classifier, words, dataset, options.seed),
        len(wanted) * options.per_neuron,
        lambda skip, tick: neu.visualise_neurons(
            engine, classifier, wanted, words, dataset, images_per_neuron=options.per_neuron,
            settings=settings, seed=options.seed, skip=skip, on_progress=tick,
        ),
    )  # fmt: skip
    return run_parts([part], options.out, as_json=options.json)


def neuron_counterfactual(options: Namespace) -> int:
    """Counterfactuals of one neuron on the user's images."""
    inputs = with_captions(options, _described_inputs(options))
    engine = _engine(options)
    classifier = _with_layer(load_classifier(options.classifier, options), options.layer)
    neuron = classifier.check_neuron(options.neuron)
    embedded_model = options.model == EMBEDDED
    backgrounds = Classifier.load("embedded:background") if embedded_model else None
    photos = collect(["embedded:photos"]) if embedded_model else []
    dataset = read_images(photos, engine.model.image_size)
    settings = _with_options(ncf.default_settings(engine.model), options)
    tools = load_photo_tools(options, engine.model)
    ids = ncf.job_ids(inputs, [neuron] * len(inputs), [options.direction] * len(inputs))
    part = Part(
        ncf.TASK,
        ncf.run_settings(
            engine.model, settings, classifier, backgrounds, options.seed, dataset, tools
        ),
        len(inputs),
        lambda skip, tick: ncf.neuron_counterfactuals(
            engine, inputs, classifier, neuron, options.direction, dataset=dataset,
            backgrounds=backgrounds, settings=settings, seed=options.seed, tools=tools, skip=skip,
            on_progress=tick,
        ),
        dict(zip(ids, inputs, strict=True)),
    )  # fmt: skip
    return run_parts([part], options.out, as_json=options.json)


def search(options: Namespace) -> int:
    """Real photos that resemble an image."""
    from fastdigin.search_command import run

    return run(options)


def activating(options: Namespace) -> int:
    """The photos that activate neurons most."""
    from fastdigin.activating_command import run

    return run(options)


def caption(options: Namespace) -> int:
    """A table of what photos show."""
    from fastdigin.caption_command import run

    return run(options)


def doctor(options: Namespace) -> int:
    """What is installed, what is missing, what it takes."""
    from fastdigin.doctor_command import run

    return run(options)


def bench(options: Namespace) -> int:
    """One of the benches of fastdigin_bench."""
    from fastdigin_bench.command import run

    return run(options)


def info(options: Namespace) -> int:
    """Versions, devices, backends."""
    from fastdigin.embedded import classifier_names
    from fastdigin_kernels import native

    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts: dict[str, Any] = {
        "fastdigin": fastdigin.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "devices": [*cuda, f"cpu ({torch.get_num_threads()} threads)"],
        "attention": "torch.nn.functional.scaled_dot_product_attention",
        "native library": str(native.library_path() or "not built"),
        "cpu features": list(native.cpu_features()) if native.library_path() else [],
        "embedded classifiers": [f"embedded:{name}" for name in classifier_names()],
    }
    if options.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            shown = ", ".join(value) if isinstance(value, list) else value
            print(f"{name:<21}{shown}")
    return 0


def run_parts(parts: list[Part], out: Path, *, as_json: bool) -> int:
    """Runs parts one after the other into one folder, prints, reports; returns the exit code.

    Jobs that the folder already holds as done are not repeated. Every part is checked before the
    first one starts and before anything is written.
    """
    done = {(r["task"], r["id"]): r for r in read_records(out) if r["status"] == "done"}
    bars = [_Bar(part) for part in parts]
    explanations = [
        part.run({id for task, id in done if task == part.task}, bar.advance)
        for part, bar in zip(parts, bars, strict=True)
    ]
    stores = [ResultStore(out, part.task, part.settings) for part in parts]
    for part in parts:
        _check_same_inputs(part, done, out)
    failed = 0
    for bar, store, results in zip(bars, stores, explanations, strict=True):
        with bar:
            for explanation in results:
                record = explanation.save(store)
                if as_json:
                    print(json.dumps(jsonable(record)), flush=True)
                if explanation.status == "failed":
                    failed += 1
                    tqdm.write(f"failed: {explanation.id}: {record['error']}", file=sys.stderr)
    report = write_report(out)
    if not as_json:
        records = read_records(out)
        for part in parts:
            print_results(part.task, records)
            print()
        print(f"report: {report}")
    return 1 if failed else 0


class _Bar:
    """The progress of one part on stderr; drawn from the moment that it is entered."""

    def __init__(self, part: Part):
        self._part = part

    def __enter__(self) -> None:
        self._bar = tqdm(
            total=self._part.jobs, desc=self._part.task, unit="image", file=sys.stderr,
            bar_format="{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
        )  # fmt: skip

    def advance(self, jobs: float) -> None:
        # The shares of a job add up to 1 but for rounding, which tqdm would warn of.
        self._bar.update(min(jobs, self._bar.total - self._bar.n))

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self._bar.update(self._bar.total - self._bar.n)
        self._bar.close()


def _check_same_inputs(part: Part, done: Mapping[tuple[str, str], dict], out: Path) -> None:
    """Raises UserError where a finished job has the id of an input but was another photo's."""
    for id, item in part.inputs.items():
        before = done.get((part.task, id), {}).get("input")
        now = item.fingerprint() if before else None
        if before and now and before != now:
            raise UserError(
                f"--out '{out}' holds {id!r} of another image, prompt, source or mask; name "
                "another --out, or give the image an id of its own in a table"
            )


def listed_words(options: Namespace) -> list[str]:
    """Those of --words, or what the embedded model can draw; other models need the user's."""
    if options.words:
        return read_lines(options.words, "--words")
    if options.model != EMBEDDED:
        raise UserError(
            "--words is needed with a model other than embedded, one word a line; or --words-from, "
            "which names what the neuron's most activating images show"
        )
    from fastdigin.embedded import words

    return words()


def _engine(options: Namespace) -> Engine:
    return load_engine(
        options.model, options.memory, options.slots, options.attention, options.compile
    )


def load_engine(
    model: str,
    memory: str = "auto",
    slots: int | None = None,
    attention: str = "auto",
    compile: str = "auto",
) -> Engine:
    """An engine around what ``LatentDiffusion.load`` finds under that name."""
    diffusers.utils.logging.disable_progress_bar()  # of loading: it takes a second
    transformers.utils.logging.disable_progress_bar()
    loaded = LatentDiffusion.load(model, attention=attention)
    return Engine(loaded, memory=memory, slots=slots, compile=compile)


def _described_inputs(options: Namespace, **also: str | None) -> list[ImageInput]:
    """The inputs of the command line, with whatever its options say of all of them."""
    described = {"source": options.source, "prompt": options.prompt, **also}
    given = {key: value for key, value in described.items() if value is not None}
    if options.crop:
        given["crop"] = True
    if options.prompt is not None:
        given["background"] = None  # the table's may not occur in the new prompt
    return [replace(item, **given) for item in collect(options.images, options.limit)]


def _with_options(settings: Any, options: Namespace) -> Any:
    names = ("steps", "iterations", "guidance_scale", "learning_rate")
    given = {name: v for name in names if (v := getattr(options, name)) is not None}
    settings = replace(settings, optimisation=replace(settings.optimisation, **given))
    if getattr(options, "inversion", None):
        settings = replace(settings, inversion_method=options.inversion)
    if getattr(options, "regulariser", None):
        regularisers = tuple(Regulariser.parse(text) for text in options.regulariser)
        settings = replace(settings, regularisers=regularisers)
    return settings


def _with_layer(classifier: Classifier, layer: str | None) -> Classifier:
    return classifier if layer is None else classifier.at_layer(layer)
