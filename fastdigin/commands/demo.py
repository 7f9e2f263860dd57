"""fastdigin demo."""

from __future__ import annotations

from argparse import Namespace

from fastdigin.commands.parts import run_parts
from fastdigin.commands.task_options import load_engine
from fastdigin.demo import demo_parts
from fastdigin.models.diffusion import EMBEDDED

DEMO_SLOTS = 8
"""Not planned: another number would change the last bits of the pictures in the README.

So would compiled steps, which are off.
"""


def run(options: Namespace) -> int:
    """All four tasks on the embedded model."""
    engine = load_engine(EMBEDDED, slots=DEMO_SLOTS, attention=options.attention, compile="off")
    parts = demo_parts(engine, options.per_task, options.seed)
    return run_parts(parts, options.out, as_json=options.json, shard=options.shard)
