"""What attention and injection mean, what they refuse, and what only some implementations have."""

import pytest
import torch
from kernel_operations import INTERPRETED, OPERATIONS, device_of, marks

from fastdigin_kernels.attention import attention, injected_attention, mapped_attention
from fastdigin_kernels.attention.reference import (
    attention_map_reference,
    attention_reference,
    mapped_attention_reference,
)
from fastdigin_kernels.attention.tiles import Tile
from fastdigin_kernels.common import native
from fastdigin_kernels.common.registry import backend

PLAIN, INJECTED = OPERATIONS["attention"], OPERATIONS["injected attention"]
NAMES = ("q", "k", "v", "source_q", "source_k", "mapping", "weight")
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="only Triton's kernels are interpreted")


def by(*impls):
    """Parameters: implementations, marked."""
    return pytest.mark.parametrize(
        "impl", [pytest.param(impl, marks=marks(impl)) for impl in impls]
    )


def draw(*shape, dtype=torch.float32, impl="sdpa"):
    """By name; shape: B, H, N, T, S, d."""
    return dict(zip(NAMES, INJECTED.inputs(shape, dtype, device_of(impl)), strict=True))


@not_interpreted
def test_stored_map_agrees_with_materialised_maps():
    x = draw(2, 3, 13, 7, 5, 8, dtype=torch.float64)
    source_map = attention_map_reference(x.pop("source_q"), x.pop("source_k"))
    q, k, v, mapping, weight = x.values()
    found = []
    for function in (mapped_attention, mapped_attention_reference):
        variables = [t.detach().requires_grad_() for t in (q, k, v)]
        output = function(*variables, source_map, mapping, weight)
        found.append([output, *torch.autograd.grad(output.cos().sum(), variables)])
    for a, e in zip(*found, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@by("sdpa", "cpp", "triton")
def test_weight_is_per_sample_and_zero_is_plain_attention_to_the_last_bit(impl):
    x = draw(3, 1, 5, 20, 9, 40, impl=impl)
    q, k, v = x["q"], x["k"], x["v"]
    found, plain = INJECTED.results(impl, list(x.values())), PLAIN.results(impl, [q, k, v])
    for a, e in zip(found, plain, strict=True):
        assert torch.equal(a[0], e[0]), "its weight is 0"
    mapped_v = torch.einsum("bts,bhtd->bhsd", x["mapping"], v)
    injected = attention_reference(x["source_q"], x["source_k"], mapped_v)
    torch.testing.assert_close(found[0][2], injected[2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0][1], injected[1], atol=1e-3)


@by("sdpa", "cpp", "triton")
def test_injecting_its_own_attention_changes_nothing(impl):
    x = draw(2, 2, 9, 6, 6, 8, impl=impl)
    q, k, v = x["q"], x["k"], x["v"]
    identity = torch.eye(6, device=q.device).expand(2, 6, 6)
    for mapping in (identity, None):
        output = injected_attention(q, k, v, q, k, mapping, x["weight"], impl)
        torch.testing.assert_close(output, attention(q, k, v, impl), rtol=1e-5, atol=1e-5)


@not_interpreted
def test_mass_of_a_split_word_reaches_all_its_tokens():
    """A source word divided among two target tokens reads the mean of their values."""
    values = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]])[None, None]
    mapping = torch.tensor([[[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]]])
    output = mapped_attention(
        torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 3, 2), values,
        torch.eye(2)[None, None], mapping, torch.ones(1),
    )  # fmt: skip
    assert output[0, 0].tolist() == [[0.5, 1.0], [5.0, 5.0]]


@not_interpreted
@pytest.mark.parametrize("impl", ["sdpa", "reference", "auto"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[0], k, v), r"takes q \(B,H,N,d\)"),
        (lambda q, k, v: (q, k[:1], v[:1]), r"takes q \(B,H,N,d\)"),
        (lambda q, k, v: (q, k, v[..., :4]), r"takes q \(B,H,N,d\)"),
        (lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]), "at least one key"),
        (lambda q, k, v: (q, k.float(), v), "of one dtype, got torch.float64, torch.float32"),
        (lambda q, k, v: (q, k, v.to("meta")), "on one device"),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(change, message, impl):
    with pytest.raises(ValueError, match=message):
        attention(*change(*PLAIN.draw(2, 3, 5, 7, 8)), impl=impl)


@not_interpreted
@pytest.mark.parametrize("impl", ["cpp", "sdpa", "auto"])
@pytest.mark.parametrize(
    ("name", "change", "error", "reason"),
    [
        ("v", lambda v: v.double(), ValueError, "of one dtype"),
        ("source_q", lambda q: q.double(), ValueError, "of one dtype"),
        ("source_k", lambda k: k[..., :8], ValueError, r"takes q \(B,H,N,d\)"),
        ("source_k", lambda k: k[:, :, :3], ValueError, r"takes q \(B,H,N,d\)"),
        ("mapping", lambda m: m[:, :3], AssertionError, "target tokens, source tokens"),
        ("weight", lambda w: w[:1], AssertionError, "one number per sample"),
    ],
)
def test_what_cannot_be_injected_is_refused(name, change, error, reason, impl):
    x = draw(3, 2, 21, 9, 7, 40)
    x[name] = change(x[name])
    with pytest.raises(error, match=reason):
        injected_attention(*x.values(), impl=impl)


@by("cpp", "triton")
def test_the_source_must_be_frozen_and_fit(impl):
    x = draw(3, 2, 21, 9, 7, 40, impl=impl)
    for name in ("source_q", "source_k", "weight"):
        given = {**x, name: x[name].clone().requires_grad_()}
        with pytest.raises(ValueError, match=f"{name} requires a gradient"):
            injected_attention(*given.values(), impl=impl)
    x["source_q"] = x["source_q"][:, :, :5]
    with pytest.raises(ValueError, match="source's queries must be shaped as q"):
        injected_attention(*x.values(), impl=impl)


@by("cpp", "triton")
@pytest.mark.parametrize("keys", [77, 140])
def test_large_scores_do_not_overflow_and_give_their_log_sum_exp(keys, impl):
    q, k, v = PLAIN.inputs((1, 1, 16, keys, 40), torch.float32, device_of(impl))
    q, k = 30 * q, 30 * k
    exact = PLAIN.results("reference", [q.double(), k.double(), v.double()])
    for found, e in zip(PLAIN.results(impl, [q, k, v]), exact, strict=True):
        torch.testing.assert_close(found.double(), e, rtol=1e-2, atol=5e-2)
    scores = q.double() @ k.double().transpose(-1, -2) / 40**0.5
    _, lse = backend("attention", impl).forward(q, k, v)
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse.double(), torch.logsumexp(scores, -1), rtol=1e-6, atol=3e-6)


@by("triton")
@pytest.mark.parametrize("tile", [Tile(16, 32, 4, 1), Tile(64, 128, 8, 1), Tile(32, 64, 4, 3)])
@pytest.mark.parametrize("keys", [77, 150])
def test_every_tile_gives_the_same_within_rounding(tile, keys, impl):
    q, k, v = PLAIN.inputs((1, 1, 40, keys, 40), torch.float32, device_of(impl))
    module = backend("attention", impl)
    out, lse = module.forward(q, k, v, tile=tile)
    found = (out, *module.backward(q, q, k, v, out, lse, None, "qkv", tile=tile))
    truth = PLAIN.results("reference", [q.double(), k.double(), v.double()], q.double())
    for actual, e in zip(found, truth, strict=True):
        torch.testing.assert_close(actual.double(), e, rtol=0, atol=1e-5)


FAR = 2**31
FAR_STRIDES = {  # of (2, 2, 5, 40): samples, heads and rows that lie 4 GB apart
    "samples": (FAR, 200, 40, 1),
    "heads": (400, FAR, 40, 1),
    "rows": (200, 400, FAR // 4, 1),
}


@by("triton")
@pytest.mark.parametrize("strides", FAR_STRIDES.values(), ids=FAR_STRIDES)
def test_numbers_that_lie_far_apart(strides, impl, tmp_path):
    """A file with holes takes no room, in memory or on disk."""
    inputs = PLAIN.inputs((2, 2, 5, 5, 40), torch.float16, device_of(impl))
    grad = inputs[1] + 1
    expected = PLAIN.results(impl, inputs, grad)
    far = []
    for name, x in zip("qkvg", (*inputs, grad), strict=True):
        memory = torch.from_file(
            str(tmp_path / name), shared=True, size=FAR + 2000, dtype=torch.float16
        ).to(device_of(impl))
        far.append(memory.as_strided(x.shape, strides).copy_(x))
    for a, e in zip(PLAIN.results(impl, far[:3], far[3]), expected, strict=True):
        assert torch.equal(a, e)


@by("triton")
def test_head_sizes_that_spill_registers_are_refused(impl):
    module, device = backend("attention", impl), torch.device(device_of(impl))
    assert module.unsupported(device, torch.float16, (160,)) is None
    assert "1 to 160, not 280" in module.unsupported(device, torch.float16, (280,))


@by("cpp")
def test_without_openmp_threads_are_started(impl, threads):
    inputs = PLAIN.inputs((4, 2, 63, 77, 40), torch.float32)
    expected = PLAIN.results(impl, inputs)
    library, openmp = native.load(), native._openmp_of_torch()
    library.fastdigin_use_openmp(None, None)
    threads(3)
    try:
        for a, e in zip(PLAIN.results(impl, inputs), expected, strict=True):
            assert torch.equal(a, e)
    finally:
        library.fastdigin_use_openmp(*openmp)
