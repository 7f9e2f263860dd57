"""fastdigin bench: its arguments, and what happens without the benches' package."""

import subprocess
import sys
from argparse import ArgumentParser
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastdigin import cli
from fastdigin_bench import command


def parse(*arguments):
    parser = ArgumentParser()
    command.add_benches(parser)
    return parser.parse_args(arguments)


def test_arguments_of_truth():
    found = parse("truth")
    assert (found.bench, found.out, found.jobs) == ("truth", Path("truth"), None)
    assert found.results is None and not found.verbose
    assert tuple(found.only) == command.TRUTH_PARTS
    found = parse("truth", "--out", "o", "--jobs", "2", "--results", "r", "--only", "neurons",
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


@pytest.mark.parametrize("name", command.BENCHES)
def test_results_that_cannot_be_kept_are_refused_at_once(name, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert cli.main(["bench", name, "--results", str(tmp_path / "file")]) == 2
    assert f"--results '{tmp_path / 'file'}'" in capsys.readouterr().err


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


WITHOUT_BENCHES = """
import sys

class NoBenches:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.startswith("fastdigin_bench"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoBenches)
from fastdigin import cli
"""


def test_a_missing_package_is_said():
    found = python(WITHOUT_BENCHES + "sys.exit(cli.main(['bench', 'truth']))")
    assert found.returncode == 2
    assert found.stderr.startswith("fastdigin bench: ") and "pip install ." in found.stderr
    assert python(WITHOUT_BENCHES + "cli.main(['--help'])").returncode == 0  # needs none


def test_help_does_not_wait_for_torch():
    result = python(
        "import sys; from fastdigin import cli\n"
        "try: cli.main(['bench', 'truth', '--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    assert result.returncode == 0, result.stderr
    for text in ("--out", "--jobs", "--only", "--results", *command.TRUTH_PARTS[-1:]):
        assert text in result.stdout.replace("\n", "")
