"""The command of any task: its options, made of its inputs and settings, and its run."""

import argparse
from collections.abc import Sequence

import diffusers
import transformers

from fastdigin import tasks
from fastdigin.commands.common_options import add_device, add_engine, add_run
from fastdigin.commands.dry_run import run_dry
from fastdigin.commands.inputs import Loading, add_inputs
from fastdigin.commands.options import add_settings, chosen_settings, count
from fastdigin.commands.ray import run_on_ray
from fastdigin.commands.run import run_command
from fastdigin.engine.engine import Engine
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.models.precision import choose_device
from fastdigin.presets import algorithm_names, load_algorithm
from fastdigin.tasks.task import Task


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """All options of a task's command."""
    task = tasks.find(command)
    add_inputs(parser.add_argument_group("inputs"), task)
    group = parser.add_argument_group(
        "settings", "The packaged model has other defaults (fastdigin.tasks)."
    )
    add_settings(group, task.settings_type)
    run = parser.add_argument_group("run")
    add_run(run, out=f"{command}s" if not command.endswith("s") else command)
    run.add_argument(
        "--dry-run", action="store_true",
        help="say what would be done, how long it takes and what is missing; write nothing",
    )  # fmt: skip
    run.add_argument("--limit", type=count, metavar="N", help="only the first N inputs")
    run.add_argument(
        "--preset", metavar="NAME", action="append", default=[],
        help="options of one experiment, and fast or exact; --preset list names them all",
    )  # fmt: skip
    run.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS",
        help="run on the Ray cluster at ADDRESS (default: that of RAY_ADDRESS or `ray start`, or "
        "else one of this machine's own); --workers is the number of its actors (default: one per "
        "GPU, or per core where there is none)",
    )  # fmt: skip
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--model", default="embedded", metavar="MODEL",
        help="embedded, a hub id or a local diffusers folder (default embedded)",
    )  # fmt: skip
    engine.add_argument(
        "--lora", metavar="PATH[:SCALE]", action="append", default=[],
        help="LoRA weights that are added to the model's, a safetensors file or a hub id; may be "
        "given several times",
    )  # fmt: skip
    add_engine(engine)
    add_device(engine)


def run(options: argparse.Namespace) -> int:
    """Runs the task into its folder."""
    if options.dry_run:
        return run_dry(options, chosen_task)
    if options.ray is not None:
        return run_on_ray(options, chosen_task)
    return run_command([chosen_task(options)], options)


def chosen_task(options: argparse.Namespace) -> Task:
    """The task of the command."""
    return load_task(tasks.find(options.command), options)


def load_task(task: type[Task], options: argparse.Namespace) -> Task:
    """The task with all that its options name."""
    given = ("memory", "slots", "attention", "compile", "device", "dtype", "lora", "deterministic")
    chosen = {name: getattr(options, name) for name in given}
    loading = Loading(task, options, lambda: load_engine(options.model, **chosen))
    values = loading.all()
    settings = task.default_settings(loading.engine.model)
    for name in options.preset:
        if name in algorithm_names():
            settings = load_algorithm(name).of(settings, task.name)
    settings = chosen_settings(options, settings)
    return task(engine=loading.engine, settings=settings, seed=options.seed, **values)


def load_engine(
    model: str,
    memory: str = "auto",
    slots: int | None = None,
    attention: str = "auto",
    compile: str = "auto",
    device: str | None = None,
    dtype: str = "auto",
    lora: Sequence[str] = (),
    deterministic: bool = False,
) -> Engine:
    """An engine around what ``LatentDiffusion.from_pretrained`` finds under that name."""
    diffusers.utils.logging.disable_progress_bar()  # of loading: it takes a second
    transformers.utils.logging.disable_progress_bar()
    if deterministic and attention == "auto" and choose_device(device).type == "cpu":
        attention = "sdpa"  # on CPUs the implementations are timed all the same
    loaded = LatentDiffusion.from_pretrained(
        model, device=device, dtype=dtype, attention=attention, lora=lora
    )
    return Engine(loaded, memory=memory, slots=slots, compile=compile, deterministic=deterministic)
