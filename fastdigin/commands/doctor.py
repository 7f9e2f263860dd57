"""fastdigin doctor: its options, and what it prints."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from fastdigin.commands.classifier_options import CLASSIFIER_HELP
from fastdigin.presets import load_preset


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """What a run would name."""
    parser.add_argument("--preset", metavar="NAME", help="look for what this preset names")
    parser.add_argument("--model", metavar="MODEL", help="embedded, a hub id or a folder")
    parser.add_argument(
        "--classifier", action="append", default=[], metavar="C",
        help="may be given several times; " + CLASSIFIER_HELP,
    )  # fmt: skip
    parser.add_argument("--segmenter", metavar="S", help="hq-sam:KIND")
    parser.add_argument("--captions", metavar="ID", help="an image-to-text model of transformers")


def run(options: argparse.Namespace) -> int:
    """Prints what is here, what is missing, what it takes and what to do; 1 if all is not here."""
    from fastdigin.doctor import machine
    from fastdigin.doctor.needs import check_needs

    wanted = _wanted(options)
    needs = check_needs(wanted)
    devices = machine.devices()
    report: dict[str, Any] = {
        "packages": machine.packages(),
        "extras": machine.extras(),
        "devices": devices,
        "caches": machine.caches(),
        "preset": options.preset,
        "needs": [asdict(need) for need in needs],
        "memory": _estimate(wanted.get("model"), devices[0]),
        "commands": list(dict.fromkeys(need.command for need in needs if need.command)),
    }
    if options.json:
        print(json.dumps(report))
    else:
        from fastdigin.report.console import print_text

        print_text("\n".join(_lines(report)))
    return 0 if all(need.status == "here" for need in needs) else 1


def _wanted(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the preset, where nothing else is given."""
    wanted = dict(load_preset(options.preset).options) if options.preset else {}
    given = {
        name: getattr(options, name) for name in ("model", "classifier", "segmenter", "captions")
    }
    return wanted | {name: value for name, value in given.items() if value}


def _estimate(model: str | None, device: dict[str, Any]) -> dict[str, Any] | None:
    from fastdigin.doctor.memory import estimate

    if model is None:
        return None
    print(f"counting the memory of {model} ...", file=sys.stderr)
    return estimate(model, device)


def _lines(report: dict[str, Any]) -> list[str]:
    return [
        "packages", *_packages(report), "", "devices", *_devices(report), "", "caches",
        *_caches(report), *_needs(report), *_memory(report), *_commands(report),
    ]  # fmt: skip


def _packages(report: dict[str, Any]) -> list[str]:
    lines = ["  " + ", ".join(f"{n} {v or 'MISSING'}" for n, v in report["packages"].items())]
    for extra, packages in report["extras"].items():
        absent = [name for name, version in packages.items() if version is None]
        here = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        state = f"not installed ({', '.join(absent)})" if absent else here
        lines.append(f"  [{extra}] {state}")
    return lines


def _devices(report: dict[str, Any]) -> list[str]:
    return [
        f"  {d['kind']}: {d['name']}, {_gib(d['free'])} of {_gib(d['total'])} free"
        for d in report["devices"]
    ]


def _caches(report: dict[str, Any]) -> list[str]:
    lines = []
    for kind in ("hub", "torch", "fastdigin"):
        cache = report["caches"][kind]
        lines.append(f"  {kind}: {cache['folder']}, {_gib(cache['free'])} of disk left")
        lines += [f"    {name}  {_gib(size)}" for name, size in cache["holds"].items()]
    if report["caches"]["offline"]:
        lines.append("  HF_HUB_OFFLINE is set: nothing is fetched")
    return lines


def _needs(report: dict[str, Any]) -> list[str]:
    if not report["needs"]:
        return []
    lines = ["", f"needed by {report['preset'] or 'the options'}"]
    for need in report["needs"]:
        lines.append(f"  {need['status']:<8}--{need['option']} {need['name']}")
        if need["status"] == "wrong":
            lines.append(f"          {need['problem']}")
    if report["preset"]:
        lines.append(f"  usage: {load_preset(report['preset']).usage}")
    return lines


def _memory(report: dict[str, Any]) -> list[str]:
    found = report["memory"]
    if found is None:
        return []
    fits = f"about {found['slots']} at a time fit" if found["slots"] else "NOT ENOUGH"
    return [
        "",
        f"memory of {found['model']} at {found['side']} px, {found['dtype']}, 20 guided steps",
        f"  weights {_gib(found['weights'])}, each image {_gib(found['slot'])}, decoding "
        f"{_gib(found['decoder'])}: at least {_gib(found['least'])}, without the classifier",
        f"  on {found['device']}: {fits}",
    ]


def _commands(report: dict[str, Any]) -> list[str]:
    if not report["needs"]:
        return ["", "name a --preset, --model or --classifier to hear what it needs"]
    if not report["commands"]:
        wrong = any(need["status"] == "wrong" for need in report["needs"])
        return [] if wrong else ["", "nothing is missing"]
    lines = ["", "to do, where there is a connection", *(f"  {c}" for c in report["commands"])]
    if any(command.startswith("hf ") for command in report["commands"]):
        folder = report["caches"]["hub"]["folder"]
        lines.append(f"  (or carry {folder} over from a machine that has it)")
    return lines


def _gib(size: float | None) -> str:
    if size is None:
        return "?"
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"
