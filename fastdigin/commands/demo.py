"""fastdigin demo."""

import argparse

from fastdigin.commands.common_options import add_attention, add_device, add_run
from fastdigin.commands.options import count

DEMO_SLOTS = 8
"""Not planned: another number would change the last bits of the pictures in the README.

So would compiled steps, which are off.
"""


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """How many jobs, where they run and where they are kept."""
    parser.add_argument("--per-task", type=count, default=2, metavar="N", help="jobs (default 2)")
    add_run(parser, out="demo")
    add_attention(parser)
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """All four tasks on the embedded model."""
    from fastdigin.commands.run import run_command
    from fastdigin.commands.task import load_engine
    from fastdigin.demo import demo_tasks
    from fastdigin.models.diffusion import EMBEDDED

    engine = load_engine(
        EMBEDDED, slots=DEMO_SLOTS, attention=options.attention, compile="off",
        device=options.device, dtype=options.dtype,
    )  # fmt: skip
    return run_command(demo_tasks(engine, options.per_task, options.seed), options)
