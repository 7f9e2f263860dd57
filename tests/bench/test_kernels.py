"""fastdigin bench kernels: what it prints, and that it refuses wrong results."""

import argparse
import json

import pytest
import torch

from fastdigin_bench import command, kernel_cases, kernels

KEYS = {"model", "op", "shape", "dtype", "impl", "pass", "milliseconds", "gflops", "max_error",
        "fraction_of_matmul_peak", "ratio_vs_sdpa", "saved_megabytes", "refused"}  # fmt: skip


def find(op, model="embedded"):
    """The smallest case of an operation."""
    *_, case = kernel_cases.cases([model], [op], torch.device("cpu"), torch.float32)
    return case


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs the command; returns its exit code, the lines before the last and the last's content."""
    monkeypatch.setattr(kernels, "matmul_peak", lambda *args: 1e11)

    def run(*arguments):
        parser = argparse.ArgumentParser()
        command.add_benches(parser)
        options = parser.parse_args(
            ["kernels", "--seconds", "0", "--results", str(tmp_path), *arguments]
        )
        code = command.run(options)
        *lines, last = capsys.readouterr().out.splitlines()
        assert json.loads((tmp_path / "kernels.json").read_text()) == json.loads(last)
        return code, lines, json.loads(last)

    return run


def test_the_command_names_what_there_is():
    assert tuple(kernel_cases.MODELS) == command.KERNEL_MODELS


def test_a_row_for_every_implementation_and_pass(run):
    code, lines, found = run("--models", "embedded", "--ops", "geglu", "group-norm-silu")
    rows = found["rows"]
    assert code == 0 and len(lines) == 2 + len(rows)
    assert all(row.keys() >= KEYS and row["refused"] is None for row in rows)
    assert {row["op"] for row in rows} == {"geglu", "group-norm-silu"}
    assert {row["pass"] for row in rows} == {"forward", "backward", "both"}
    assert all(row["milliseconds"] > 0 and row["max_error"] < 1e-5 for row in rows)
    assert {row["ratio_vs_sdpa"] for row in rows if row["impl"] == "pytorch"} == {1.0}


def test_wrong_results_get_no_figure(run, monkeypatch):
    real = kernel_cases.geglu

    def wrong(x, impl):
        return real(x, impl=impl) * (1.001 if impl == "torch" else 1)

    monkeypatch.setattr(kernel_cases, "geglu", wrong)
    code, lines, found = run("--models", "embedded", "--ops", "geglu")
    assert code == 1
    for row in found["rows"]:
        assert (row["refused"] is not None) == (row["impl"] == "torch")
        assert (row["milliseconds"] is None) == (row["impl"] == "torch")
    assert any("refused" in line for line in lines)


@pytest.mark.parametrize("op", kernel_cases.OPS)
def test_every_implementation_is_as_exact_as_pytorchs(op):
    case = find(op)
    errors = kernels.errors_of(case, kernels.incoming(case))
    assert errors[case.baseline] and all(
        len(e) == len(errors[case.baseline]) for e in errors.values()
    )
    for impl, found in errors.items():
        assert max(found) < 1e-5, impl


def test_a_wrong_gradient_of_one_head_is_found():
    case = find("cross-attention")
    right = case.implementations["sdpa"]

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            grad = grad.clone()
            grad[-1, -1] *= 1.01
            return grad

    case.implementations["sdpa"] = lambda q, k, v: right(q, Wrong.apply(k), v)
    errors = kernels.errors_of(case, kernels.incoming(case))["sdpa"]
    assert [error > 1e-4 for error in errors] == [False, False, True, False]


def test_a_result_that_is_not_a_number_is_refused():
    assert kernels.refusal([float("inf")], [1e-6]) is not None
    assert kernels.refusal([float("nan")], [1e-6]) is not None
    assert kernels.refusal([2e-7], [1e-6]) is None
