"""Attention by Triton against fp64, next to PyTorch's own in the same precision.

Where it runs: tests/triton_device.py.
"""

import random

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from triton_device import DEVICE, DTYPES, excess, on_device, poisoned  # noqa: F401 - a fixture

pytest.importorskip("triton")
from fastdigin_kernels.attention import triton as ops  # noqa: E402
from fastdigin_kernels.attention.operations import attention  # noqa: E402
from fastdigin_kernels.attention.tiles import Tile  # noqa: E402
from fastdigin_kernels.attention.triton_dkv import attention_dkv_reference  # noqa: E402
from fastdigin_kernels.attention.triton_dq import attention_dq_reference  # noqa: E402
from fastdigin_kernels.attention.triton_forward import (  # noqa: E402
    attention_forward_reference,
    injected_forward_reference,
)

pytestmark = on_device

# (B, H, queries, keys, d): every named odd length on both sides, every head size of SD 1, 2, XL and
# of the embedded model, few keys and many.
NAMED = [
    (1, 1, 1, 1, 40), (2, 1, 63, 65, 40), (1, 2, 65, 77, 80), (1, 1, 1, 77, 160),
    (1, 2, 64, 16, 24), (1, 1, 16, 16, 32), (1, 1, 70, 200, 64), (1, 1, 77, 1, 128),
]  # fmt: skip
# Long ones, one with its queries split among programs (more than 1024 of them).
LARGE = [
    (1, 1, 1023, 1023, 40),
    (1, 1, 2100, 77, 40),
    (1, 1, 1023, 77, 80),
    (1, 1, 65, 1023, 160),
    (1, 1, 256, 256, 160),
]


def draw_shapes(count):
    rng = random.Random(0)
    lengths = [1, 2, 15, 16, 17, 31, 48, 63, 64, 65, 77, 96, 100, 127, 128, 129, 192, 200, 257, 320]
    sizes = [8, 16, 20, 24, 32, 40, 48, 64, 72, 80, 96, 128, 160]
    return [
        (rng.randint(1, 2), rng.randint(1, 2), rng.choice(lengths), rng.choice(lengths),
         rng.choice(sizes))
        for _ in range(count)
    ]  # fmt: skip


def draw(*dims, dtype, seed=0):
    """A tensor in the layout of the U-Net: (B,tokens,H,d) in memory."""
    batch, heads, tokens, size = dims
    generator = torch.Generator().manual_seed(seed)
    x_bnhd = torch.randn(batch, tokens, heads, size, generator=generator, dtype=torch.float64)
    return x_bnhd.to(DEVICE, dtype).transpose(1, 2)


def draw_inputs(shape, dtype):
    """q, k, v and the incoming gradient."""
    batch, heads, queries, keys, size = shape
    return [
        draw(batch, heads, tokens, size, dtype=dtype, seed=seed)
        for seed, tokens in enumerate((queries, keys, keys, queries))
    ]


def run(q, k, v, grad, **options):
    out, lse = ops.forward(q, k, v, **options)
    return out, *ops.backward(grad, q, k, v, out, lse, **options)


def run_torch(q, k, v, grad):
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = scaled_dot_product_attention(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, grad)


def true_values(q, k, v, grad):
    q, k, v, grad = (x.double() for x in (q, k, v, grad))
    out, lse = attention_forward_reference(q, k, v)
    dq, delta = attention_dq_reference(grad, q, k, v, lse)
    return out, dq, *attention_dkv_reference(grad, q, k, v, lse, delta)


def check(shape, dtype):
    inputs = draw_inputs(shape, dtype)
    results = zip(run(*inputs), run_torch(*inputs), true_values(*inputs), strict=True)
    for name, result in zip(("out", "dq", "dk", "dv"), results, strict=True):
        assert excess(*result) <= 1, f"{name} of {shape} {dtype}: {excess(*result):.2f}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", NAMED)
def test_errors_are_at_most_twice_those_of_torch(shape, dtype, poisoned):  # noqa: F811
    check(shape, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LARGE)
def test_errors_of_long_sequences(shape, dtype, poisoned):  # noqa: F811
    check(shape, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("part", range(10))
def test_errors_over_200_random_shapes(part, dtype, poisoned):  # noqa: F811
    for shape in draw_shapes(200)[part::10]:
        check(shape, dtype)


@pytest.mark.parametrize("size", [24, 40])
def test_references_agree_with_autograd(size):
    inputs = draw_inputs((2, 2, 5, 7, size), torch.float64)
    for actual, expected in zip(true_values(*inputs), run_torch(*inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 2, 33, 77, 40), (1, 1, 20, 140, 24)])
def test_log_sum_exp(shape, poisoned):  # noqa: F811
    q, k, v, _ = draw_inputs(shape, torch.float32)
    _, expected = attention_forward_reference(q.double(), k.double(), v.double())
    _, lse = ops.forward(q, k, v)
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse.double(), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("keys", [77, 150])
def test_frozen_keys_give_the_same_query_gradient(keys):
    q, k, v, grad = draw_inputs((1, 1, 20, keys, 40), torch.float16)
    out, lse = ops.forward(q, k, v)
    dq, dk, dv = ops.backward(grad, q, k, v, out, lse, frozen_keys=True)
    assert dk is None and dv is None
    assert torch.equal(dq, ops.backward(grad, q, k, v, out, lse)[0])


@pytest.mark.parametrize("shape", [(1, 2, 65, 77, 40), (1, 1, 1030, 16, 24), (1, 1, 20, 150, 80)])
def test_repeats_are_bit_identical(shape):
    """On a GPU this is also the search for races, which the interpreter cannot have."""
    inputs = draw_inputs(shape, torch.float16)
    first = run(*inputs)
    for _ in range(2 if DEVICE == "cpu" else 50):
        assert all(torch.equal(a, b) for a, b in zip(first, run(*inputs), strict=True))


def test_a_sample_has_the_same_bits_beside_any_others():
    inputs = draw_inputs((3, 1, 20, 77, 40), torch.float16)
    alone = run(*(x[1:2] for x in inputs))
    for a, b in zip(alone, run(*inputs), strict=True):
        assert torch.equal(a, b[1:2])


@pytest.mark.parametrize("tile", [Tile(16, 32, 4, 1), Tile(128, 128, 8, 2), Tile(32, 64, 4, 3)])
@pytest.mark.parametrize("keys", [77, 150])
def test_every_tile_gives_the_same_within_rounding(tile, keys):
    inputs = draw_inputs((1, 1, 70, keys, 40), torch.float32)
    for actual, truth in zip(run(*inputs, tile=tile), true_values(*inputs), strict=True):
        torch.testing.assert_close(actual.double(), truth, rtol=0, atol=1e-5)


def test_any_strides_are_taken():
    q, k, v, grad = draw_inputs((1, 2, 20, 33, 40), torch.float32)
    expected = run(*(x.contiguous() for x in (q, k, v, grad)))
    column_major = q.transpose(2, 3).contiguous().transpose(2, 3)
    every_other = torch.stack([k, k], dim=3)[:, :, :, 0]
    odd_offset = torch.nn.functional.pad(v, (1, 2))[..., 1:-2]
    one_gradient = grad[:1, :1].expand_as(grad)
    for actual, e in zip(run(column_major, every_other, odd_offset, grad), expected, strict=True):
        assert torch.equal(actual, e)
    a = run(q, k, v, one_gradient)
    b = run(q, k, v, one_gradient.contiguous())
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_results_lie_as_the_unet_joins_heads():
    inputs = draw_inputs((2, 3, 17, 18, 40), torch.float16)
    for result in run(*(x.contiguous() for x in inputs)):
        assert result.transpose(1, 2).is_contiguous()


def test_large_scores_do_not_overflow():
    q, k, v, grad = draw_inputs((1, 1, 20, 150, 40), torch.float32)
    for actual, truth in zip(
        run(30 * q, 30 * k, v, grad), true_values(30 * q, 30 * k, v, grad), strict=True
    ):
        assert torch.isfinite(actual).all()
        torch.testing.assert_close(actual.double(), truth, rtol=1e-2, atol=2e-2)


def draw_injection(dtype, batch=3, heads=1, queries=20, keys=77, source_keys=16, size=40):
    q, k, v, grad = draw_inputs((batch, heads, queries, keys, size), dtype)
    source_q, source_k, mapped_v, _ = draw_inputs((batch, heads, queries, source_keys, size), dtype)
    weight = torch.linspace(0, 1, batch, device=DEVICE)
    return grad, q, k, v, source_q + 1, source_k + 0.5, mapped_v - 1, weight


def run_injection(grad, *inputs):
    out, lse, source_lse = ops.injected_forward(*inputs)
    return out, *ops.injected_backward(grad, *inputs, lse, source_lse)


def run_torch_injection(grad, q, k, v, source_q, source_k, mapped_v, weight):
    leaves = [x.detach().requires_grad_() for x in (q, k, v, mapped_v)]
    weight = weight.to(q.dtype).view(-1, 1, 1, 1)
    injected = scaled_dot_product_attention(source_q, source_k, leaves[3])
    out = weight * injected + (1 - weight) * scaled_dot_product_attention(*leaves[:3])
    return out.detach(), *torch.autograd.grad(out, leaves, grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(3, 1, 20, 77, 77, 40), (1, 1, 70, 16, 7, 24), (2, 1, 17, 150, 140, 80)]
)
def test_injection_errs_at_most_twice_as_much_as_torch(shape, dtype, poisoned):  # noqa: F811
    inputs = draw_injection(dtype, *shape)
    truth = run_torch_injection(*(x.double() for x in inputs))
    expected, _, _ = injected_forward_reference(*(x.double() for x in inputs[1:]))
    torch.testing.assert_close(expected, truth[0])
    results = zip(run_injection(*inputs), run_torch_injection(*inputs), truth, strict=True)
    for name, result in zip(("out", "dq", "dk", "dv", "dmapped_v"), results, strict=True):
        assert excess(*result) <= 1, f"{name}: {excess(*result):.2f}"


def test_a_sample_that_injects_nothing_keeps_its_bits():
    grad, q, k, v, *source, weight = draw_injection(torch.float16)
    plain = run(q, k, v, grad)
    injected = run_injection(grad, q, k, v, *source, weight)
    for a, b in zip(plain, injected, strict=False):
        assert torch.equal(a[0], b[0]), "its weight is 0"


def test_injection_with_frozen_text():
    inputs = draw_injection(torch.float32)
    _, lse, source_lse = ops.injected_forward(*inputs[1:])
    dq, *others = ops.injected_backward(*inputs, lse, source_lse, frozen_keys=True)
    assert others == [None, None, None]
    assert torch.equal(dq, ops.injected_backward(*inputs, lse, source_lse)[0])


def test_transforms_and_compilers_keep_the_kernels():
    """torch.func.vjp, as it is and compiled whole, gives the kernels' own results bit by bit."""
    inputs = draw_inputs((1, 2, 20, 77, 40), torch.float32)
    expected = run(*inputs)

    def step(q, k, v, grad):
        out, pull_back = torch.func.vjp(lambda *x: attention(*x, "triton"), q, k, v)
        return out, *pull_back(grad)

    for each in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        assert all(torch.equal(a, b) for a, b in zip(each(*inputs), expected, strict=True))


def test_no_queries_give_no_output_and_no_gradient():
    q, k, v, grad = draw_inputs((1, 2, 0, 7, 40), torch.float32)
    out, dq, dk, dv = run(q, k, v, grad)
    assert out.shape == dq.shape == q.shape
    assert not dk.any() and not dv.any()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda q, k, v: (q.double(), k.double(), v.double()), "float64"),
        (lambda q, k, v: (q, k.half(), v), "share dtype and device, k is torch.float16"),
        (lambda q, k, v: (q, k.to("meta"), v), "k is torch.float32 on meta"),
        (lambda q, k, v: (q.to("meta"), k.to("meta"), v.to("meta")), "not on meta"),
        (lambda q, k, v: (q[0], k, v), r"q must have 4 dimensions \(B,H,tokens,d\)"),
        (lambda q, k, v: (q, k, v[:, :, :5]), r"k and v must be \(1,2,T,40\) as q"),
        (lambda q, k, v: (q, k[..., :5], v[..., :5]), r"k and v must be \(1,2,T,40\) as q"),
        (lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]), "at least one key"),
        (lambda q, k, v: [x.repeat(1, 1, 1, 7) for x in (q, k, v)], "1 to 160, not 280"),
    ],
)
def test_what_cannot_be_taken_is_named(change, reason):
    tensors = change(*draw_inputs((1, 2, 9, 7, 40), torch.float32)[:3])
    assert ops.unsupported(*tensors) is not None
    with pytest.raises(ValueError, match=reason):
        ops.forward(*tensors)


def test_wrong_gradients_and_sources_are_named():
    grad, q, k, v, source_q, source_k, mapped_v, weight = draw_injection(torch.float32)
    out, lse = ops.forward(q, k, v)
    with pytest.raises(ValueError, match="the gradient must be"):
        ops.backward(grad.half(), q, k, v, out, lse)
    with pytest.raises(ValueError, match="source_q must be"):
        ops.injected_forward(q, k, v, source_q[:, :, :5], source_k, mapped_v, weight)
    with pytest.raises(ValueError, match="and weight"):
        ops.injected_forward(q, k, v, source_q, source_k, mapped_v, weight[:2])
