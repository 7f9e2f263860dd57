"""How fast is each implementation of the engine's operations, and how exact?

    fastdigin bench kernels [--models embedded ...] [--ops geglu ...] [--steps sd-1.4 ...]

Forward, backward and both, at the shapes of the models' own layers. The implementations take turns,
and each figure is a median with its quartiles. An implementation whose results are further from
float64 than three times PyTorch's own gets no figure: its row says why. On a machine with a GPU the
same command measures that, in float16 and bfloat16. Then follow the share of each kind of operation
in a step of the U-Net, and iterations of the engine with PyTorch's attention and with our own.
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastdigin_bench.counters import SavedBytes
from fastdigin_bench.kernel_cases import MODELS, OPS, Case, cases
from fastdigin_bench.kernel_timing import keep_pages, matmul_peak, time_in_turns
from fastdigin_bench.output import conditions, finish, rows_table, say
from fastdigin_kernels.attention import unavailable

PASSES = {
    "forward": (slice(0, 1), slice(0, 1)),
    "backward": (slice(1, 2), slice(1, None)),
    "both": (slice(0, 2), slice(0, None)),
}
"""Pass -> its part of a case's FLOPs and bytes (forward, backward), and of the errors."""


def run(options: Namespace) -> int:
    """Prints the table and the last line; 1 if an implementation was refused, else 0."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = options.dtype or (["float32"] if device.type == "cpu" else ["float16", "bfloat16"])
    device_name = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
    rows, peaks = [], {}
    keep_pages()
    for name in names:
        dtype = getattr(torch, name)
        peaks[name] = matmul_peak(device, dtype)
        say(f"matrix products in {name}: {peaks[name] / 1e9:.0f} GFLOP/s")
        for case in cases(options.models or tuple(MODELS), options.ops or OPS, device, dtype):
            found = measure(case, options.seconds, peaks[name])
            rows += found
            say(f"{case.op} {case.shape}: {_summary(found)}")
    print(rows_table(rows, _COLUMNS))
    whole = {} if options.steps is None else _whole_steps(options.steps, device)
    results = {
        "conditions": conditions() | {"device": device_name},
        "matmul_gflops": {name: round(peak / 1e9, 1) for name, peak in peaks.items()},
        **whole,
        "rows": rows,
    }
    finish(options.results / "kernels.json", results)
    return 1 if any(row["refused"] for row in rows) else 0


def _whole_steps(names: Sequence[str], device: torch.device) -> dict:
    """Shares of a step, and the engine's iterations where the CPU has kernels of its own."""
    from fastdigin_bench.kernel_steps import engine_ratio, step_shares

    found: dict = {"step_shares": {}}
    for name in names:
        for impl in ("sdpa", "auto"):
            found["step_shares"][f"{name}, {impl}"] = shares = step_shares(name, impl)
            print(f"step of {name}, attention {impl}: {shares}")
    if device.type == "cpu" and unavailable("cpp", device, torch.float32, 24) is None:
        found["engine"] = engine_ratio(["sdpa", "cpp", "auto"])
        print(f"engine, seconds an iteration: {found['engine']}")
    return found


def measure(case: Case, seconds: float, peak: float) -> list[dict]:
    """One row for each implementation and pass.

    seconds: to measure one pass for, beyond the least number of rounds. peak: of matrix products,
    in floating-point operations a second.
    """
    grad = incoming(case)
    errors = errors_of(case, grad)
    # Three times PyTorch's own error; a millionth always, where PyTorch is exact by luck.
    allowed = [3 * error + 1e-6 for error in errors[case.baseline]]
    refusals = {impl: refusal(found, allowed) for impl, found in errors.items()}
    saved = {impl: saved_megabytes(case, impl) for impl in case.implementations}
    rows = []
    for one, (parts, errors_of_pass) in PASSES.items():
        agreeing = [impl for impl, refused in refusals.items() if refused is None]
        runs = {impl: _pass(case, impl, one, grad) for impl in agreeing}
        taken = time_in_turns(runs, seconds, case.variables[0].device)
        runs.clear()
        for impl in case.implementations:
            row = {
                "model": case.model,
                "op": case.op,
                "shape": case.shape,
                "dtype": str(case.variables[0].dtype)[6:],
                "impl": impl,
                "pass": one,
                "max_error": max(errors[impl][errors_of_pass]),
                "refused": refusals[impl],
                "saved_megabytes": saved[impl],
            }
            rows.append(row | _figures(case, parts, taken.get(impl), taken[case.baseline], peak))
    return rows


def _figures(case: Case, parts: slice, samples, baseline, peak: float) -> dict:
    """Milliseconds, rates and the ratio to PyTorch's own; None without samples."""
    names = ("milliseconds", "milliseconds_quartiles", "gflops", "fraction_of_matmul_peak",
             "gigabytes_per_second", "ratio_vs_sdpa")  # fmt: skip
    if samples is None:
        return dict.fromkeys(names)
    median = statistics.median(samples)
    flops = case.flops and sum(case.flops[parts])
    low, _, high = statistics.quantiles(samples, n=4)
    values = (
        round(1e3 * median, 4),
        [round(1e3 * low, 4), round(1e3 * high, 4)],
        flops and round(flops / median / 1e9, 1),
        flops and round(flops / median / peak, 3),
        round(sum(case.bytes[parts]) / median / 1e9, 2),
        round(statistics.median(b / s for b, s in zip(baseline, samples, strict=True)), 3),
    )
    return dict(zip(names, values, strict=True))


def errors_of(case: Case, grad: Tensor) -> dict[str, list[float]]:
    """implementation -> error of the output, then of each gradient, against float64.

    The largest of all elements, over the largest magnitude of the true result.
    """
    results = {
        impl: _results(function, case.variables, grad)
        for impl, function in case.implementations.items()
    }
    count = len(results[case.baseline])
    errors = {impl: [0.0] * count for impl in results}
    largest = [0.0] * count
    parts = [case.pieces([*case.variables, grad]), *map(case.pieces, results.values())]
    for (*variables, part_grad), *found in zip(*parts, strict=True):
        exact = [
            part.detach().double().requires_grad_(whole.requires_grad)
            for part, whole in zip(variables, case.variables, strict=True)
        ]
        for i, truth in enumerate(_results(case.truth, exact, part_grad.double())):
            largest[i] = max(largest[i], truth.abs().max().item())
            for impl, result in zip(results, found, strict=True):
                error = (result[i].double() - truth).abs().max().item()
                errors[impl][i] = max(errors[impl][i], error if error == error else float("inf"))
    return {impl: [e / m for e, m in zip(found, largest, strict=True)]
            for impl, found in errors.items()}  # fmt: skip


def _results(function: Callable, variables: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """The output and the gradients of the variables that want one."""
    output = function(*variables)
    return [output.detach(), *torch.autograd.grad(output, _wanted(variables), grad)]


def refusal(errors: Sequence[float], allowed: Sequence[float]) -> str | None:
    """Why results with these errors get no figure, or None."""
    wrong = [(e, a) for e, a in zip(errors, allowed, strict=True) if not e <= a]
    return f"its error is {wrong[0][0]:.1e}, allowed are {wrong[0][1]:.1e}" if wrong else None


def _pass(case: Case, impl: str, one: str, grad: Tensor) -> Callable[[], object]:
    function, wanted = case.implementations[impl], _wanted(case.variables)
    if one == "forward":
        forward = torch.no_grad()(function)
        return lambda: forward(*case.variables)
    if one == "backward":
        output = function(*case.variables)
        return lambda: torch.autograd.grad(output, wanted, grad, retain_graph=True)
    return lambda: torch.autograd.grad(function(*case.variables), wanted, grad)


def saved_megabytes(case: Case, impl: str) -> float:
    """What the forward keeps for the backward beyond the variables themselves."""
    saved = SavedBytes(case.variables)
    with saved:
        case.implementations[impl](*case.variables)
    return round(saved.total / 1e6, 3)


def incoming(case: Case) -> Tensor:
    """A gradient of the output, laid out as that is."""
    with torch.no_grad():
        output = case.implementations[case.baseline](*case.variables)
    generator = torch.Generator().manual_seed(7)
    return torch.empty_like(output).copy_(torch.randn(output.shape, generator=generator))


def _wanted(variables: Sequence[Tensor]) -> list[Tensor]:
    return [x for x in variables if x.requires_grad]


def _rate(key: str, form: str) -> Callable[[dict], str]:
    """A column of figures, empty where there are none."""
    return lambda row: form.format(row[key]) if row[key] else ""


_COLUMNS = {
    "operation": "op",
    "shape": "shape",
    "dtype": "dtype",
    "impl": "impl",
    "pass": "pass",
    "ms": lambda row: "refused" if row["refused"] else f"{row['milliseconds']:.3g}",
    "quartiles": lambda row: "-".join(f"{ms:.3g}" for ms in row["milliseconds_quartiles"] or ()),
    "GFLOP/s": _rate("gflops", "{:.0f}"),
    "of peak": _rate("fraction_of_matmul_peak", "{:.2f}"),
    "GB/s": _rate("gigabytes_per_second", "{:.1f}"),
    "vs PyTorch": _rate("ratio_vs_sdpa", "{:.2f}x"),
    "saved MB": _rate("saved_megabytes", "{:.2f}"),
    "error": _rate("max_error", "{:.1e}"),
}


def _summary(rows: Sequence[dict]) -> str:
    both = [row for row in rows if row["pass"] == "both"]
    return ", ".join(
        f"{row['impl']} " + (row["refused"] or f"{row['milliseconds']:.3g} ms") for row in both
    )
