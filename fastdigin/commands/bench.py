"""fastdigin bench: the benches describe their arguments themselves."""

import argparse

from fastdigin.errors import UserError


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """Those of the package fastdigin_bench, which no other command imports."""
    try:
        from fastdigin_bench.command import add_benches
    except ModuleNotFoundError as error:
        if error.name != "fastdigin_bench":
            raise
        raise UserError(
            "the package fastdigin_bench is not installed: run 'pip install .' in a checkout of "
            "fastdigin, which holds it in bench/"
        ) from None
    add_benches(parser)


def run(options: argparse.Namespace) -> int:
    """One of the benches."""
    from fastdigin_bench.command import run

    return run(options)
