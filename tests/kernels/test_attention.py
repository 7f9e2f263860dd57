import pytest
import torch

from fastdigin_kernels.attention import api as ops

# (B, H, N image tokens, T target tokens, S source tokens, d): odd lengths on every side, a head
# size of SD 1.x with its 77 tokens, one head, one sample, one source token.
SHAPES = [(2, 3, 13, 7, 5, 8), (1, 1, 33, 77, 77, 40), (3, 2, 5, 9, 11, 16), (1, 2, 17, 6, 1, 3)]


def draw_inputs(shape, dtype=torch.float64):
    batch, heads, image_tokens, target_tokens, source_tokens, size = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*dims):
        return torch.randn(dims, generator=generator, dtype=torch.float64).to(dtype)

    mapping = torch.rand(batch, target_tokens, source_tokens, generator=generator).to(dtype)
    return {
        "q": normal(batch, heads, image_tokens, size).requires_grad_(),
        "k": normal(batch, heads, target_tokens, size).requires_grad_(),
        "v": normal(batch, heads, target_tokens, size).requires_grad_(),
        "source_q": normal(batch, heads, image_tokens, size),
        "source_k": normal(batch, heads, source_tokens, size),
        "mapping": mapping / mapping.sum(1, keepdim=True),
        "weight": torch.linspace(0.25, 1, batch, dtype=dtype),
    }


def output_and_gradients(function, *args):
    wanted = [arg for arg in args if arg.requires_grad]
    output = function(*args)
    probe = torch.cos(torch.arange(output.numel(), dtype=output.dtype)).view_as(output)
    return (output, *torch.autograd.grad(output, wanted, probe, allow_unused=True))


def assert_same(actual, expected, tolerance=1e-12):
    for name, a, e in zip(("output", "dq", "dk", "dv"), actual, expected, strict=True):
        torch.testing.assert_close(
            a, e, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_agrees_with_its_reference(shape):
    x = draw_inputs(shape)
    args = (x["q"], x["k"], x["v"])
    assert_same(
        output_and_gradients(ops.attention, *args),
        output_and_gradients(ops.attention_reference, *args),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_injection_agrees_with_materialised_maps(shape):
    args = tuple(draw_inputs(shape).values())
    assert_same(
        output_and_gradients(ops.injected_attention, *args),
        output_and_gradients(ops.injected_attention_reference, *args),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_stored_map_agrees_with_materialised_maps(shape):
    x = draw_inputs(shape)
    source_map = ops.attention_map_reference(x["source_q"], x["source_k"])
    args = (x["q"], x["k"], x["v"], source_map, x["mapping"], x["weight"])
    expected = output_and_gradients(ops.mapped_attention_reference, *args)
    assert_same(output_and_gradients(ops.mapped_attention, *args), expected)
    assert_same(output_and_gradients(ops.injected_attention, *x.values()), expected)


def test_weight_is_per_sample():
    x = draw_inputs(SHAPES[0])
    x["weight"] = torch.tensor([0.0, 1.0], dtype=torch.float64)
    output = ops.injected_attention(*x.values())
    plain = ops.attention(x["q"], x["k"], x["v"])
    mapped_values = torch.einsum("bts,bhtd->bhsd", x["mapping"], x["v"])
    injected = ops.attention(x["source_q"], x["source_k"], mapped_values)
    torch.testing.assert_close(output[0], plain[0], rtol=0, atol=0)
    torch.testing.assert_close(output[1], injected[1])


def test_identity_mapping_of_the_same_image_changes_nothing():
    x = draw_inputs((2, 2, 9, 6, 6, 8))
    identity = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    output = ops.injected_attention(x["q"], x["k"], x["v"], x["q"], x["k"], identity, x["weight"])
    torch.testing.assert_close(output, ops.attention(x["q"], x["k"], x["v"]))


def test_mass_of_a_split_word_reaches_all_its_tokens():
    """A source word divided among two target tokens reads the mean of their values."""
    values = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]], dtype=torch.float64)[None, None]
    mapping = torch.tensor([[[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    source_map = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)[None, None]
    query = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    keys = torch.zeros(1, 1, 3, 2, dtype=torch.float64)
    output = ops.mapped_attention(query, keys, values, source_map, mapping, torch.ones(1))
    assert output[0, 0].tolist() == [[0.5, 1.0], [5.0, 5.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_stays_near_the_float64_result(dtype):
    """No worse than four times what the reference loses in the same precision."""
    exact = ops.injected_attention_reference(*draw_inputs(SHAPES[1]).values())
    args = tuple(draw_inputs(SHAPES[1], dtype).values())
    error = (ops.injected_attention(*args).double() - exact).abs().max()
    reference_error = (ops.injected_attention_reference(*args).double() - exact).abs().max()
    assert ops.injected_attention(*args).dtype == dtype
    assert error <= 4 * reference_error


def test_wrong_shapes_are_refused():
    x = draw_inputs(SHAPES[0])
    with pytest.raises(AssertionError, match="target tokens"):
        ops.injected_attention(*{**x, "mapping": x["mapping"].transpose(1, 2)}.values())
    with pytest.raises(AssertionError, match="one number per sample"):
        ops.injected_attention(*{**x, "weight": torch.ones(1)}.values())
