"""The U-Net's attention layers with fastdigin's processors; edits: contracts/test_sampler.py."""

import pytest
import torch
from tiny import LATENT_SHAPE, assert_near, normal

from fastdigin.models.attention import AttentionControl, SourceAttention, attention_map
from fastdigin_kernels.attention.reference import attention_map_reference

PROMPTS = ["a photo of a red sneaker", "a cat on grass"]
T = torch.tensor([500, 20])


@pytest.fixture(scope="module")
def inputs(tiny):
    return normal(2, *LATENT_SHAPE), tiny.model.encode_prompts(PROMPTS)


def test_the_output_is_that_of_diffusers_own_processors(tiny, inputs):
    z, text = inputs
    assert_near(tiny.model.predict(z, T, text), tiny.pipe.unet(z, T, text).sample, 1e-12)


def test_every_cross_attention_layer_is_recorded(tiny, inputs):
    z, text = inputs
    record = {}
    output = tiny.model.predict(z, T, text, AttentionControl(store=record))
    assert torch.equal(output, tiny.model.predict(z, T, text)), "recording must not change a bit"
    names = {n.removesuffix(".processor") for n in tiny.pipe.unet.attn_processors if "attn2" in n}
    assert set(record) == names and len(names) == 7
    for queries, keys in record.values():
        assert queries.shape[:2] == keys.shape[:2] == (2, 2)
        assert keys.shape[-2] == 16 and not queries.requires_grad


@pytest.mark.parametrize(
    ("head_size", "shared", "kept"),
    [
        (8, True, "queries"),
        (16, True, "queries"),
        (17, True, "map"),
        (8, False, "queries"),
        (9, False, "map"),
    ],
)
def test_the_smaller_of_queries_and_map_is_kept(head_size, shared, kept):
    """Keys that serve all steps count nothing; those of every step count as much as queries."""
    queries, keys = normal(2, 3, 25, head_size), normal(2, 3, 16, head_size, seed=1)
    source = SourceAttention.smallest(queries, keys, keys_are_shared=shared)
    if kept == "queries":
        assert source.tensor is queries and source.keys is keys
    else:
        assert source.keys is None and source.tensor.shape == (2, 3, 25, 16)
        torch.testing.assert_close(source.tensor, attention_map(queries, keys))


@pytest.mark.parametrize("size", [1, 4, 40, 160])
def test_attention_map_is_a_softmax_over_the_tokens(size):
    queries, keys = normal(1, 2, 9, size), normal(1, 2, 5, size, seed=1)
    scores = torch.einsum("bhnd,bhld->bhnl", queries, keys) / size**0.5
    expected = scores.exp() / scores.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(attention_map(queries, keys), expected)
    single = [x.float() for x in (queries, keys)]
    usual = torch.softmax(single[0] @ single[1].transpose(-1, -2) * size**-0.5, -1)
    assert torch.equal(attention_map(*single), usual), "in fp32 nothing changes"


@pytest.mark.parametrize(("size", "value"), [(40, 60), (64, 80), (160, 60)])
def test_attention_maps_in_fp16_do_not_overflow(size, value):
    """Q K^T is beyond 65504, what the softmax takes is not."""
    queries = torch.full((1, 1, 3, size), float(value)).half()
    keys = torch.stack([queries[0, 0, 0], queries[0, 0, 0] / 2])[None, None]
    assert (queries @ keys.transpose(-1, -2)).isinf().any()
    for function in (attention_map, attention_map_reference):
        expected = torch.tensor([1.0, 0.0]).half().expand(1, 1, 3, 2)
        assert torch.equal(function(queries, keys), expected)
