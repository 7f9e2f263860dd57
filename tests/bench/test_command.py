"""fastdigin bench: its arguments, and what happens without the benches' package."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from fastdigin import cli
from fastdigin_bench import command


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
