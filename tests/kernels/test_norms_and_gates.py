"""What group norm, GEGLU and the frozen convolution refuse, and where numbers are extreme."""

import gc
import importlib

import pytest
import torch
from gradients import kept_tensors, probe
from kernel_operations import INTERPRETED, OPERATIONS, cast, device_of, marks
from torch._subclasses import FakeTensorMode

from fastdigin_kernels.common import native
from fastdigin_kernels.common.registry import BackendError, backend
from fastdigin_kernels.frozen_conv import conv2d
from fastdigin_kernels.geglu import geglu
from fastdigin_kernels.geglu.reference import geglu_reference
from fastdigin_kernels.group_norm_silu import group_norm, group_norm_silu
from fastdigin_kernels.group_norm_silu.api import in_format, memory_format

NORM, CONV = OPERATIONS["group norm"], OPERATIONS["frozen convolution"]
ours = pytest.mark.parametrize(
    "impl", [pytest.param(impl, marks=marks(impl)) for impl in ("cpp", "triton")]
)
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="only Triton's kernels are interpreted")
needs_library = pytest.mark.skipif(not native.cpu_features(), reason="no CPU library, or no AVX2")


@ours
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_large_mean_costs_no_precision(layout, impl):
    """Sums of squares of numbers around 1000 would leave nothing of a variance of 4."""
    inputs = NORM.inputs(((2, 24, 16, 16), 4, layout), torch.float32, device_of(impl))
    inputs[0] += 1000
    exact = NORM.reference(*cast(inputs, torch.float64))
    errors = [(NORM.by(by)(*inputs).double() - exact).abs().max() for by in (impl, "pytorch")]
    assert errors[0] <= 2 * errors[1]


@ours
def test_the_tails_of_the_gate(impl):
    x = torch.cat([torch.ones(1999), torch.linspace(-30, 30, 1999)]).to(device_of(impl))
    torch.testing.assert_close(
        geglu(x, impl=impl).double(), geglu_reference(x.double()), rtol=5e-7, atol=3e-7
    )


@pytest.mark.parametrize("impl", [pytest.param("cpp", marks=marks("cpp"))])
def test_not_a_number_stays_in_its_group(impl):
    inputs = NORM.inputs(((2, 48, 16, 16), 8), torch.float32)
    inputs[0][1, 3, 2, 2] = float("nan")
    for found in NORM.results(impl, inputs):
        assert found[1, :6].isnan().any() and found[0].isfinite().all()
        assert found[1, 6:].isfinite().all()


@not_interpreted
@pytest.mark.parametrize("operation", [NORM, CONV], ids=["norm", "convolution"])
@pytest.mark.parametrize(("name", "place"), [("weight", 1), ("bias", 2)])
def test_trainable_parameters_are_refused(name, place, operation):
    inputs = operation.draw(*operation.cases[0])

    def of_parameter(parameter):
        return operation.by("torch")(*inputs[:place], parameter, *inputs[place + 1 :]).sum()

    for differentiate in (
        lambda p: of_parameter(p.requires_grad_()),
        torch.func.grad(of_parameter),
    ):
        with pytest.raises(ValueError, match=f"{name} requires a gradient"):
            differentiate(inputs[place].clone())


@not_interpreted
@pytest.mark.parametrize("impl", ["torch", "auto", "cpp"])
def test_parameters_that_do_not_fit_are_refused(impl):
    x, weight, bias, *rest = NORM.inputs(((2, 6, 5, 7), 3), torch.float32)
    for wrong in (weight[:5], weight[None], weight.to("meta")):
        with pytest.raises(ValueError, match=r"weight must be \(6,\) on cpu, got"):
            group_norm_silu(x, wrong, bias, *rest, impl=impl)
        with pytest.raises(ValueError, match=r"bias must be \(6,\) on cpu, got"):
            group_norm_silu(x, weight, wrong, *rest, impl=impl)
    with pytest.raises(AssertionError, match="groups must divide the 6 channels, got 4"):
        group_norm_silu(x, weight, bias, 4, impl=impl)


@not_interpreted
def test_a_norm_alone_is_pytorchs_on_a_cpu():
    x, *rest = NORM.draw((2, 6, 5, 7), 3)
    weight, bias, groups, eps = rest
    expected = torch.nn.functional.group_norm(x, groups, weight, bias, eps)
    assert torch.equal(group_norm(x, *rest), expected)
    with pytest.raises(ValueError, match="impl must be one of auto, torch, triton, got 'cpp'"):
        group_norm(x, *rest, impl="cpp")
    with pytest.raises(ValueError, match="weight requires a gradient"):
        group_norm(x, rest[0].requires_grad_(), *rest[1:])


@not_interpreted
def test_inputs_of_other_dimensions_are_refused():
    for operation in (NORM, CONV):
        x, *rest = operation.draw(*operation.cases[0])
        with pytest.raises(AssertionError, match=r"x must be \(B,"):
            operation.by("torch")(x[0], *rest)
    with pytest.raises(AssertionError, match="2d"):
        geglu(torch.ones(2, 3))


@not_interpreted
def test_a_gradient_in_another_memory_format_is_taken():
    x, *rest = NORM.draw((2, 6, 5, 7), 3, torch.channels_last)
    gradients = []
    for function in (group_norm_silu, NORM.pytorch):
        x = x.detach().requires_grad_()
        output = function(x, *rest).contiguous()
        gradients += torch.autograd.grad(output, x, probe(output))
    assert torch.equal(*gradients)


@not_interpreted
@pytest.mark.parametrize("impl", ["torch", "cpp"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [0, 7, 421])
def test_any_stride_of_a_batch_of_one_is_taken(stride, layout, impl):
    """What PyTorch is handed has the usual strides: versions before 2.14 look at them."""
    if impl == "cpp" and native.library_path() is None:
        pytest.skip("installed without the CPU library")
    inputs = NORM.inputs(((1, 12, 5, 7), 3, layout), torch.float32)
    odd = inputs[0].as_strided(inputs[0].shape, (stride, *inputs[0].stride()[1:]))
    usual = in_format(odd, memory_format(odd))
    assert usual.stride() == inputs[0].stride() and torch.equal(usual, odd)
    assert in_format(inputs[0], memory_format(inputs[0])) is inputs[0], "no copy without need"
    expected = NORM.results(impl, inputs)
    for a, e in zip(NORM.results(impl, [odd, *inputs[1:]]), expected, strict=True):
        assert torch.equal(a, e)


@not_interpreted
def test_a_convolution_takes_numbers_for_pairs():
    x, weight, bias, *_ = CONV.draw(*CONV.cases[0])
    expected = conv2d(x, weight, bias, (2, 2), (1, 1), (1, 1), 1)
    assert torch.equal(conv2d(x, weight, bias, 2, 1), expected)


@not_interpreted
@pytest.mark.parametrize(
    ("case", "taken"),
    [
        (((2, 32, 8, 8), (48, 3, 3), 1, 1, 1, 1), True),
        (((1, 16, 4, 4), (32, 3, 3), 1, 1, 1, 1, True), True),
        (((1, 16, 4, 4), (16, 3, 3), 1, 1, 1, 1), False),  # slower
        (((1, 48, 4, 4), (4, 3, 3), 1, 1, 1, 1), False),
        (((1, 272, 4, 4), (256, 3, 3), 1, 1, 1, 1), False),  # too much memory
        (((1, 32, 8, 8), (48, 3, 3), 2, 1, 1, 1), False),
        (((1, 32, 8, 8), (48, 3, 3), 1, 0, 1, 1), False),
        (((1, 32, 8, 8), (48, 3, 3), 1, 1, 2, 1), False),
        (((1, 32, 8, 8), (48, 3, 3), 1, 1, 1, 2), False),
        (((1, 32, 8, 8), (48, 1, 1), 1, 0, 1, 1), False),
    ],
)
@needs_library
def test_which_convolutions_auto_gives_to_winograd(case, taken):
    inputs = CONV.inputs(case, torch.float32)
    both = zip(CONV.results("auto", inputs), CONV.results("torch", inputs), strict=True)
    assert [torch.equal(a, b) for a, b in both] == [not taken] * 2
    if case[1][1:] != (3, 3) or case[2:6] != (1, 1, 1, 1):
        with pytest.raises(BackendError, match="3x3 with stride 1, padding 1 and one group"):
            CONV.results("cpp", inputs)


@not_interpreted
@needs_library
def test_autocast_says_in_what_precision_a_convolution_is_computed():
    inputs = CONV.inputs(((2, 32, 8, 8), (48, 3, 3), 1, 1, 1, 1), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv2d(*inputs).dtype == torch.bfloat16


@not_interpreted
@needs_library
def test_a_weight_that_changes_is_transformed_anew():
    """Under its own name and under another, and with its gradient's direction."""
    x, weight, bias, *rest = CONV.inputs(((2, 32, 8, 8), (48, 3, 3), 1, 1, 1, 1), torch.float32)
    parameter = torch.nn.Parameter(weight, requires_grad=False)

    def changes():
        yield lambda: None
        yield lambda: parameter.mul_(2)
        yield lambda: parameter.detach().add_(1)
        yield lambda: parameter.copy_(torch.randn(parameter.shape))

    for change in changes():
        change()
        given = [x, parameter, bias, *rest]
        both = zip(CONV.results("cpp", given), CONV.results("torch", given), strict=True)
        for found, expected in both:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@not_interpreted
@needs_library
def test_a_transformed_weight_goes_with_its_weight():
    cpp = backend("frozen_conv", "cpp")
    inputs = CONV.inputs(((2, 32, 8, 8), (48, 3, 3), 1, 1, 1, 1), torch.float32)
    storage = inputs[1].untyped_storage()
    CONV.results("cpp", inputs)
    assert storage in cpp._kept
    before = len(cpp._kept)
    del inputs, storage
    gc.collect()
    assert len(cpp._kept) < before


@not_interpreted
def test_a_filter_of_one_pixel_is_a_product():
    """Where pixels lie channels last: PyTorch's numbers, layout and gradient, and what is kept."""
    case = ((2, 32, 8, 6), (48, 1, 1), 1, 0, 1, 1, True)
    x, *rest = CONV.inputs(case, torch.float32)
    given = [x, *rest]
    both = zip(CONV.results("auto", given), CONV.results("torch", given), strict=True)
    for found, expected in both:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        assert found.stride() == expected.stride()
    kept = kept_tensors(lambda x: conv2d(x, *rest), x)
    assert {t.data_ptr() for t in kept} == {rest[0].data_ptr()}
    planes = x.detach().contiguous()
    assert torch.equal(conv2d(planes, *rest), conv2d(planes, *rest, impl="torch"))


@not_interpreted
@needs_library
def test_the_library_may_be_imported_where_tensors_are_fake():
    """As where the memory of a model is counted before it is loaded."""
    module = backend("frozen_conv", "cpp")
    with FakeTensorMode():
        importlib.reload(module)
    inputs = CONV.inputs(((2, 32, 8, 8), (48, 3, 3), 1, 1, 1, 1), torch.float32)
    torch.testing.assert_close(
        CONV.results("cpp", inputs)[0], CONV.results("torch", inputs)[0], rtol=1e-4, atol=1e-3
    )
