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
impls = pytest.mark.parametrize(
    "impl", [pytest.param(impl, marks=marks(impl)) for impl in ("sdpa", "cpp", "triton")]
)
ours = pytest.mark.parametrize(
    "impl", [pytest.param(impl, marks=marks(impl)) for impl in ("cpp", "triton")]
)
by_triton = pytest.mark.parametrize("impl", [pytest.param("triton", marks=marks("triton"))])
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="only Triton's kernels are interpreted")


def draw(*shape, dtype=torch.float64, impl="sdpa"):
    """By name; shape: B, H, N, T, S, d."""
    return dict(zip(NAMES, INJECTED.inputs(shape, dtype, device_of(impl)), strict=True))


@not_interpreted
def test_stored_map_agrees_with_materialised_maps():
    x = draw(2, 3, 13, 7, 5, 8)
    source_map = attention_map_reference(x.pop("source_q"), x.pop("source_k"))
    q, k, v, mapping, weight = x.values()
    for function in (mapped_attention, mapped_attention_reference):
        variables = [t.detach().requires_grad_() for t in (q, k, v)]
        output = function(*variables, source_map, mapping, weight)
        found = [output, *torch.autograd.grad(output.cos().sum(), variables)]
        expected = found if function is mapped_attention else expected  # noqa: F821
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@impls
def test_weight_is_per_sample_and_zero_is_plain_attention_to_the_last_bit(impl):
    x = draw(3, 1, 20, 77, 16, 40, dtype=torch.float32, impl=impl)
    found = INJECTED.results(impl, list(x.values()))
    q, k, v = x["q"], x["k"], x["v"]
    grad = torch.ones_like(found[0])
    found = INJECTED.results(impl, list(x.values()), grad)
    plain = PLAIN.results(impl, [q, k, v], grad)
    for a, e in zip(found, plain, strict=True):
        assert torch.equal(a[0], e[0]), "its weight is 0"
    mapped_v = torch.einsum("bts,bhtd->bhsd", x["mapping"], v)
    injected = attention_reference(x["source_q"], x["source_k"], mapped_v)
    torch.testing.assert_close(found[0][2], injected[2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0][1], injected[1], atol=1e-3)


@impls
def test_injecting_its_own_attention_changes_nothing(impl):
    x = draw(2, 2, 9, 6, 6, 8, dtype=torch.float32, impl=impl)
    q, k, v = x["q"], x["k"], x["v"]
    identity = torch.eye(6, device=q.device).expand(2, 6, 6)
    for mapping in (identity, None):
        output = injected_attention(q, k, v, q, k, mapping, x["weight"], impl)
        torch.testing.assert_close(output, attention(q, k, v, impl), rtol=1e-5, atol=1e-5)


@not_interpreted
def test_mass_of_a_split_word_reaches_all_its_tokens():
    """A source word divided among two target tokens reads the mean of their values."""
    values = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]], dtype=torch.float64)[None, None]
    mapping = torch.tensor([[[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    source_map = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)[None, None]
    query = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    keys = torch.zeros(1, 1, 3, 2, dtype=torch.float64)
    output = mapped_attention(query, keys, values, source_map, mapping, torch.ones(1))
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
    x = draw(3, 2, 21, 9, 7, 40, dtype=torch.float32)
    x[name] = change(x[name])
    with pytest.raises(error, match=reason):
        injected_attention(*x.values(), impl=impl)


@ours
def test_the_source_must_be_frozen_and_fit(impl):
    x = draw(3, 2, 21, 9, 7, 40, dtype=torch.float32, impl=impl)
    for name in ("source_q", "source_k", "weight"):
        given = {**x, name: x[name].clone().requires_grad_()}
        with pytest.raises(ValueError, match=f"{name} requires a gradient"):
            injected_attention(*given.values(), impl=impl)
    x["source_q"] = x["source_q"][:, :, :5]
    with pytest.raises(ValueError, match="source's queries must be shaped as q"):
        injected_attention(*x.values(), impl=impl)


@ours
@pytest.mark.parametrize("keys", [77, 300])
def test_large_scores_do_not_overflow(keys, impl):
    q, k, v = PLAIN.inputs((2, 1, 63, keys, 40), torch.float32, device_of(impl))
    exact = PLAIN.results("reference", [30 * q.double(), 30 * k.double(), v.double()])
    for found, e in zip(PLAIN.results(impl, [30 * q, 30 * k, v]), exact, strict=True):
        torch.testing.assert_close(found.double(), e, rtol=1e-2, atol=5e-2)


@ours
@pytest.mark.parametrize("shape", [(1, 2, 33, 77, 40), (1, 1, 20, 140, 24)])
def test_log_sum_exp(shape, impl):
    q, k, v = PLAIN.inputs(shape, torch.float32, device_of(impl))
    scores = q.double() @ k.double().transpose(-1, -2) / shape[-1] ** 0.5
    _, lse = backend("attention", impl).forward(q, k, v)
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse.double(), torch.logsumexp(scores, -1), rtol=0, atol=3e-6)


@by_triton
@pytest.mark.parametrize("tile", [Tile(16, 32, 4, 1), Tile(128, 128, 8, 2), Tile(32, 64, 4, 3)])
@pytest.mark.parametrize("keys", [77, 150])
def test_every_tile_gives_the_same_within_rounding(tile, keys, impl):
    q, k, v = PLAIN.inputs((1, 1, 70, keys, 40), torch.float32, device_of(impl))
    module = backend("attention", impl)
    out, lse = module.forward(q, k, v, tile=tile)
    found = (out, *module.backward(torch.ones_like(out), q, k, v, out, lse, tile=tile))
    truth = PLAIN.results("reference", [q.double(), k.double(), v.double()], torch.ones_like(out))
    for actual, e in zip(found, truth, strict=True):
        torch.testing.assert_close(actual.double(), e, rtol=0, atol=1e-5)


@by_triton
def test_head_sizes_that_spill_registers_are_refused(impl):
    module = backend("attention", impl)
    device = torch.device(device_of(impl))
    assert module.unsupported(device, torch.float16, (160,)) is None
    assert "1 to 160, not 280" in module.unsupported(device, torch.float16, (280,))


@pytest.mark.parametrize("impl", [pytest.param("cpp", marks=marks("cpp"))])
def test_without_openmp_threads_are_started(impl):
    inputs = PLAIN.inputs((4, 2, 63, 77, 40), torch.float32)
    expected = PLAIN.results(impl, inputs)
    library, openmp, threads = native.load(), native._openmp_of_torch(), torch.get_num_threads()
    library.fastdigin_use_openmp(None, None)
    try:
        torch.set_num_threads(3)
        for a, e in zip(PLAIN.results(impl, inputs), expected, strict=True):
            assert torch.equal(a, e)
    finally:
        torch.set_num_threads(threads)
        library.fastdigin_use_openmp(*openmp)
