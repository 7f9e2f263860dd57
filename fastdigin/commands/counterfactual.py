"""fastdigin counterfactual."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

from fastdigin.commands.classifier_options import load_classifier
from fastdigin.commands.parts import run_parts
from fastdigin.commands.photo_options import load_photo_tools, with_captions
from fastdigin.commands.task_options import (
    chosen_engine,
    described_inputs,
    with_options,
)
from fastdigin.engine.job import EarlyStop
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.tasks import counterfactual as cf
from fastdigin.tasks.part import Part


def run(options: Namespace) -> int:
    """Counterfactuals of the user's images."""
    inputs = with_captions(options, described_inputs(options, target=options.target))
    engine = chosen_engine(options)
    classifier = load_classifier(options.classifier, options)
    settings = with_options(cf.default_settings(engine.model), options)
    if options.stop_at is not None:
        stop = EarlyStop(above=options.stop_at, of=cf.CONFIDENCE, held_for=3)
        settings = replace(settings, optimisation=replace(settings.optimisation, early_stop=stop))
    judge_spec = options.judge or ("embedded:judge" if options.model == EMBEDDED else None)
    judge = load_classifier(judge_spec, options, classifier.classes) if judge_spec else None
    tools = load_photo_tools(options, engine.model)
    ids = cf.job_ids(inputs, classifier)
    part = Part(
        cf.TASK,
        cf.run_settings(engine.model, settings, classifier, judge, options.seed, tools),
        ids,
        lambda skip, tick: cf.counterfactuals(
            engine, inputs, classifier, settings=settings, judge=judge, seed=options.seed,
            tools=tools, skip=skip, on_progress=tick,
        ),
        dict(zip(ids, inputs, strict=True)),
    )  # fmt: skip
    return run_parts([part], options.out, as_json=options.json, shard=options.shard)
