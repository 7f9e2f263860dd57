"""What each command does: options in, an exit code out."""

from __future__ import annotations

import json
import platform
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import fastdigin
from fastdigin.demo import demo_parts
from fastdigin.engine.engine import Engine
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED, LatentDiffusion
from fastdigin.report import ResultStore, print_results, write_report
from fastdigin.report.store import jsonable
from fastdigin.tasks import counterfactual as cf
from fastdigin.tasks import disagreement as dis
from fastdigin.tasks import neuron_counterfactual as ncf
from fastdigin.tasks import neurons as neu
from fastdigin.tasks.inputs import ImageInput, collect, read_image
from fastdigin.tasks.part import Part
from fastdigin.tasks.regularisers import Regulariser


def demo(options: Namespace) -> int:
    """All four tasks on the embedded model."""
    engine = Engine(LatentDiffusion.load(EMBEDDED))
    parts = demo_parts(engine, options.per_task, options.seed)
    return run_parts(parts, options.out, as_json=options.json)


def counterfactual(options: Namespace) -> int:
    """Counterfactuals of the user's images."""
    inputs = _described_inputs(options)
    if options.target is not None:
        inputs = [replace(item, target=options.target) for item in inputs]
    engine = _engine(options)
    classifier = Classifier.load(options.classifier)
    settings = _with_options(cf.default_settings(engine.model), options)
    judge_spec = options.judge or ("embedded:judge" if options.model == EMBEDDED else None)
    judge = Classifier.load(judge_spec) if judge_spec else None
    part = Part(
        cf.TASK,
        cf.run_settings(engine.model, settings, classifier, judge, options.seed),
        len(inputs),
        lambda skip, tick: cf.counterfactuals(
            engine, inputs, classifier, settings=settings, judge=judge, seed=options.seed,
            skip=skip, on_progress=tick,
        ),
    )  # fmt: skip
    return run_parts([part], options.out, as_json=options.json)


def disagree(options: Namespace) -> int:
    """Disagreements of two classifiers."""
    engine = _engine(options)
    f, g = (_load_for_classes(spec, options.classes) for spec in (options.f, options.g))
    settings = _with_options(dis.default_settings(engine.model), options)
    if options.objective:
        settings = replace(settings, objective=options.objective)
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
    words = read_words(options.words) if options.words else default_words(options.model)
    dataset_inputs = collect(options.images)
    engine = _engine(options)
    classifier = _with_layer(Classifier.load(options.classifier), options.layer)
    wanted = [classifier.check_neuron(n) for n in options.neurons][: options.limit]
    dataset = [read_image(item, engine.model.image_size) for item in dataset_inputs]
    settings = _with_options(neu.default_settings(engine.model), options)
    settings = replace(settings, direction=options.direction)
    part = Part(
        neu.TASK,
        neu.run_settings(engine.model, settings, classifier, options.seed),
        len(dict.fromkeys(wanted)) * options.per_neuron,
        lambda skip, tick: neu.visualise_neurons(
            engine, classifier, wanted, words, dataset, images_per_neuron=options.per_neuron,
            settings=settings, seed=options.seed, skip=skip, on_progress=tick,
        ),
    )  # fmt: skip
    return run_parts([part], options.out, as_json=options.json)


def neuron_counterfactual(options: Namespace) -> int:
    """Counterfactuals of one neuron on the user's images."""
    inputs = _described_inputs(options)
    engine = _engine(options)
    classifier = _with_layer(Classifier.load(options.classifier), options.layer)
    neuron = classifier.check_neuron(options.neuron)
    embedded_model = options.model == EMBEDDED
    backgrounds = Classifier.load("embedded:background") if embedded_model else None
    settings = _with_options(ncf.default_settings(engine.model), options)
    part = Part(
        ncf.TASK,
        ncf.run_settings(engine.model, settings, classifier, backgrounds, options.seed),
        len(inputs),
        lambda skip, tick: ncf.neuron_counterfactuals(
            engine, inputs, classifier, neuron, options.direction, backgrounds=backgrounds,
            settings=settings, seed=options.seed, skip=skip, on_progress=tick,
        ),
    )  # fmt: skip
    return run_parts([part], options.out, as_json=options.json)


def info(options: Namespace) -> int:
    """Versions, devices, backends."""
    import diffusers
    import transformers

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

    Jobs that the folder already holds as done are not repeated.
    """
    stores = {part.task: ResultStore(out, part.task, part.settings) for part in parts}
    for part in parts:
        store = stores[part.task]
        done = {id for task, id in store.finished() if task == part.task}
        with tqdm(total=part.jobs, desc=part.task, unit="image", file=sys.stderr,
                  bar_format="{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
                  ) as bar:  # fmt: skip
            for explanation in part.run(done, bar.update):
                record = explanation.save(store)
                if as_json:
                    print(json.dumps(jsonable(record), ensure_ascii=False), flush=True)
                if explanation.status == "failed":
                    tqdm.write(f"failed: {explanation.id}: {record['error']}", file=sys.stderr)
            bar.update(bar.total - bar.n)
    report = write_report(out)
    records = next(iter(stores.values())).records()
    if not as_json:
        for task in stores:
            print_results(task, records)
            print()
        print(f"report: {report}")
    return 1 if any(r["status"] == "failed" and r["task"] in stores for r in records) else 0


def read_words(path: str) -> list[str]:
    """One word or phrase a line; empty lines are skipped."""
    try:
        words = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--words '{path}' cannot be read ({error}): give a text file") from None
    words = [word for word in words if word]
    if not words:
        raise UserError(f"--words '{path}' is empty: write one word a line")
    return words


def default_words(model: str) -> list[str]:
    """What the embedded model can draw; other models need the user's words."""
    if model != EMBEDDED:
        raise UserError("--words is needed with a model other than embedded: one word a line")
    from fastdigin.embedded import words

    return words()


def _engine(options: Namespace) -> Engine:
    return Engine(LatentDiffusion.load(options.model), slots=options.slots)


def _described_inputs(options: Namespace) -> list[ImageInput]:
    given = {k: v for k in ("source", "prompt") if (v := getattr(options, k)) is not None}
    return [replace(item, **given) for item in collect(options.images, options.limit)]


def _with_options(settings: Any, options: Namespace) -> Any:
    given = {k: v for k in ("steps", "iterations") if (v := getattr(options, k)) is not None}
    settings = replace(settings, optimisation=replace(settings.optimisation, **given))
    if getattr(options, "regulariser", None):
        regularisers = tuple(Regulariser.parse(text) for text in options.regulariser)
        settings = replace(settings, regularisers=regularisers)
    return settings


def _with_layer(classifier: Classifier, layer: str | None) -> Classifier:
    return classifier if layer is None else classifier.at_layer(layer)


def _load_for_classes(spec: str, classes: list[str]) -> Classifier:
    """A zero-shot classifier tells the named classes apart; others have their own."""
    return Classifier.load(spec, classes=classes if spec.startswith("clip:") else None)
