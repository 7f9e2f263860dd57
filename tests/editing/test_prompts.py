"""Word mapping of prompt-to-prompt, with the packaged tokenizer."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from fastdigin.editing.prompts import phrase_tokens, replace_phrase, token_mapping
from fastdigin.errors import UserError

LENGTH = 16


def tokens(model, text):
    return model.tokenizer.convert_ids_to_tokens(
        model.tokenizer(text, add_special_tokens=False, padding=False).input_ids
    )


def rows_of(mapping, column):
    """{target token: share} of one source token."""
    return {int(r): float(mapping[r, column]) for r in mapping[:, column].nonzero()[:, 0]}


def test_the_tokenizer_splits_unknown_words(tiny):
    """What the tests below rely on."""
    assert tokens(tiny.model, "a red sneaker") == ["a</w>", "red</w>", "sneaker</w>"]
    assert tokens(tiny.model, "cat") == ["c", "a", "t</w>"]
    assert tokens(tiny.model, "zebra") == ["z", "e", "br", "a</w>"]


def test_unchanged_prompts_map_to_themselves(tiny):
    for prompt in ("a photo of a red sneaker on grass", "a zebra", ""):
        assert torch.equal(token_mapping(tiny.model, prompt, prompt), torch.eye(LENGTH))


def test_one_token_by_one_token(tiny):
    mapping = token_mapping(tiny.model, "a photo of a sneaker", "a photo of a boot")
    assert torch.equal(mapping, torch.eye(LENGTH))


def test_as_many_tokens_map_one_by_one(tiny):
    mapping = token_mapping(tiny.model, "a cat on grass", "a dog on grass")
    assert len(tokens(tiny.model, "dog")) == 3
    assert torch.equal(mapping, torch.eye(LENGTH))


def test_one_token_becomes_several(tiny):
    """The mass of "boot" is divided evenly; what follows moves by two."""
    mapping = token_mapping(tiny.model, "a boot on grass", "a cat on grass")
    assert rows_of(mapping, 0) == {0: 1}  # start of text
    assert rows_of(mapping, 1) == {1: 1}  # a
    assert rows_of(mapping, 2) == pytest.approx({2: 1 / 3, 3: 1 / 3, 4: 1 / 3})
    assert rows_of(mapping, 3) == {5: 1}  # on
    assert rows_of(mapping, 4) == {6: 1}  # grass
    for column in range(5, LENGTH):  # end of text and padding, in order, the last ones together
        assert rows_of(mapping, column) == {min(column + 2, LENGTH - 1): 1}


def test_several_tokens_become_one(tiny):
    mapping = token_mapping(tiny.model, "a cat on grass", "a boot on grass")
    for column in (2, 3, 4):
        assert rows_of(mapping, column) == {2: 1}
    assert rows_of(mapping, 5) == {3: 1} and rows_of(mapping, 6) == {4: 1}
    for column in range(7, LENGTH):
        assert rows_of(mapping, column) == {column - 2: 1}


def test_several_tokens_become_another_number(tiny):
    """cat (3) to zebra (4): every token of the one to all of the other."""
    mapping = token_mapping(tiny.model, "a cat", "a zebra")
    for column in (2, 3, 4):
        assert rows_of(mapping, column) == pytest.approx(dict.fromkeys((2, 3, 4, 5), 1 / 4))


def test_a_word_inside_a_phrase_stays(tiny):
    """with glasses -> without glasses: only the first word is replaced."""
    source, target = "with glasses", "without glasses"
    mapping = token_mapping(tiny.model, source, target)
    old, new = tokens(tiny.model, "with"), tokens(tiny.model, "without")
    assert len(old) != len(new) > 1
    for column in range(1, 1 + len(old)):
        expected = dict.fromkeys(range(1, 1 + len(new)), 1 / len(new))
        assert rows_of(mapping, column) == pytest.approx(expected)
    shift = len(new) - len(old)
    for column in range(1 + len(old), 1 + len(tokens(tiny.model, source))):
        assert rows_of(mapping, column) == {column + shift: 1}


def test_phrases_of_unequal_length(tiny):
    mapping = token_mapping(tiny.model, "a red sneaker on grass", "a bag on grass")
    assert rows_of(mapping, 2) == {2: 1} and rows_of(mapping, 3) == {2: 1}
    assert rows_of(mapping, 4) == {3: 1} and rows_of(mapping, 5) == {4: 1}


def test_two_changes_do_not_mix(tiny):
    mapping = token_mapping(tiny.model, "a boot on grass", "a cat on brick")
    assert rows_of(mapping, 2) == pytest.approx({2: 1 / 3, 3: 1 / 3, 4: 1 / 3})
    assert rows_of(mapping, 4) == {6: 1}


def test_an_inserted_word_shares_with_the_next(tiny):
    mapping = token_mapping(
        tiny.model, "a photo of a bag on grass", "a photo of a red bag on grass"
    )
    assert rows_of(mapping, 5) == {5: 0.5, 6: 0.5}
    assert rows_of(mapping, 4) == {4: 1} and rows_of(mapping, 6) == {7: 1}


def test_a_word_inserted_at_the_end_shares_with_the_one_before(tiny):
    mapping = token_mapping(tiny.model, "a bag", "a bag on grass")
    assert rows_of(mapping, 2) == pytest.approx({2: 1 / 3, 3: 1 / 3, 4: 1 / 3})
    assert rows_of(mapping, 3) == {5: 1}


def test_a_deleted_word_gives_its_mass_to_the_next(tiny):
    mapping = token_mapping(tiny.model, "a photo of a red bag", "a photo of a bag")
    assert rows_of(mapping, 5) == {5: 1} and rows_of(mapping, 6) == {5: 1}


def test_a_word_deleted_at_the_end_gives_its_mass_to_the_one_before(tiny):
    mapping = token_mapping(tiny.model, "a bag on grass", "a bag")
    assert [rows_of(mapping, column) for column in (2, 3, 4)] == [{2: 1}] * 3


def test_nothing_in_common(tiny):
    mapping = token_mapping(tiny.model, "red bag", "boot on grass")
    for column in (1, 2):
        assert rows_of(mapping, column) == pytest.approx({1: 1 / 3, 2: 1 / 3, 3: 1 / 3})


def test_case_does_not_matter(tiny):
    assert torch.equal(token_mapping(tiny.model, "A Red bag", "a red bag"), torch.eye(LENGTH))


def test_columns_sum_to_one_for_any_prompts(tiny):
    """And every word of the target that stands for something gets some of it."""
    words, rng = ["a", "red", "cat", "bag", "on", "zebra"], random.Random(0)
    prompts = [" ".join(rng.choices(words, k=rng.randint(0, 4))) for _ in range(40)]
    prompts = [p for p in prompts if len(tokens(tiny.model, p)) <= LENGTH - 2]
    for source, target in itertools.product(prompts, filter(None, prompts[:12])):
        mapping = token_mapping(tiny.model, source, target)
        assert torch.allclose(mapping.sum(0), torch.ones(LENGTH)), (source, target)
        assert (mapping >= 0).all()
        if source:
            used = mapping[1 : 1 + len(tokens(tiny.model, target))].sum(1)
            assert (used > 0).all(), (source, target)


def test_a_full_prompt_keeps_its_columns(tiny):
    """No padding at all on one side."""
    full = " ".join(["a"] * (LENGTH - 2))
    for source, target in ((full, "a"), ("a", full), (full, full)):
        mapping = token_mapping(tiny.model, source, target)
        assert torch.allclose(mapping.sum(0), torch.ones(LENGTH))


def test_prompts_that_are_too_long_are_refused(tiny):
    with pytest.raises(UserError, match="takes 17 tokens, the text encoder reads 16"):
        token_mapping(tiny.model, "a bag", " ".join(["a"] * 15))


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
    ("prompt", "source"), [("a photo of a cat", "dog"), ("a catalogue", "cat"), ("a cat", " ")]
)
def test_replace_phrase_needs_the_phrase(prompt, source):
    with pytest.raises(UserError, match="does not contain the source"):
        replace_phrase(prompt, source, "bird")


@pytest.mark.parametrize(
    ("prompt", "phrase", "expected"),
    [
        ("a photo of a sneaker", "sneaker", [5]),
        ("a photo of a cat", "cat", [5, 6, 7]),
        ("a Red sneaker on grass", "red Sneaker", [2, 3]),
        ("a bag on a bag", "bag", [2, 5]),
        ("a cat on a cat", "cat", [2, 3, 4, 7, 8, 9]),
        ("a photo of a", "a", [1, 4]),
    ],
)
def test_phrase_tokens(tiny, prompt, phrase, expected):
    assert phrase_tokens(tiny.model, prompt, phrase) == expected


def test_phrase_tokens_beside_punctuation(tiny):
    """The comma is a token of its own and may come along."""
    assert phrase_tokens(tiny.model, "a boot, on grass", "boot")[0] == 2
    assert set(phrase_tokens(tiny.model, "a boot, on grass", "grass")) == {5}


@pytest.mark.parametrize("phrase", ["dog", "red boot", "boo"])
def test_phrase_tokens_need_the_phrase(tiny, phrase):
    with pytest.raises(UserError, match="does not contain"):
        phrase_tokens(tiny.model, "a photo of a boot", phrase)
