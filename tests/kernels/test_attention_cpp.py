"""The C++ attention against the definition in float64, and what its results may not depend on."""

import pytest
import torch
from gradients import assert_all_ways_agree

from fastdigin_kernels.attention import api as ops
from fastdigin_kernels.attention import choice as dispatch
from fastdigin_kernels.attention import operations as attention_ops
from fastdigin_kernels.attention.operations import BackendError
from fastdigin_kernels.common import native

if native.library_path() is None:
    pytest.skip("installed without the CPU library", allow_module_level=True)

from fastdigin_kernels.attention import cpp as attention_cpp

# (B, H, N, T, d): SD 1.x and the embedded model's with fewer tokens; one row, one key, a head size
# below a vector, lengths around tiles and blocks, several tiles of keys.
SHAPES = [
    (2, 2, 63, 77, 40), (1, 1, 129, 300, 40), (2, 3, 64, 16, 24), (1, 2, 17, 16, 32),
    (1, 1, 1, 1, 1), (1, 2, 5, 1, 16), (3, 1, 1, 77, 3), (1, 1, 65, 129, 17), (1, 1, 33, 131, 160),
    (1, 2, 16, 128, 64), (1, 1, 47, 13, 80), (1, 1, 130, 20, 100),
]  # fmt: skip


@pytest.fixture(params=["every feature", "portable"])
def features(request):
    """The kernels of this processor, and those for any."""
    library = native.load()
    library.fastdigin_limit_features(0 if request.param == "portable" else 2**32 - 1)
    yield
    library.fastdigin_limit_features(2**32 - 1)


@pytest.fixture
def poisoned(monkeypatch):
    """Every result starts as NaN."""

    def poison(x):
        return attention_ops.like_unet(x).fill_(float("nan"))

    monkeypatch.setattr(attention_cpp, "like_unet", poison)


def draw(shape, seed=0):
    """q, k, v and an incoming gradient, laid out as the U-Net's."""
    batch, heads, image_tokens, tokens, size = shape
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, rows, heads, size, generator=generator).transpose(1, 2)
        for rows in (image_tokens, tokens, tokens, image_tokens)
    ]


def results(impl, q, k, v, grad, dtype=torch.float32):
    """Output, dq, dk and dv."""
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in (q, k, v))
    out = ops.attention(q, k, v, impl)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad.to(dtype))]


def assert_as_exact_as(actual, rival, exact):
    """Errors of at most three times those of another float32 computation, or five ulps."""
    for name, a, r, e in zip(("output", "dq", "dk", "dv"), actual, rival, exact, strict=True):
        error, rival_error = ((x.double() - e).abs().max().item() for x in (a, r))
        assert error <= 3 * rival_error + 6e-7 * e.abs().max().item(), name


@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients(shape, features, poisoned):
    x = draw(shape)
    assert_as_exact_as(
        results("cpp", *x), results("reference", *x), results("reference", *x, dtype=torch.float64)
    )


@pytest.mark.parametrize("shape", [(2, 2, 63, 77, 40), (1, 1, 129, 300, 40)])
def test_large_scores_do_not_overflow(shape):
    q, k, v, grad = draw(shape)
    x = (30 * q, 30 * k, v, grad)
    found = results("cpp", *x)
    assert all(r.isfinite().all() for r in found)
    exact = results("reference", *x, dtype=torch.float64)
    torch.testing.assert_close(found[0].double(), exact[0], rtol=0, atol=1e-2)


def test_frozen_keys_change_no_bit_of_the_queries_gradient():
    for shape in SHAPES:
        q, k, v, grad = draw(shape)
        _, dq, _, _ = results("cpp", q, k, v, grad)
        q.requires_grad_()
        alone = torch.autograd.grad(ops.attention(q, k, v, "cpp"), q, grad)[0]
        assert torch.equal(alone, dq)


@pytest.mark.parametrize("shape", [(4, 2, 63, 77, 40), (4, 1, 40, 150, 24)])
def test_a_sample_has_the_same_bits_in_any_batch_on_any_threads(shape):
    x = draw(shape)
    expected = results("cpp", *x)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for picked in ([2], [3, 2, 0], [0, 1, 2, 3]):
                found = results("cpp", *(t[picked] for t in x))
                for f, e in zip(found, expected, strict=True):
                    assert torch.equal(f, e[picked])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.contiguous(),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
        lambda x: x[:1].expand(x.shape),
    ],
)
def test_strides_change_no_bit(change):
    x = draw((2, 3, 20, 11, 24))
    x = [t[:1].repeat(2, 1, 1, 1) for t in x]
    for f, e in zip(results("cpp", *map(change, x)), results("cpp", *x), strict=True):
        assert torch.equal(f, e)


def test_not_a_number_stays_in_its_sample():
    x = draw((3, 2, 33, 77, 40))
    x[1][1, 0, 3, 5] = float("nan")
    for r in results("cpp", *x):
        assert r[1].isnan().any() and r[[0, 2]].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 2, 5, 7, 8), (2, 2, 0, 7, 8)])
def test_nothing_to_do(shape):
    for impl in ("cpp", "sdpa"):
        out, dq, dk, dv = results(impl, *draw(shape))
        assert out.shape == dq.shape == (shape[0], 2, shape[2], 8)
        assert dk.shape == dv.shape == (shape[0], 2, 7, 8) and not dk.any() and not dv.any()


def test_what_it_cannot_take_is_refused():
    q, k, v, _ = draw((1, 1, 3, 5, 8))
    with pytest.raises(BackendError, match="computes in float32, not in torch.float64"):
        ops.attention(q.double(), k.double(), v.double(), "cpp")
    with pytest.raises(BackendError, match="on the CPU, not on meta"):
        attention_ops._checked("cpp", *(x.to("meta") for x in (q, k, v)))
    assert "not in torch.bfloat16" in dispatch.unavailable("cpp", q.device, torch.bfloat16, 8)
    assert dispatch.unavailable("cpp", q.device, torch.float32, 8) is None


@pytest.mark.parametrize("which", [0, 1, 2])
def test_all_ways_to_a_gradient(which):
    x = draw((2, 2, 9, 5, 8))[:3]

    def function(moving):
        return ops.attention(*(moving if i == which else x[i] for i in range(3)), impl="cpp")

    assert_all_ways_agree(function, x[which])


def test_registration():
    q, k, v, grad = draw((2, 2, 9, 5, 8))
    out, lse = torch.ops.fastdigin.attention_forward(q, k, v, "cpp")
    torch.testing.assert_close(
        lse, torch.logsumexp(q @ k.transpose(-1, -2) / 8**0.5, -1), rtol=1e-6, atol=1e-6
    )
    weight, mapped = torch.tensor([0.3, 1.0]), v[:, :, :3]
    injected = (q, k, v, q, k[:, :, :3], mapped, weight)
    _, own, source = torch.ops.fastdigin.injected_attention_forward(*injected, "cpp")
    calls = {
        "attention_forward": (q, k, v, "cpp"),
        "attention_backward": (grad, q, k, v, out, lse, "cpp"),
        "attention_query_gradient": (grad, q, k, v, out, lse, "cpp"),
        "injected_attention_forward": (*injected, "cpp"),
        "injected_attention_backward": (grad, *injected, own, source, "cpp"),
        "injected_attention_query_gradient": (grad, *injected, own, source, "cpp"),
    }
    for name, args in calls.items():
        torch.library.opcheck(
            getattr(torch.ops.fastdigin, name).default,
            args,
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


def draw_injected(batch=3, heads=2, image_tokens=21, tokens=9, source_tokens=7, size=40):
    q, k, v, grad = draw((batch, heads, image_tokens, tokens, size))
    source_q, source_k, _, _ = draw((batch, heads, image_tokens, source_tokens, size), seed=1)
    mapping = torch.rand(batch, tokens, source_tokens, generator=torch.Generator().manual_seed(2))
    mapping /= mapping.sum(1, keepdim=True)
    return (q, k, v, source_q, source_k, mapping, torch.linspace(0, 1, batch)), grad


def injected_results(impl, inputs, grad, dtype=torch.float32):
    q, k, v, *rest = (x.detach().to(dtype) for x in inputs)
    wanted = [x.requires_grad_() for x in (q, k, v)]
    function = ops.injected_attention_reference if impl == "reference" else ops.injected_attention
    named = {} if impl == "reference" else {"impl": impl}
    out = function(*wanted, *rest, **named)
    return [out.detach(), *torch.autograd.grad(out, wanted, grad.to(dtype))]


@pytest.mark.parametrize("tokens", [9, 150])
def test_injection(tokens, features, poisoned):
    """Weights of 0, 1/2 and 1; one tile of keys and several."""
    inputs, grad = draw_injected(tokens=tokens, source_tokens=tokens - 2)
    assert_as_exact_as(
        injected_results("cpp", inputs, grad),
        injected_results("reference", inputs, grad),
        injected_results("reference", inputs, grad, torch.float64),
    )


def test_injection_by_all_ways_to_a_gradient():
    inputs, _ = draw_injected()
    for which in range(3):

        def function(moving, which=which):
            given = (moving if i == which else x for i, x in enumerate(inputs))
            return ops.injected_attention(*given, impl="cpp")

        assert_all_ways_agree(function, inputs[which])


def test_weight_zero_is_plain_attention_to_the_last_bit():
    inputs, grad = draw_injected()
    injected = injected_results("cpp", inputs, grad)
    for found, plain in zip(injected, results("cpp", *inputs[:3], grad), strict=True):
        assert torch.equal(found[0], plain[0])


def test_the_source_must_be_frozen_and_fit():
    inputs, _ = draw_injected()
    q, k, v, source_q, source_k, mapping, weight = inputs
    with pytest.raises(ValueError, match="source_k requires a gradient"):
        ops.injected_attention(
            q, k, v, source_q, source_k.requires_grad_(), mapping, weight, impl="cpp"
        )
    with pytest.raises(ValueError, match="source's queries must be shaped as q"):
        ops.injected_attention(
            q, k, v, source_q[:, :, :5], source_k.detach(), mapping, weight, impl="cpp"
        )


def test_without_openmp_threads_are_started(monkeypatch):
    x = draw((4, 2, 63, 77, 40))
    expected = results("cpp", *x)
    library, openmp = native.load(), native._openmp_of_torch()
    threads = torch.get_num_threads()
    library.fastdigin_use_openmp(None, None)
    try:
        torch.set_num_threads(3)
        for f, e in zip(results("cpp", *x), expected, strict=True):
            assert torch.equal(f, e)
    finally:
        torch.set_num_threads(threads)
        library.fastdigin_use_openmp(*openmp)


@pytest.mark.parametrize("impl", ["cpp", "sdpa"])
@pytest.mark.parametrize("size", [{"batch": 0}, {"image_tokens": 0}])
def test_nothing_to_inject(size, impl):
    inputs, grad = draw_injected(**size)
    out, dq, dk, dv = injected_results(impl, inputs, grad)
    assert out.shape == dq.shape == inputs[0].shape
    assert dk.shape == dv.shape == inputs[1].shape and not dk.any() and not dv.any()


@pytest.mark.parametrize("impl", ["cpp", "sdpa", "auto"])
@pytest.mark.parametrize(
    ("place", "change", "error", "reason"),
    [
        (2, lambda v: v.double(), ValueError, "of one dtype"),
        (3, lambda q: q.double(), ValueError, "of one dtype"),
        (4, lambda k: k[..., :8], ValueError, r"takes q \(B,H,N,d\)"),
        (4, lambda k: k[:, :, :3], ValueError, r"takes q \(B,H,N,d\)"),
        (5, lambda m: m[:, :3], AssertionError, "target tokens, source tokens"),
        (6, lambda w: w[:1], AssertionError, "one number per sample"),
    ],
)
def test_what_cannot_be_injected_is_refused(place, change, error, reason, impl):
    inputs = list(draw_injected()[0])
    inputs[place] = change(inputs[place])
    with pytest.raises(error, match=reason):
        ops.injected_attention(*inputs, impl=impl)


def test_injection_takes_any_strides():
    inputs, grad = draw_injected()
    strided = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in inputs[:6]]
    found = injected_results("cpp", (*strided, inputs[6]), grad)
    for f, e in zip(found, injected_results("cpp", inputs, grad), strict=True):
        assert torch.equal(f, e)
