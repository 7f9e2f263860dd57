"""fastdigin disagree."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

from fastdigin.commands.classifier_options import load_pair
from fastdigin.commands.parts import run_parts
from fastdigin.commands.task_options import (
    chosen_engine,
    with_options,
)
from fastdigin.tasks import disagreement as dis
from fastdigin.tasks.part import Part


def run(options: Namespace) -> int:
    """Disagreements of two classifiers."""
    engine = chosen_engine(options)
    f, g = load_pair(options.f, options.g, options)
    settings = with_options(dis.default_settings(engine.model), options)
    given = {name: getattr(options, name) for name in ("objective", "f_weight", "draws")}
    settings = replace(settings, **{name: v for name, v in given.items() if v is not None})
    classes = options.classes[: options.limit]
    part = Part(
        dis.TASK,
        dis.run_settings(engine.model, settings, f, g, options.seed),
        dis.job_ids(f, g, classes, options.seeds),
        lambda skip, tick: dis.disagreements(
            engine, f, g, classes, seeds=options.seeds, settings=settings, seed=options.seed,
            skip=skip, on_progress=tick,
        ),
    )  # fmt: skip
    return run_parts([part], options.out, as_json=options.json, shard=options.shard)
