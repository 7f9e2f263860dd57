"""fastdigin bench."""

from __future__ import annotations

from argparse import Namespace


def run(options: Namespace) -> int:
    """One of the benches of fastdigin_bench."""
    from fastdigin_bench.command import run

    return run(options)
