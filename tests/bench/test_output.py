"""What all benches share: their output, and work in fresh processes."""

import json
import os

import pytest

from fastdigin.errors import UserError
from fastdigin_bench import output
from fastdigin_bench.plots import Panel, plot
from fastdigin_bench.processes import in_processes


def test_results_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert output.results_folder(None) == output.OTHER_RESULTS
    assert output.OTHER_RESULTS.is_dir()
    output.CHECKOUT_RESULTS.mkdir(parents=True)
    assert output.results_folder(None) == output.CHECKOUT_RESULTS
    assert output.results_folder(tmp_path / "a" / "b").is_dir()


def test_the_last_line_is_the_file(tmp_path, capsys):
    path = tmp_path / "x.json"
    assert output.read_json(path) == {}
    output.finish(path, {"a": "x\ny", "b": [1, None]})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == output.read_json(path) == {"a": "x\ny", "b": [1, None]}
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(UserError, match="delete it"):
            output.read_json(path)


def test_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    series = {"one": [(1, 2), (2, 3)], "two": [(1, 1), (3, 1)]}
    plot(tmp_path / "plot.png", [Panel("left", "x", "y", series), Panel("right", "x", "y", series)])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_fresh_processes():
    """Each has the variables it was given, and this process keeps its own."""
    before = dict(os.environ)
    names = [("OMP_NUM_THREADS",), ("PATH",)]
    assert in_processes(os.getenv, names, OMP_NUM_THREADS="1") == ["1", os.environ["PATH"]]
    assert len({os.getpid(), *in_processes(os.getpid, [(), ()])}) == 3
    assert dict(os.environ) == before
    with pytest.raises(ValueError, match="invalid literal"):
        in_processes(int, [("x",)])
