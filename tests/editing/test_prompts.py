"""Word mapping of prompt-to-prompt, with the packaged tokenizer and with CLIP's own vocabulary."""

import copy
import itertools
import random
from types import SimpleNamespace

import pytest
import torch
from clip_vocabulary import LENGTH as CLIP_LENGTH
from clip_vocabulary import clip_tokenizer

from fastdigin.editing.prompts import phrase_tokens, replace_phrase, token_mapping
from fastdigin.errors import UserError

LENGTH = 16
END, PAD_OF_2 = 49407, 0


def reading_with_clip(tiny, folder, **options):
    """The tiny model, reading with CLIP's tokenizer, of whose words it would have embeddings."""
    other = copy.copy(tiny.model)
    other.tokenizer = clip_tokenizer(folder, **options)
    read = {"vocab_size": END + 1, "max_position_embeddings": CLIP_LENGTH}
    other.text_encoder = SimpleNamespace(config=SimpleNamespace(**read))
    return other


@pytest.fixture(scope="module")
def clip(tiny, tmp_path_factory):
    return reading_with_clip(tiny, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def clip_2(tiny, tmp_path_factory):
    """With the pad token of Stable Diffusion 2.x."""
    return reading_with_clip(tiny, tmp_path_factory.mktemp("tokenizer"), pad_token="!")


def tokens(model, text):
    return model.tokenizer.convert_ids_to_tokens(model.tokenizer(text).input_ids)[1:-1]


def even(*rows):
    """The mass of a source token, divided evenly."""
    return dict.fromkeys(rows, 1 / len(rows))


def columns(mapping, wanted):
    """{source token: {target token: share}} of the wanted source tokens."""
    return {
        column: {int(r): float(mapping[r, column]) for r in mapping[:, column].nonzero()[:, 0]}
        for column in wanted
    }


def assert_maps(mapping, expected):
    found = columns(mapping, expected)
    for column, rows in expected.items():
        assert found[column] == pytest.approx(rows), column


def moved_by(shift, *source_tokens):
    return {n: {n + shift: 1} for n in source_tokens}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a photo of a red sneaker on grass", "a photo of a red sneaker on grass"),
        ("a zebra", "a zebra"),
        ("", ""),
        ("a photo of a sneaker", "a photo of a boot"),  # one token by one token
        ("a cat on grass", "a dog on grass"),  # three by three
        ("A Red bag", "a red bag"),
    ],
)
def test_as_many_tokens_map_one_by_one(tiny, source, target):
    assert torch.equal(token_mapping(tiny.model, source, target), torch.eye(LENGTH))


TO_SEVERAL, TO_ONE = even(2, 3, 4), {2: 1}
MAPPINGS = {
    "one token becomes several, and what follows moves, the last ones together": (
        "a boot on grass", "a cat on grass",
        {0: {0: 1}, 1: {1: 1}, 2: TO_SEVERAL}
        | {n: {min(n + 2, LENGTH - 1): 1} for n in range(3, LENGTH)},
    ),
    "several become one": (
        "a cat on grass", "a boot on grass",
        {2: TO_ONE, 3: TO_ONE, 4: TO_ONE} | moved_by(-2, *range(5, LENGTH)),
    ),
    "several become another number": (
        "a cat", "a zebra", dict.fromkeys((2, 3, 4), even(2, 3, 4, 5))
    ),
    "phrases of unequal length": (
        "a red sneaker on grass", "a bag on grass", {2: TO_ONE, 3: TO_ONE} | moved_by(-1, 4, 5)
    ),
    "two changes do not mix": (
        "a boot on grass", "a cat on brick", {2: TO_SEVERAL} | moved_by(2, 4)
    ),
    "an inserted word shares with the next": (
        "a photo of a bag on grass", "a photo of a red bag on grass",
        {4: {4: 1}, 5: even(5, 6), 6: {7: 1}},
    ),
    "a word inserted at the end shares with the one before": (
        "a bag", "a bag on grass", {2: TO_SEVERAL, 3: {5: 1}}
    ),
    "a deleted word gives its mass to the next": (
        "a photo of a red bag", "a photo of a bag", {5: {5: 1}, 6: {5: 1}}
    ),
    "a word deleted at the end gives its mass to the one before": (
        "a bag on grass", "a bag", dict.fromkeys((2, 3, 4), TO_ONE)
    ),
    "nothing in common": ("red bag", "boot on grass", dict.fromkeys((1, 2), even(1, 2, 3))),
}  # fmt: skip


@pytest.mark.parametrize("case", MAPPINGS)
def test_mappings(tiny, case):
    source, target, expected = MAPPINGS[case]
    assert_maps(token_mapping(tiny.model, source, target), expected)


def test_columns_sum_to_one_for_any_prompts(tiny):
    """And every word of the target that stands for something gets some of it."""
    words, rng = ["a", "red", "cat", "bag", "on", "zebra"], random.Random(0)
    prompts = [" ".join(rng.choices(words, k=rng.randint(0, 4))) for _ in range(40)]
    prompts = [p for p in prompts if len(tokens(tiny.model, p)) <= LENGTH - 2]
    full = " ".join(["a"] * (LENGTH - 2))  # no padding at all on one side
    pairs = [*itertools.product(prompts, filter(None, prompts[:12])), (full, "a"), ("a", full)]
    for source, target in pairs:
        mapping = token_mapping(tiny.model, source, target)
        assert torch.allclose(mapping.sum(0), torch.ones(LENGTH)), (source, target)
        assert (mapping >= 0).all()
        if source not in ("", full) and target != full:
            used = mapping[1 : 1 + len(tokens(tiny.model, target))].sum(1)
            assert (used > 0).all(), (source, target)


def test_words_of_clips_vocabulary(clip):
    """A word of three tokens there and back, and every occurrence of a repeated one."""
    there = {2: TO_SEVERAL} | moved_by(2, 3, 4, 5)
    assert_maps(token_mapping(clip, "a cat on grass", "a schipperke on grass"), there)
    back = {3: {2: 1}, 4: {2: 1}, 5: {3: 1}}
    assert_maps(token_mapping(clip, "a schipperke on grass", "a cat on grass"), back)
    source = "a cat and a cat near a cat"
    twice = token_mapping(clip, source, replace_phrase(source, "cat", "Egyptian cat"))
    assert_maps(twice, {2: even(2, 3), 5: even(6, 7), 8: even(10, 11)})


@pytest.mark.parametrize("mark", [",", "?!", "'s", '"'])
def test_punctuation_keeps_to_itself(clip, mark):
    """It stands for itself, whatever happens to the word before it."""
    extra = len(tokens(clip, "cat" + mark)) - 1
    mapping = token_mapping(clip, f"a cat{mark} on grass", f"a schipperke{mark} on grass")
    assert_maps(mapping, {2: TO_SEVERAL} | moved_by(2, *range(3, 3 + extra)))
    assert phrase_tokens(clip, f'a "schipperke{mark} on grass', "schipperke") == [3, 4, 5]


@pytest.mark.parametrize(("which", "pad"), [("clip", END), ("clip_2", PAD_OF_2)])
def test_77_tokens_are_the_most(request, which, pad):
    """75 words fit, one more does not; a target that grows too long is refused as well."""
    model = request.getfixturevalue(which)
    assert model.tokenize("cat")[2:] == [END] + [pad] * (CLIP_LENGTH - 3)
    full = " ".join(["cat"] * (CLIP_LENGTH - 2))
    assert torch.equal(token_mapping(model, full, full), torch.eye(CLIP_LENGTH))
    with pytest.raises(UserError, match="takes 79 tokens, the text encoder reads 77: shorten it"):
        token_mapping(model, full, "schipperke" + full.removeprefix("cat"))


def test_padding_moves_to_the_end_and_does_not_change_the_mapping(clip, clip_2):
    """Source padding of a longer target gathers on the last token; columns still sum to 1."""
    for source, target in (("a cat!", "a schipperke!"), ("a cat", "a dog on grass")):
        assert torch.equal(*(token_mapping(m, source, target) for m in (clip, clip_2)))
    mapping = token_mapping(clip, "a cat", "a schipperke " + " ".join(["dog"] * 71))
    assert torch.allclose(mapping.sum(dim=0), torch.ones(CLIP_LENGTH)) and (mapping >= 0).all()
    assert mapping[CLIP_LENGTH - 1].sum() > 60


@pytest.mark.parametrize(
    ("prompt", "source", "target", "expected"),
    [
        ("a photo of a cat", "cat", "dog", "a photo of a dog"),
        ("a photo of a Cat.", "cat", "dog", "a photo of a dog."),
        ("a cat and a cat", "cat", "big dog", "a big dog and a big dog"),
        ("a man with glasses", "with glasses", "without glasses", "a man without glasses"),
        ("a cat in a catalogue", "cat", "dog", "a dog in a catalogue"),
        ("a c.t and a cat", "c.t", "dog", "a dog and a cat"),
        ("a cat", " cat ", r" \1 dog ", r"a \1 dog"),
        ("a t-shirt", "t-shirt", "dress", "a dress"),
    ],
)
def test_replace_phrase(prompt, source, target, expected):
    assert replace_phrase(prompt, source, target) == expected


@pytest.mark.parametrize(
    ("which", "prompt", "phrase", "expected"),
    [
        ("tiny", "a photo of a cat", "cat", [5, 6, 7]),
        ("tiny", "a Red sneaker on grass", "red Sneaker", [2, 3]),
        ("tiny", "a cat on a cat", "cat", [2, 3, 4, 7, 8, 9]),
        ("tiny", "a photo of a", "a", [1, 4]),
        ("tiny", "a boot, on grass", "grass", [5]),
        ("clip", "a tabby cat and a tabby cat", "tabby cat", [2, 3, 6, 7]),
        ("clip", "a cat-like dog", "cat", [2]),
    ],
)
def test_phrase_tokens(request, which, prompt, phrase, expected):
    found = request.getfixturevalue(which)
    assert phrase_tokens(getattr(found, "model", found), prompt, phrase) == expected


@pytest.mark.parametrize(
    ("prompt", "phrase"),
    [
        ("a photo of a cat", "dog"), ("a catalogue of tomcats", "cat"), ("a cat", " "),
        ("a photo of a boot", "red boot"),
    ],
)  # fmt: skip
def test_a_phrase_must_occur(clip, prompt, phrase):
    with pytest.raises(UserError, match="does not contain the source"):
        replace_phrase(prompt, phrase, "bird")
    with pytest.raises(UserError, match=f"does not contain '{phrase}'"):
        phrase_tokens(clip, prompt, phrase)
