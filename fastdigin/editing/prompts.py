"""Which tokens of an edited prompt stand for which tokens of the source prompt."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch
from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.models.text import expanded

_END_OF_WORD = "</w>"


def replace_phrase(prompt: str, source: str, target: str) -> str:
    """``prompt`` with every occurrence of the phrase ``source`` replaced by ``target``.

    Whole words only, any case: "cat" is not found in "catalogue".

    Raises:
        UserError: the phrase does not occur.

    Example:
        >>> replace_phrase("a photo of a cat", "cat", "dog")
        'a photo of a dog'
    """
    pattern = rf"(?<!\w){re.escape(source.strip())}(?!\w)"
    if not source.strip() or re.search(pattern, prompt, flags=re.IGNORECASE) is None:
        raise UserError(
            f"prompt {prompt!r} does not contain the source {source!r}: name it in the prompt, or "
            "name the source as the prompt does"
        )
    return re.sub(pattern, lambda _: target.strip(), prompt, flags=re.IGNORECASE)


def phrase_tokens(model: LatentDiffusion, prompt: str, phrase: str) -> list[int]:
    """Positions of the tokens of ``phrase`` in ``prompt``, every occurrence.

    Whole words only, any case; punctuation beside a word is no part of it.

    Raises:
        UserError: the phrase does not occur, or the prompt is too long.
    """
    words = _words(model, prompt)
    wanted = [word.text for word in _words(model, phrase)]
    positions = []
    for start in range(len(words) - len(wanted) + 1):
        found = words[start : start + len(wanted)]
        if wanted and [word.text for word in found] == wanted:
            positions += [p for word in found for p in word.positions]
    if not positions:
        raise UserError(f"prompt {prompt!r} does not contain {phrase!r}")
    return positions


def token_mapping(model: LatentDiffusion, source: str, target: str) -> Tensor:
    """Which target tokens attention to each source token goes to.

    Unchanged words map to themselves. A replaced phrase of as many tokens maps token by token;
    otherwise each source token's mass is divided evenly among the phrase's target tokens. An
    inserted or deleted word shares the mass of the word after it (before it, at the end).

    Args:
        source, target: the old and the new prompt.

    Returns:
        M (L, L), target x source tokens, every column summing to 1.

    Raises:
        UserError: a prompt is too long.

    Source: Hertz et al. 2022 (prompt-to-prompt, arXiv 2208.01626), section 3.2.
    """
    length = model.text_length
    old, new = _words(model, source), _words(model, target)
    mapping = torch.zeros(length, length)
    for old_words, new_words in _aligned_words(old, new):
        columns = [p for w in old_words for p in old[w].positions]
        rows = [p for w in new_words for p in new[w].positions]
        if len(rows) == len(columns):
            mapping[rows, columns] = 1.0
        else:
            mapping[torch.tensor(rows)[:, None], torch.tensor(columns)] = 1 / len(rows)
    mapping[0, 0] = 1.0  # start of text
    source_end, target_end = (1 + sum(len(w.positions) for w in words) for words in (old, new))
    for column in range(source_end, length):  # end of text and padding, in order
        mapping[min(column - source_end + target_end, length - 1), column] = 1.0
    return mapping


@dataclass(frozen=True)
class _Word:
    """A word or a punctuation mark, lower case, and where its tokens stand in the prompt."""

    text: str
    positions: list[int]


def _aligned_words(
    source: Sequence[_Word], target: Sequence[_Word]
) -> list[tuple[list[int], list[int]]]:
    """Groups of (source word numbers, target word numbers) that stand for each other."""
    a, b = ([word.text for word in words] for words in (source, target))
    groups: list[tuple[list[int], list[int]]] = []
    for kind, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            groups += [([i], [j]) for i, j in zip(range(a0, a1), range(b0, b1), strict=True)]
        else:
            groups.append((list(range(a0, a1)), list(range(b0, b1))))
    merged: list[tuple[list[int], list[int]]] = []
    carried: tuple[list[int], list[int]] = ([], [])
    for group in groups:
        group = (carried[0] + group[0], carried[1] + group[1])
        carried = ([], [])
        if group[0] and group[1]:
            merged.append(group)
        else:
            carried = group
    if any(carried) and merged:
        merged[-1] = (merged[-1][0] + carried[0], merged[-1][1] + carried[1])
    return merged


def _words(model: LatentDiffusion, prompt: str) -> list[_Word]:
    """The prompt as the tokenizer splits it; position 0 is the start of text.

    CLIP's byte-pair encoding marks the last piece of each word, but for tokens that were added
    to it (textual inversion, a "!" that pads): each of them is a word.
    """
    model.tokenize(prompt)  # raises where it is too long
    ids = model.tokenizer(expanded(model.tokenizer, prompt)).input_ids
    tokens = model.tokenizer.convert_ids_to_tokens(ids)[1:-1]
    added = model.tokenizer.get_added_vocab()
    words, start = [], 0
    for end, token in enumerate(tokens, start=1):
        if token.endswith(_END_OF_WORD) or token in added or end == len(tokens):
            text = "".join(tokens[start:end]).removesuffix(_END_OF_WORD)
            words.append(_Word(text, list(range(start + 1, end + 1))))
            start = end
    return words
