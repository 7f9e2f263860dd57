"""What every implementation of every operation promises (kernels/README.md), each at its cases.

The truth is the definition in fp64; what may be lost is measured by what PyTorch's own operations
lose in the same precision.
"""

import random

import pytest
import torch
from gradients import Called, assert_all_ways_agree, kept_tensors, output_and_gradient, probe
from kernel_operations import (
    DTYPES,
    INTERPRETED,
    NORM_ALONE,
    OPERATIONS,
    cast,
    device_of,
    marks,
    pairs,
)

from fastdigin_kernels.common import native
from fastdigin_kernels.common.registry import BackendError

OURS = ("cpp", "triton")
FLOAT32_EPS = torch.finfo(torch.float32).eps


CHANGES = {
    "contiguous": lambda x: x.contiguous(),
    "transposed": lambda x: x.transpose(-2, -1).contiguous().transpose(-2, -1),
    "a part": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "an odd offset": lambda x: torch.nn.functional.pad(x, (1, 2))[..., 1:-2],
    "one sample for all": lambda x: x[:1].expand(x.shape),  # where all samples are the same
}


@pytest.fixture(autouse=True)
def features(request):
    """Restricts the C++ library to portable code where the implementation says so."""
    portable = "cpp portable" in request.node.name
    if portable:
        native.load().fastdigin_limit_features(0)
    yield
    if portable:
        native.load().fastdigin_limit_features(2**32 - 1)


@pytest.fixture
def poisoned():
    """Every uninitialised tensor is NaN: what a kernel leaves out shows."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(2, 2).new_empty_strided((2, 2), (1, 2)).isnan().all()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = filled


def random_like(output):
    """An incoming gradient: equal numbers would hide which of them is read."""
    generator = torch.Generator().manual_seed(11)
    return torch.empty_like(output).copy_(torch.randn(output.shape, generator=generator))


def layouts(x) -> list[bool]:
    """In which of both memory formats an image is contiguous."""
    formats = (torch.contiguous_format, torch.channels_last)[: 2 if x.ndim == 4 else 1]
    return [x.is_contiguous(memory_format=each) for each in formats]


def excess(actual, rival, truth, rounds=1) -> float:
    """Error over the allowed one, at most 1: root mean square, and largest.

    Allowed are twice and four times that of the rival, or ``rounds`` times as much; and always a
    quarter of an ulp of the largest value, where the rival is exact by luck, and sixteen roundings
    in fp32 of numbers near 1, which the inputs are: where the terms of a sum cancel, both errors
    are nothing else.
    """
    truth = truth.double()
    always = torch.finfo(actual.dtype).eps * truth.abs().max() / 4 + 16 * FLOAT32_EPS
    error, of_rival = ((x.double() - truth).abs() for x in (actual, rival))
    mean = error.square().mean().sqrt() / (2 * rounds * of_rival.square().mean().sqrt() + always)
    worst = error.max() / (4 * rounds * of_rival.max() + 4 * always)
    return float(torch.maximum(mean, worst))


def check_errors(operation, impl, case, dtype):
    inputs = operation.inputs(case, dtype, device_of(impl))
    actual = operation.results(impl, inputs)
    truth = operation.results("reference", cast(inputs, torch.float64))
    # PyTorch's own are not held against themselves.
    rival = operation.results("pytorch" if impl.split()[0] in OURS else "reference", inputs)
    for i, result in enumerate(zip(actual, rival, truth, strict=True)):
        assert result[0].dtype == dtype
        over = excess(*result, operation.rounds)
        assert over <= 1, f"result {i} of {case} in {dtype}: {over:.2f}"


@pytest.mark.parametrize(("name", "impl"), pairs(portable=True))
def test_errors_are_a_small_multiple_of_pytorchs(name, impl, poisoned):
    for i, case in enumerate(OPERATIONS[name].cases[: 8 if INTERPRETED else None]):
        # The interpreter is slow, and cuts a case in fp16 as in fp32.
        for dtype in DTYPES[impl][: 1 if INTERPRETED and i > 1 else None]:
            check_errors(OPERATIONS[name], impl, case, dtype)


@pytest.mark.parametrize("impl", [pytest.param("triton", marks=marks("triton"))])
def test_errors_of_norms_without_silu(impl, poisoned):
    for case in NORM_ALONE.cases:
        check_errors(NORM_ALONE, impl, case, torch.float16)


@pytest.mark.slow
@pytest.mark.parametrize("impl", [pytest.param("triton", marks=marks("triton"))])
@pytest.mark.parametrize("part", range(11))
def test_errors_of_many_and_of_long_sequences(impl, part, poisoned):
    rng = random.Random(0)
    lengths = [1, 2, 15, 16, 17, 31, 48, 63, 64, 65, 77, 96, 100, 127, 128, 129, 192, 200, 257, 320]
    sizes = [8, 16, 20, 24, 32, 40, 48, 64, 72, 80, 96, 128, 160]
    drawn = [
        (rng.randint(1, 2), rng.randint(1, 2), rng.choice(lengths), rng.choice(lengths),
         rng.choice(sizes))
        for _ in range(200)
    ]  # fmt: skip
    for case in drawn[part::10] if part < 10 else OPERATIONS["attention"].large:
        for dtype in DTYPES[impl]:
            check_errors(OPERATIONS["attention"], impl, case, dtype)


@pytest.mark.parametrize(("name", "impl"), pairs("sdpa", "torch"))
def test_pytorchs_own_are_exact_in_float64(name, impl):
    operation = OPERATIONS[name]
    for case in operation.cases:
        inputs = operation.draw(*case)
        expected = operation.results("reference", inputs)
        for a, e in zip(operation.results(impl, inputs), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "impl"), pairs("torch"))
def test_torch_has_the_bits_and_the_layout_of_pytorch(name, impl):
    operation = OPERATIONS[name]
    given = [(case, lambda x: x) for case in operation.cases]
    given += [(operation.cases[0], change) for change in CHANGES.values()]
    for case, change in given:
        for dtype in (torch.float64, *DTYPES["torch"]):
            inputs = operation.inputs(case, dtype)
            inputs[0] = change(inputs[0])
            expected = operation.results("pytorch", inputs)
            for a, e in zip(operation.results(impl, inputs), expected, strict=True):
                if name == "frozen convolution":  # its gradient takes another way
                    bound = 1e-12 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps
                    torch.testing.assert_close(a, e, rtol=0, atol=bound * float(e.abs().max()))
                else:
                    assert torch.equal(a, e)
                assert a.dtype == dtype and layouts(a) == layouts(e)


@pytest.mark.parametrize(("name", "impl"), pairs("torch", *OURS))
def test_layout_of_the_results(name, impl):
    """Heads are joined without a copy, images keep their memory format."""
    operation = OPERATIONS[name]
    if "attention" in name:
        inputs = operation.inputs(operation.cases[0], torch.float32, device_of(impl))
        for result in operation.results(impl, [x.contiguous() for x in inputs]):
            assert result.transpose(1, 2).is_contiguous()
        return
    for case in operation.cases[:2]:
        inputs = operation.inputs(case, torch.float32, device_of(impl))
        for result in operation.results(impl, inputs):
            assert layouts(result) == layouts(inputs[0])


@pytest.mark.parametrize(("name", "impl"), pairs(*OURS))
def test_strides_change_no_bit(name, impl):
    """Of the incoming gradient and, of attention, of every input."""
    operation = OPERATIONS[name]
    inputs = operation.inputs(operation.cases[0], torch.float32, device_of(impl))
    inputs = [t[:1].repeat(len(t), *[1] * (t.ndim - 1)) if i in operation.batched else t
              for i, t in enumerate(inputs)]  # fmt: skip
    grad = random_like(operation.by(impl)(*inputs))
    grad = grad[:1].repeat(len(grad), *[1] * (grad.ndim - 1))
    expected = operation.results(impl, inputs, grad)
    strided = [i for i in operation.batched if inputs[i].ndim > 1]
    for label, change in CHANGES.items():
        changed = [change(x) if i in strided else x for i, x in enumerate(inputs)]
        for a, e in zip(operation.results(impl, changed, change(grad)), expected, strict=True):
            assert torch.equal(a, e), label


@pytest.mark.parametrize(("name", "impl"), pairs(*OURS))
def test_a_sample_has_the_same_bits_in_any_batch_on_any_threads_every_time(name, impl, threads):
    """On a GPU this is also the search for races, which the interpreter cannot have."""
    operation = OPERATIONS[name]
    dtype = DTYPES[impl][1 if impl == "triton" else 0]
    inputs = operation.inputs(operation.cases[0], dtype, device_of(impl))
    if name == "injected attention":
        inputs[5] = None  # mapping the values is a product of PyTorch's, which promises no bits
    grad = random_like(operation.by(impl)(*inputs))
    expected = operation.results(impl, inputs, grad)
    given = [(None, [2]), (None, [2, 0])]
    given += [(count, [0, 1, 2]) for count in ((1, 2, 3) if impl == "cpp" else ())]
    given += [(None, [0, 1, 2])] * (50 if impl == "triton" and not INTERPRETED else 1)
    for count, picked in given:
        threads(count or torch.get_num_threads())
        part = [x[picked] if i in operation.batched and x is not None else x
                for i, x in enumerate(inputs)]  # fmt: skip
        for a, e in zip(operation.results(impl, part, grad[picked]), expected, strict=True):
            assert torch.equal(a, e[picked])


@pytest.mark.parametrize(("name", "impl"), pairs(*OURS))
def test_not_a_number_stays_in_its_sample(name, impl):
    operation = OPERATIONS[name]
    inputs = operation.inputs(operation.cases[0], torch.float32, device_of(impl))
    inputs[0].select(0, 1).fill_(float("nan"))
    # The gradient of what is linear does not depend on where it is taken.
    for result in operation.results(impl, inputs)[: 1 if operation.linear else None]:
        assert result[1].isnan().any()
        assert result[[0, 2]].isfinite().all()


@pytest.mark.parametrize(("name", "impl"), pairs())
def test_nothing_to_do(name, impl):
    operation = OPERATIONS[name]
    for case in operation.empty:
        inputs = operation.inputs(case, torch.float32, device_of(impl))
        output, *gradients = operation.results(impl, inputs)
        assert not output.numel() and output.shape == operation.results("pytorch", inputs)[0].shape
        for i, gradient in zip(operation.wanted, gradients, strict=True):
            assert gradient.shape == inputs[i].shape and not gradient.any()


@pytest.mark.parametrize(
    ("name", "impl"), [p for p in pairs(*OURS) if len(OPERATIONS[p.values[0]].wanted) > 1]
)
def test_a_gradient_that_nobody_wants_changes_no_bit_of_the_first(name, impl):
    """Of attention: frozen text."""
    operation = OPERATIONS[name]
    for case in operation.cases[:2]:
        inputs = operation.inputs(case, torch.float32, device_of(impl))
        output = operation.results(impl, inputs)[0]
        expected = operation.results(impl, inputs, probe(output))[1]
        x, *rest = (x.detach() if isinstance(x, torch.Tensor) else x for x in inputs)
        alone = output_and_gradient(lambda x: operation.by(impl)(x, *rest), x)  # noqa: B023
        assert torch.equal(alone[0], output) and torch.equal(alone[1], expected)


@pytest.mark.parametrize(("name", "impl"), pairs())
def test_without_gradients_the_bits_are_the_same(name, impl):
    """Compiled as well, which takes another way through torch."""
    operation = OPERATIONS[name]
    inputs = operation.inputs(operation.cases[0], torch.float32, device_of(impl))
    expected = operation.results(impl, inputs)[0]
    torch._dynamo.reset()
    compiled = torch.compile(operation.by(impl), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        inputs[0].requires_grad_()
        for function in (operation.by(impl), compiled):
            output = function(*inputs)
            assert not output.requires_grad and torch.equal(output, expected)


@pytest.mark.parametrize(("name", "impl"), pairs("torch", *OURS))
def test_transforms_and_compilers_give_the_same(name, impl):
    operation = OPERATIONS[name]
    inputs = operation.inputs(operation.cases[0], torch.float32, device_of(impl))
    inputs = [x[:1] if i in operation.batched else x for i, x in enumerate(inputs)]
    # The interpreter is slow, and which gradients are asked for does not depend on the backend.
    for i in operation.wanted[: 1 if impl == "triton" else None]:

        def function(moving, i=i):
            given = (moving if j == i else x for j, x in enumerate(inputs))
            return operation.by(impl)(*given)

        assert_all_ways_agree(function, inputs[i])


@pytest.mark.parametrize(("name", "impl"), pairs("torch", *OURS))
def test_there_is_no_second_derivative(name, impl):
    """But of a convolution, which is linear: there the gradient's gradient is a convolution."""
    operation = OPERATIONS[name]
    if operation.linear:
        inputs = operation.inputs(operation.cases[0], torch.float32)
        x, *rest = inputs
        found = [
            torch.autograd.functional.jvp(lambda x: by(x, *rest), x, x, create_graph=True)[1]  # noqa: B023
            for by in (operation.by(impl), operation.pytorch)
        ]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
        return
    x, *rest = operation.inputs(operation.cases[0], torch.float32, device_of(impl))
    output = operation.by(impl)(x.requires_grad_(), *rest)
    (gradient,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


KEPT = {
    # (3, 1, 5, 20, 40): q, k, v, output, log-sum-exp.
    "attention": [600, 2400, 2400, 600, 15],
    # (3, 1, 5, 20, 20, 40): q, k, v, source's q and k, mapped v, weight, both log-sum-exps.
    "injected attention": [600, 2400, 2400, 600, 2400, 2400, 3, 15, 15],
    # x, weight, bias, and the statistics of two groups of three samples.
    "group norm": [420, 4, 4, 6, 6],
    "geglu": [798],
    "frozen convolution": [180],  # the weight
    "convolution of 3x3": [180],
}


@pytest.mark.parametrize(("name", "impl"), pairs("torch", *OURS))
def test_what_is_kept_for_the_backward(name, impl):
    operation = OPERATIONS[name]
    x, *rest = operation.inputs(operation.cases[0], torch.float32, device_of(impl))
    kept = kept_tensors(lambda x: operation.by(impl)(x, *rest), x)
    if name == "injected attention":  # and what PyTorch keeps of mapping the values
        assert set(KEPT[name]) <= {t.numel() for t in kept}
        return
    assert sorted(t.numel() for t in kept) == sorted(KEPT[name])
    itself = rest[0] if "convolution" in name else x
    assert itself.data_ptr() in {t.data_ptr() for t in kept}, "no copy is kept"


@pytest.mark.parametrize(("name", "impl"), pairs(*OURS))
def test_what_an_implementation_cannot_take_is_refused(name, impl):
    operation = OPERATIONS[name]
    inputs = operation.inputs(operation.cases[0], torch.float64, device_of(impl))
    with pytest.raises(BackendError, match=f"by '{impl}' cannot take .* float64 .*: it .*float32"):
        operation.by(impl)(*inputs)
    with pytest.raises(BackendError, match="on the CPU, not on meta|on CUDA devices, not on meta"):
        operation.by(impl)(*cast(inputs, torch.float32, "meta"))


@pytest.mark.parametrize(("name", "impl"), pairs("cpp"))
def test_operations_are_registered_as_torch_wants_them(name, impl):
    """With and without the gradients beside the first."""
    operation = OPERATIONS[name]
    inputs = operation.inputs(operation.cases[0], torch.float32)
    x, *rest = (x.detach() if isinstance(x, torch.Tensor) else x for x in inputs)
    with Called() as called:
        output_and_gradient(lambda x: operation.by(impl)(x, *rest), x)
        operation.results(impl, inputs)
    ours = {
        (function, *(a for a in args if isinstance(a, str))): args
        for function, args in called.calls
        if function.namespace == "fastdigin"
    }
    expected = {"attention": 3, "injected attention": 4, "convolution of 3x3": 1}
    assert len(ours) == expected.get(name, 2)
    for (function, *_), args in ours.items():
        args = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
        torch.library.opcheck(
            function,
            args,
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )
