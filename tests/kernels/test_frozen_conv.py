import pytest
import torch
from gradients import assert_all_ways_agree, kept_tensors, output_and_gradient

from fastdigin_kernels.frozen_conv import conv2d, conv2d_reference

# (B, I, H, W), (O, kernel height, kernel width), stride, padding, dilation, groups
CASES = {
    "3x3": ((2, 5, 7, 9), (4, 3, 3), 1, 1, 1, 1),
    "1x1": ((1, 6, 5, 3), (7, 1, 1), 1, 0, 1, 1),
    "stride over an even size": ((2, 3, 8, 10), (4, 3, 3), 2, 1, 1, 1),
    "stride over an odd size": ((2, 3, 7, 9), (4, 3, 3), 2, 1, 1, 1),
    "rows never read": ((1, 3, 11, 12), (2, 3, 2), (4, 5), 0, 1, 1),
    "no padding, padded before": ((1, 4, 9, 9), (4, 3, 3), 2, 0, 1, 1),
    "all different": ((3, 4, 13, 11), (6, 3, 5), (2, 3), (0, 4), (3, 2), 2),
    "depthwise": ((2, 6, 5, 7), (6, 3, 3), 1, 1, 1, 6),
    "one pixel": ((1, 2, 1, 1), (3, 3, 3), 1, 1, 1, 1),
}


def draw(case, dtype=torch.float64, memory_format=torch.contiguous_format):
    """x, and the arguments that follow it."""
    size, (outputs, *kernel), stride, padding, dilation, groups = CASES[case]
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x = normal(*size).to(memory_format=memory_format)
    weight = normal(outputs, size[1] // groups, *kernel).to(memory_format=memory_format)
    return x, (weight, normal(outputs), stride, padding, dilation, groups)


def bound(function, arguments):
    return lambda x: function(x, *arguments)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradient_are_pytorchs(case, memory_format):
    x, arguments = draw(case, memory_format=memory_format)
    actual = output_and_gradient(bound(conv2d, arguments), x)
    expected = output_and_gradient(bound(conv2d_reference, arguments), x)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)
        assert a.stride() == e.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["3x3", "stride over an even size", "all different"])
def test_errors_of_low_precision_are_pytorchs(case, dtype):
    exact = output_and_gradient(bound(conv2d_reference, draw(case)[1]), draw(case)[0])
    x, arguments = draw(case, dtype)
    actual = output_and_gradient(bound(conv2d, arguments), x)
    pytorchs = output_and_gradient(bound(conv2d_reference, arguments), x)
    for a, p, e in zip(actual, pytorchs, exact, strict=True):
        assert a.dtype == dtype
        assert (a - e).abs().max() <= 2 * (p - e).abs().max()


@pytest.mark.parametrize("case", ["3x3", "all different"])
def test_first_and_second_derivative_are_those_of_finite_differences(case):
    x, arguments = draw(case)
    function = bound(conv2d, arguments)
    assert torch.autograd.gradcheck(function, x.requires_grad_(), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_it_works_under_transforms_and_compilation():
    x, arguments = draw("stride over an even size")
    assert_all_ways_agree(bound(conv2d, arguments), x)


def test_the_weight_alone_is_kept():
    x, (weight, *rest) = draw("3x3")
    (kept,) = kept_tensors(lambda x: conv2d(x, weight, *rest), x)
    assert kept.data_ptr() == weight.data_ptr()
    assert len(kept_tensors(lambda x: conv2d_reference(x, weight, *rest), x)) == 2


def test_without_gradients_it_is_pytorchs_convolution():
    x, arguments = draw("3x3")
    with torch.no_grad():
        output = conv2d(x.requires_grad_(), *arguments)
    assert not output.requires_grad
    assert torch.equal(output, conv2d_reference(x, *arguments))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_trainable_parameters_are_refused(name):
    x, (weight, bias, *_) = draw("3x3")
    parameters = {"weight_oikk": weight, "bias_o": bias}
    key = next(key for key in parameters if key.startswith(name))
    with pytest.raises(ValueError, match=f"{name} requires a gradient"):
        torch.func.grad(lambda p: conv2d(x, **{**parameters, key: p}).sum())(parameters[key])
    parameters[key].requires_grad_()
    with pytest.raises(ValueError, match=f"{name} requires a gradient"):
        conv2d(x, **parameters)


def test_an_input_without_a_batch_is_refused():
    x, (weight, *_) = draw("3x3")
    with pytest.raises(AssertionError, match="must be"):
        conv2d(x[0], weight)
