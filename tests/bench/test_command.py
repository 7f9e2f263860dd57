"""fastdigin bench: its arguments, and what happens without the benches' package."""

import argparse
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastdigin import cli
from fastdigin_bench import command


@pytest.fixture
def options():
    def parse(*arguments):
        parser = argparse.ArgumentParser()
        command.add_benches(parser)
        return parser.parse_args(arguments)

    return parse


def test_defaults_of_truth(options):
    found = options("truth")
    assert (found.bench, found.out, found.jobs) == ("truth", Path("truth"), None)
    assert found.results is None and not found.verbose
    assert tuple(found.only) == command.TRUTH_PARTS


def test_arguments_of_truth(options):
    found = options("truth", "--out", "o", "--jobs", "2", "--results", "r", "--only", "neurons",
                    "world")  # fmt: skip
    assert (found.out, found.jobs, found.results) == (Path("o"), 2, Path("r"))
    assert found.only == ["neurons", "world"]


@pytest.mark.parametrize(
    "arguments",
    [[], ["beauty"], ["truth", "--jobs", "0"], ["truth", "--only", "moon"], ["truth", "--only"]],
)
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *arguments])
    assert stop.value.code == 2
    assert "usage: fastdigin bench" in capsys.readouterr().err


@pytest.mark.parametrize("name", command.BENCHES)
def test_every_bench_has_a_module(name):
    assert find_spec(f"fastdigin_bench.{name}")


class _NoBenches:
    """Finds no fastdigin_bench, wherever it may be installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.startswith("fastdigin_bench"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_missing_package_is_said(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("fastdigin_bench")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_NoBenches, *sys.meta_path])
    assert cli.main(["bench", "truth"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastdigin bench: ") and "pip install ." in error
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])  # which does not need it
    assert stop.value.code == 0


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from fastdigin import cli\n"
        "try: cli.main(['bench', 'truth', '--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for text in ("--out", "--jobs", "--only", "--results", *command.TRUTH_PARTS[-1:]):
        assert text in result.stdout.replace("\n", "")
