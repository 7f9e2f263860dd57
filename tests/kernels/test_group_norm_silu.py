import pytest
import torch
from gradients import assert_all_ways_agree, kept_tensors, output_and_gradient
from torch.nn import functional as F

from fastdigin_kernels.group_norm_silu import group_norm_silu, group_norm_silu_reference

# (B, C, H, W), groups: odd sizes, one pixel, one channel a group, one group
CASES = [((2, 6, 5, 7), 3), ((1, 4, 1, 1), 2), ((3, 5, 3, 4), 5), ((2, 7, 8, 8), 1)]
FORMATS = [torch.contiguous_format, torch.channels_last]


def draw(case, dtype=torch.float64, memory_format=torch.contiguous_format):
    """x, whose mean is not 0, and weight, bias, groups and eps."""
    size, groups = case
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = (normal(*size) * 2 + 1).to(dtype, memory_format=memory_format)
    return x, ((1 + normal(size[1])).to(dtype), normal(size[1]).to(dtype), groups, 1e-3)


def bound(function, arguments):
    return lambda x: function(x, *arguments)


def pytorchs(x, weight, bias, groups, eps):
    return F.silu(F.group_norm(x, groups, weight, bias, eps))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_it_agrees_with_its_reference(case, memory_format):
    x, arguments = draw(case, memory_format=memory_format)
    actual = output_and_gradient(bound(group_norm_silu, arguments), x)
    expected = output_and_gradient(bound(group_norm_silu_reference, arguments), x)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_every_bit_is_pytorchs_and_the_memory_format_stays(case, memory_format, dtype):
    x, arguments = draw(case, dtype, memory_format)
    actual = output_and_gradient(bound(group_norm_silu, (*arguments, "torch")), x)
    expected = output_and_gradient(bound(pytorchs, arguments), x)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e) and a.dtype == dtype
        assert a.is_contiguous(memory_format=memory_format)


def test_inputs_that_are_not_contiguous():
    x, arguments = draw(CASES[0])
    for other in (x.transpose(2, 3), x[:, :, ::2, 1:], x[:, :, :1].expand(-1, -1, 3, -1)):
        actual = output_and_gradient(bound(group_norm_silu, arguments), other)
        expected = output_and_gradient(bound(pytorchs, arguments), other)
        assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])


def test_an_incoming_gradient_in_another_memory_format():
    x, arguments = draw(CASES[0], memory_format=torch.channels_last)
    gradients = [
        output_and_gradient(lambda x, f=f: f(x, *arguments).contiguous(), x)[1]
        for f in (group_norm_silu, pytorchs)
    ]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("case", CASES)
def test_the_derivative_is_that_of_finite_differences(case):
    x, arguments = draw(case)
    function = bound(group_norm_silu, arguments)
    assert torch.autograd.gradcheck(function, x.requires_grad_(), fast_mode=True)


def test_it_works_under_transforms_and_compilation():
    x, arguments = draw(CASES[0])
    assert_all_ways_agree(bound(group_norm_silu, arguments), x)


def test_the_input_is_kept_and_nothing_else_of_its_size():
    x, arguments = draw(CASES[0])
    weight, bias, groups, _ = arguments
    kept = kept_tensors(bound(group_norm_silu, arguments), x)
    sizes = sorted(tensor.numel() for tensor in kept)
    statistics = [len(x) * groups] * 2
    assert sizes == sorted([x.numel(), weight.numel(), bias.numel(), *statistics])
    assert x.data_ptr() in [tensor.data_ptr() for tensor in kept]


def test_without_gradients_the_bits_are_the_same():
    x, arguments = draw(CASES[0])
    with torch.no_grad():
        output = group_norm_silu(x.requires_grad_(), *arguments)
    assert not output.requires_grad
    assert torch.equal(output, pytorchs(x, *arguments))


def test_a_second_derivative_is_refused():
    x, arguments = draw(CASES[0])
    output = group_norm_silu(x.requires_grad_(), *arguments)
    (gradient,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), x)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_trainable_parameters_are_refused(name):
    x, (weight, bias, *rest) = draw(CASES[0])
    {"weight": weight, "bias": bias}[name].requires_grad_()
    with pytest.raises(ValueError, match=f"{name} requires a gradient"):
        group_norm_silu(x, weight, bias, *rest)


@pytest.mark.parametrize("impl", ["torch", "auto", "cpp"])
def test_parameters_that_do_not_fit_are_refused(impl):
    x, (weight, bias, *rest) = draw(CASES[0], torch.float32)
    for wrong in (weight[:5], weight[None], weight.to("meta")):
        with pytest.raises(ValueError, match=r"weight must be \(6,\) on cpu, got"):
            group_norm_silu(x, wrong, bias, *rest, impl=impl)
        with pytest.raises(ValueError, match=r"bias must be \(6,\) on cpu, got"):
            group_norm_silu(x, weight, wrong, *rest, impl=impl)
    with pytest.raises(AssertionError, match=r"x must be \(B,C,H,W\)"):
        group_norm_silu(x[0], weight, bias, *rest, impl=impl)
