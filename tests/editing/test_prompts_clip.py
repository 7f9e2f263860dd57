"""Word mapping of prompt-to-prompt with CLIP's own vocabulary, for 1.x, 2.x and XL models."""

from __future__ import annotations

import copy

import pytest
import torch
from clip_vocabulary import LENGTH, clip_tokenizer

from fastdigin.editing.prompts import phrase_tokens, replace_phrase, token_mapping
from fastdigin.errors import UserError

END, PAD_OF_2 = 49407, 0


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    """The tiny model, reading with CLIP's tokenizer."""
    other = copy.copy(tiny.model)
    other.tokenizer = clip_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return other


@pytest.fixture(scope="module")
def model_2(tiny, tmp_path_factory):
    """With the pad token of Stable Diffusion 2.x."""
    other = copy.copy(tiny.model)
    other.tokenizer = clip_tokenizer(tmp_path_factory.mktemp("tokenizer"), pad_token="!")
    return other


def pieces(model, text):
    return model.tokenizer.convert_ids_to_tokens(model.tokenizer(text).input_ids)[1:-1]


def moved(mapping):
    """{source token: {target token: share}} where it is not the identity."""
    columns = {}
    for column in range(LENGTH):
        rows = {int(r): float(mapping[r, column]) for r in mapping[:, column].nonzero()[:, 0]}
        if rows != {column: 1.0}:
            columns[column] = rows
    return columns


@pytest.mark.parametrize(
    "text",
    ["a photo of a cat", "An Egyptian cat, sitting; it's 42!", "hummingbird's déjà-vu", "  a\n b "],
)
def test_the_vocabulary_is_clips(model, text):
    """As open_clip's own tokenizer splits it."""
    from open_clip import SimpleTokenizer

    assert model.tokenize(text) == [
        int(n) or END for n in SimpleTokenizer(context_length=LENGTH)(text)[0]
    ]  # which pads with 0


def test_what_the_tests_below_rely_on(model):
    assert pieces(model, "cat") == ["cat</w>"] and pieces(model, "dog") == ["dog</w>"]
    assert pieces(model, "schipperke") == ["schi", "pper", "ke</w>"]
    assert pieces(model, "cat, it's") == ["cat</w>", ",</w>", "it</w>", "'s</w>"]


def test_one_word_by_one_word(model):
    assert moved(token_mapping(model, "a photo of a cat", "a photo of a dog")) == {}


def test_a_word_of_several_tokens(model):
    """cat -> schipperke: a third each; what follows moves by two."""
    mapping = moved(token_mapping(model, "a cat on grass", "a schipperke on grass"))
    assert mapping[2] == pytest.approx({2: 1 / 3, 3: 1 / 3, 4: 1 / 3})
    assert mapping[3] == {5: 1} and mapping[4] == {6: 1} and mapping[5] == {7: 1}
    back = moved(token_mapping(model, "a schipperke on grass", "a cat on grass"))
    assert [back[column] for column in (3, 4, 5)] == [{2: 1}, {2: 1}, {3: 1}]


def test_repeated_words(model):
    """Every occurrence is mapped to its own successor, and told apart from the others."""
    source = "a cat and a cat near a cat"
    mapping = token_mapping(model, source, replace_phrase(source, "cat", "Egyptian cat"))
    for old, new in ((2, (2, 3)), (5, (6, 7)), (8, (10, 11))):
        assert moved(mapping)[old] == pytest.approx(dict.fromkeys(new, 0.5))
    assert phrase_tokens(model, source, "cat") == [2, 5, 8]
    assert phrase_tokens(model, "a tabby cat and a tabby cat", "tabby cat") == [2, 3, 6, 7]


@pytest.mark.parametrize("mark", [",", ".", "!", "?!", ";", "'s", '"', ")"])
def test_punctuation_keeps_to_itself(model, mark):
    """It stands for itself, whatever happens to the word before it."""
    extra = len(pieces(model, "cat" + mark)) - 1
    mapping = token_mapping(model, f"a cat{mark} on grass", f"a schipperke{mark} on grass")
    assert moved(mapping)[2] == pytest.approx({2: 1 / 3, 3: 1 / 3, 4: 1 / 3})
    for n in range(extra):
        assert moved(mapping)[3 + n] == {5 + n: 1}
    assert phrase_tokens(model, f'a "schipperke{mark} on grass', "schipperke") == [3, 4, 5]


def test_words_inside_words_are_not_meant(model):
    with pytest.raises(UserError, match="does not contain 'cat'"):
        phrase_tokens(model, "a catalogue of tomcats", "cat")
    assert phrase_tokens(model, "a cat-like dog", "cat") == [2]


@pytest.mark.parametrize("which", ["model", "model_2"])
def test_77_tokens_are_the_most(request, which):
    """75 words fit, one more does not; a target that grows too long is refused as well."""
    model = request.getfixturevalue(which)
    pad = END if which == "model" else PAD_OF_2
    assert model.tokenize("cat")[2:] == [END] + [pad] * (LENGTH - 3)
    full = " ".join(["cat"] * (LENGTH - 2))
    mapping = token_mapping(model, full, full)
    assert torch.equal(mapping, torch.eye(LENGTH))
    with pytest.raises(UserError, match="takes 78 tokens, the text encoder reads 77: shorten it"):
        token_mapping(model, full, full + " cat")
    with pytest.raises(UserError, match="takes 79 tokens"):
        token_mapping(model, full, "schipperke" + full.removeprefix("cat"))
    shorter = token_mapping(model, full, " ".join(["cat"] * 70))
    assert torch.allclose(shorter.sum(dim=0), torch.ones(LENGTH))


def test_the_end_of_a_longer_target_is_not_lost(model):
    """Source padding has nowhere to move: it gathers on the last token; columns still sum to 1."""
    target = "a schipperke " + " ".join(["dog"] * 71)
    mapping = token_mapping(model, "a cat", target)
    assert torch.allclose(mapping.sum(dim=0), torch.ones(LENGTH)) and (mapping >= 0).all()
    assert mapping[LENGTH - 1].sum() > 60


def test_padding_does_not_change_the_mapping(model, model_2):
    for source, target in (("a cat!", "a schipperke!"), ("a cat", "a dog on grass")):
        assert torch.equal(*(token_mapping(m, source, target) for m in (model, model_2)))
