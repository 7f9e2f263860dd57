"""The command line: what each command prints and writes."""

import json
import subprocess
import sys

from cli_commands import (
    CF,
    DISAGREE,
    NCF,
    NEURONS,
    PHOTO,
    QUICK,
    TARGET,
    check_record,
    records,
    run,
)

from fastdigin import embedded


def test_counterfactual(tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*CF, "embedded:pairs", "--limit", 2, "--seed", 7, "--json", "--out", out,
               "--slots", 2, *QUICK) == 0  # fmt: skip
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    written = records(out)
    assert printed == written and len(written) == 2
    for record, pair in zip(written, embedded.pairs(), strict=False):
        check_record(record, out)
        assert (record["source"], record["target"]) == (pair.source, pair.target)
        assert record["judge_prediction"] in embedded.GARMENTS
        assert record["seed"] == 7 and record["iterations"] == 1
        assert 0 <= record["target_confidence_before"] <= 1
    assert (out / "report.html").stat().st_size > 10_000


def test_options_of_a_counterfactual(tmp_path, capsys):
    out = tmp_path / "out"
    prompt = f"photo of the {PHOTO.garment} on grass"
    target, source = (embedded.GARMENTS.index(name) for name in (TARGET, PHOTO.garment))
    assert run(*CF, PHOTO.path, "--target", target, "--source", source, "--prompt", prompt,
               "--judge", "embedded:robust", "--regulariser", "pixels-l1:all:0.5",
               "--stop-at", "1e-9", "--no-stop-settled", "--memory", "2GiB", "--slots", 1,
               "--out", out, "--steps", 2, "--iterations", 5) == 0  # fmt: skip
    (record,) = records(out)
    # Whatever the image, its confidence is above a hair three times at the third evaluation.
    assert record["iterations"] == 2
    assert record["target"] == TARGET and record["source"] == PHOTO.garment
    assert record["prompt"] == prompt
    assert record["edited_prompt"] == f"photo of the {TARGET} on grass"
    settings = json.loads((out / "run.json").read_text())["counterfactual"]
    assert settings["judge"] == "embedded:robust" and settings["stop_at"] == 1e-9
    assert [r["kind"] for r in settings["regularisers"]] == ["pixels-l1"]
    captured = capsys.readouterr()
    assert "report:" in captured.out and PHOTO.id in captured.out
    assert "image/s" in captured.err or "s/image" in captured.err
    assert "Loading" not in captured.err


def test_disagree(tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*DISAGREE, "--classes", "sneaker, 6,bag", "--seeds", 2, "--objective", "conf",
               "--f-weight", 1.5, "--json", "--out", out, *QUICK) == 0  # fmt: skip
    written = records(out)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == written
    assert [r["class"] for r in written] == ["sneaker", "sneaker", "bag", "bag"]  # 6 is bag
    assert len({r["id"] for r in written}) == 4
    assert len({r["seed"] for r in written[:2]}) == 2
    for record in written:
        check_record(record, out)
    settings = json.loads((out / "run.json").read_text())["disagreement"]
    assert (settings["objective"], settings["f_weight"], settings["draws"]) == ("conf", 1.5, 2)
    assert (out / "report.html").exists()


def test_neurons(tmp_path, words, capsys):
    out = tmp_path / "out"
    assert run(*NEURONS, "--neurons", "76,3, 076,9", "--limit", 2, "--words", words, "--per-neuron",
               2, "--direction", "min", "--images", PHOTO.path, "--json", "--out", out,
               *QUICK) == 0  # fmt: skip
    written = records(out)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == written
    assert [r["neuron"] for r in written] == [76, 76, 3, 3]
    for record in written:
        check_record(record, out)
        assert record["word"] in ("sneaker on grass", "bag") and record["direction"] == "min"


def test_neurons_of_another_layer(tmp_path, words):
    from fastdigin.models.classifier import Classifier

    network = Classifier.load("embedded:spurious").network
    layer = next(name for name, m in network.named_modules() if type(m).__name__ == "Conv2d")
    common = [*NEURONS, "--neurons", 0, "--words", words, "--out", tmp_path / "out", *QUICK]
    assert run(*common, "--layer", layer) == 0
    (record,) = records(tmp_path / "out")
    assert record["max_other_activation"] is None and record["dataset_max_activation"] > 0
    assert run(*common) == 2  # the same folder does not take another layer's neurons


def test_neuron_counterfactual(tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*NCF, "embedded:photos", "--neuron", 76, "--direction", "min", "--limit", 2,
               "--json", "--out", out, *QUICK) == 0  # fmt: skip
    written = records(out)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == written
    assert len(written) == 2
    for record in written:
        check_record(record, out)
        assert record["neuron"] == 76 and record["direction"] == "min"
        assert {record["background_before"], record["background_after"]} <= {*embedded.BACKGROUNDS}
        assert 0 <= record["class_confidence"] <= 1


def test_info(capsys):
    assert run("info", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"fastdigin", "python", "torch", "devices", "attention"} <= facts.keys()
    assert "embedded:clean" in facts["embedded classifiers"]
    assert run("info") == 0
    assert facts["torch"] in capsys.readouterr().out


def test_the_list_of_commands_does_not_wait_for_torch():
    """A task's own --help does: its options are made of its settings."""
    code = (
        "import sys; from fastdigin import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for command in ("counterfactual", "disagree", "neurons", "neuron-counterfactual", "demo"):
        assert command in result.stdout


def test_help_of_a_task_names_its_inputs_and_its_settings(capsys):
    assert run("counterfactual", "--help") == 0
    shown = capsys.readouterr().out
    for option in ("--classifier", "--target", "--source", "--prompt", "--out", "--limit",
                   "--learning-rate", "--injection-fractions", "--cutouts-count"):  # fmt: skip
        assert option in shown
    assert "--optimisation" not in shown and "--early-stop" not in shown


def test_options_name_what_there_is():
    """They are lists of their own, since what they name takes seconds to import."""
    from typing import get_args, get_type_hints

    from fastdigin.commands.common_options import ATTENTION, COMPILE
    from fastdigin.engine.engine import Engine
    from fastdigin_kernels.attention import IMPLEMENTATIONS

    assert ATTENTION == IMPLEMENTATIONS
    assert get_args(get_type_hints(Engine.__init__)["compile"]) == COMPILE
