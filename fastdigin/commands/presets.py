"""fastdigin presets."""

import argparse
import json
from dataclasses import asdict

from fastdigin.presets import algorithm_names, any_preset, list_presets, preset_names


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """The name of one."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this one (default: list)")


def run(options: argparse.Namespace) -> int:
    """What presets there are, or what one of them sets."""
    names = [options.name] if options.name else preset_names() + algorithm_names()
    if options.json:
        for name in names:
            print(json.dumps(asdict(any_preset(name))))
    else:
        print(any_preset(options.name).describe() if options.name else list_presets())
    return 0
