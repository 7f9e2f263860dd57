"""What all benches share of their output."""

import json

import pytest

from fastdigin.errors import UserError
from fastdigin_bench import output


def test_conditions_are_plain_and_the_same_every_time():
    found = output.conditions()
    assert found.keys() == {"torch", "threads", "machine", "cpu"}
    assert json.loads(json.dumps(found)) == output.conditions()


def test_results_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert output.results_folder(None) == output.OTHER_RESULTS
    assert output.OTHER_RESULTS.is_dir()
    output.CHECKOUT_RESULTS.mkdir(parents=True)
    assert output.results_folder(None) == output.CHECKOUT_RESULTS
    assert output.results_folder(tmp_path / "a" / "b").is_dir()


def test_a_file_is_no_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UserError, match=f"--out '{file}'.*name one"):
        output.make_folder(file, "--out")


def test_json_files(tmp_path):
    path = tmp_path / "truth.json"
    assert output.read_json(path) == {}
    output.write_json(path, {"a": [1, None]})
    assert output.read_json(path) == {"a": [1, None]}
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(UserError, match="delete it"):
            output.read_json(path)


def test_the_last_line_is_one_line(capsys):
    output.print_last_line({"a": "x\ny"})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"a": "x\ny"}
