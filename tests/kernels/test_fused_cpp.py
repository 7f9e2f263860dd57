"""The C++ GroupNorm+SiLU and GEGLU against their definitions in float64."""

from functools import partial

import pytest
import torch
from gradients import assert_all_ways_agree, kept_tensors, output_and_gradient

from fastdigin_kernels.attention import operations as attention_ops
from fastdigin_kernels.common import fused, native
from fastdigin_kernels.geglu import geglu, geglu_reference
from fastdigin_kernels.group_norm_silu import group_norm_silu, group_norm_silu_reference

if native.library_path() is None:
    pytest.skip("installed without the CPU library", allow_module_level=True)

# (B, C, H, W), groups: the embedded model's, odd sizes, groups that share a line of 16 channels,
# one pixel, one group, more pixels than one sum takes, a sum that is full at a partial line.
NORMS = [
    ((2, 48, 16, 16), 8), ((3, 12, 5, 7), 3), ((1, 4, 1, 1), 2), ((2, 40, 3, 3), 4),
    ((2, 7, 8, 8), 1), ((1, 320, 4, 4), 32), ((1, 6, 50, 50), 2), ((2, 4, 37, 55), 4),
]  # fmt: skip
FORMATS = [torch.contiguous_format, torch.channels_last]
GATES = [(2, 5, 14), (6,), (3, 2), (1, 2, 3, 38), (4, 257, 64)]


@pytest.fixture(params=["every feature", "portable"])
def features(request):
    library = native.load()
    library.fastdigin_limit_features(0 if request.param == "portable" else 2**32 - 1)
    yield
    library.fastdigin_limit_features(2**32 - 1)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Every result of the C++ modules starts as NaN."""
    real = torch.empty_like
    for name in ("group_norm_silu", "geglu"):
        module = fused.backend(name, "cpp")
        fake_torch = type("Torch", (), {"__getattr__": lambda self, name: getattr(torch, name)})()
        fake_torch.empty_like = lambda *args, **kwargs: real(*args, **kwargs).fill_(float("nan"))
        monkeypatch.setattr(module, "torch", fake_torch)


def draw(shape, mean=0.0):
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(shape, generator=generator) + mean


def draw_norm(case, memory_format=torch.contiguous_format, mean=3.0):
    (size, groups), generator = case, torch.Generator().manual_seed(1)
    weight, bias = torch.randn(2, size[1], generator=generator)
    return draw(size, mean).to(memory_format=memory_format), (weight, bias, groups, 1e-5)


def norm(arguments, function=group_norm_silu, **kwargs):
    def normed(x):
        cast = [a.to(x) if isinstance(a, torch.Tensor) else a for a in arguments]
        return function(x, *cast, **kwargs)

    return normed


def assert_near_float64(function, reference, x):
    actual, exact = output_and_gradient(function, x), output_and_gradient(reference, x.double())
    for name, a, e in zip(("output", "gradient"), actual, exact, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(
            a.double(), e, rtol=4e-6, atol=4e-6, msg=lambda m, n=name: n + ": " + m
        )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("case", NORMS)
def test_group_norm_and_silu(case, memory_format, features):
    x, arguments = draw_norm(case, memory_format)
    assert_near_float64(norm(arguments, impl="cpp"), norm(arguments, group_norm_silu_reference), x)
    assert norm(arguments, impl="cpp")(x).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_large_mean_costs_no_precision(memory_format):
    """Sums of squares of numbers around 1000 would leave nothing of a variance of 4."""
    x, arguments = draw_norm(NORMS[0], memory_format, mean=1000.0)
    exact = norm(arguments, group_norm_silu_reference)(x.double())
    error = (norm(arguments, impl="cpp")(x).double() - exact).abs().max()
    pytorchs = (norm(arguments, impl="torch")(x).double() - exact).abs().max()
    assert error <= 2 * pytorchs


@pytest.mark.parametrize("shape", GATES)
def test_geglu(shape, features):
    assert_near_float64(partial(geglu, impl="cpp"), geglu_reference, draw(shape))


def test_the_tails_of_the_gate():
    x = torch.stack([torch.ones(1999), torch.linspace(-30, 30, 1999)], 1)
    torch.testing.assert_close(
        geglu(x, impl="cpp").double(), geglu_reference(x.double()), rtol=5e-7, atol=3e-7
    )


def test_a_sample_has_the_same_bits_in_any_batch_on_any_threads():
    threads = torch.get_num_threads()
    for memory_format in FORMATS:
        x, arguments = draw_norm(((5, 48, 9, 9), 8), memory_format)
        gates = draw((5, 300, 64))
        expected = output_and_gradient(norm(arguments, impl="cpp"), x)[0], geglu(gates, "cpp")
        try:
            for count in (1, 3):
                torch.set_num_threads(count)
                found = norm(arguments, impl="cpp")(x[[3]]), geglu(gates[[3]], "cpp")
                for f, e in zip(found, expected, strict=True):
                    assert torch.equal(f, e[[3]])
        finally:
            torch.set_num_threads(threads)


def test_not_a_number_stays_in_its_group():
    x, arguments = draw_norm(NORMS[0])
    x[1, 3, 2, 2] = float("nan")
    output, gradient = output_and_gradient(norm(arguments, impl="cpp"), x)
    for found in (output, gradient):
        assert found[1, :6].isnan().any() and found[0].isfinite().all()
        assert found[1, 6:].isfinite().all()


def test_auto_is_a_constant_to_compilers():
    torch._dynamo.reset()
    fused._library_path.cache_clear()
    x = draw((2, 4))
    compiled = torch.compile(lambda x: geglu(x), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), geglu(x, "cpp"))


def test_auto_is_cpp_for_float32_on_the_cpu_alone():
    x = draw((2, 4))
    assert fused.choose("auto", x) == "cpp"
    assert fused.choose("auto", x.double()) == fused.choose("auto", x.to("meta")) == "torch"
    with pytest.raises(ValueError, match="one of auto, torch, cpp, triton, got 'sdpa'"):
        geglu(x, impl="sdpa")
    with pytest.raises(attention_ops.BackendError, match="in float32, not in torch.float64"):
        geglu(x.double(), impl="cpp")
    y, arguments = draw_norm(NORMS[1])
    with pytest.raises(attention_ops.BackendError, match="in float32, not in torch.bfloat16"):
        group_norm_silu(y.bfloat16(), *arguments, impl="cpp")
    with pytest.raises(AssertionError, match="groups must divide the 12 channels, got 5"):
        group_norm_silu(y, *arguments[:2], 5)


def test_nothing_to_do():
    for shape in [(0, 6), (3, 0)]:
        output, gradient = output_and_gradient(partial(geglu, impl="cpp"), draw(shape))
        assert output.shape == (shape[0], shape[1] // 2) and gradient.shape == shape
    x, arguments = draw_norm(((0, 4, 3, 3), 2))
    assert [t.shape for t in output_and_gradient(norm(arguments, impl="cpp"), x)] == [x.shape] * 2


def test_all_ways_to_a_gradient():
    x, arguments = draw_norm(NORMS[1], torch.channels_last)
    assert_all_ways_agree(norm(arguments, impl="cpp"), x)
    assert_all_ways_agree(partial(geglu, impl="cpp"), draw(GATES[0]))


def test_the_input_is_kept_and_nothing_else_of_its_size():
    x, arguments = draw_norm(NORMS[0])
    kept = kept_tensors(norm(arguments, impl="cpp"), x)
    assert sorted(t.numel() for t in kept) == sorted([x.numel(), 48, 48, 16, 16])
    assert [t.shape for t in kept_tensors(partial(geglu, impl="cpp"), draw((2, 8)))] == [(2, 8)]


def test_registration():
    x, (weight, bias, groups, eps) = draw_norm(NORMS[1], torch.channels_last)
    ops = torch.ops.fastdigin
    y, mean, rstd = ops.group_norm_silu_forward(x, weight, bias, groups, eps, "cpp")
    gate = draw(GATES[0])
    calls = {
        ops.group_norm_silu_forward: (x, weight, bias, groups, eps, "cpp"),
        ops.group_norm_silu_backward: (y, x, weight, bias, mean, rstd, "cpp"),
        ops.geglu_forward: (gate, "cpp"),
        ops.geglu_backward: (gate[..., :7], gate, "cpp"),
    }
    for op, args in calls.items():
        torch.library.opcheck(
            op.default, args, test_utils=("test_schema", "test_faketensor",
                                          "test_aot_dispatch_dynamic")
        )  # fmt: skip
