"""Which tokens of an edited prompt stand for which tokens of the source prompt."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

import torch
from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.models.diffusion import LatentDiffusion


def replace_phrase(prompt: str, source: str, target: str) -> str:
    """``prompt`` with the phrase ``source`` replaced. UserError if it does not occur.

    Whole words only, any case: "cat" is not found in "catalogue".
    """
    pattern = rf"(?<!\w){re.escape(source.strip())}(?!\w)"
    if not source.strip() or re.search(pattern, prompt, flags=re.IGNORECASE) is None:
        raise UserError(
            f"prompt {prompt!r} does not contain the source {source!r}: name it in the prompt, or "
            "name the source as the prompt does"
        )
    return re.sub(pattern, lambda _: target.strip(), prompt, flags=re.IGNORECASE)


def phrase_tokens(model: LatentDiffusion, prompt: str, phrase: str) -> list[int]:
    """Positions of the tokens of ``phrase`` in ``prompt``, every occurrence."""
    words, wanted = prompt.lower().split(), phrase.lower().split()
    spans, positions = _token_spans(model, prompt), []
    for start in range(len(words) - len(wanted) + 1):
        if [w.strip(".,;:!?\"'") for w in words[start : start + len(wanted)]] == wanted:
            positions += [p for span in spans[start : start + len(wanted)] for p in span]
    if not positions:
        raise UserError(f"prompt {prompt!r} does not contain {phrase!r}")
    return positions


def token_mapping(model: LatentDiffusion, source: str, target: str) -> Tensor:
    """M (L, L), target x source tokens, every column summing to 1.

    Unchanged words map to themselves. A replaced phrase of as many tokens maps token by token;
    otherwise each source token's mass is divided evenly among the phrase's target tokens. An
    inserted or deleted word shares the mass of the word after it (before it, at the end).
    """
    length = model.text_length
    source_spans, target_spans = _token_spans(model, source), _token_spans(model, target)
    mapping = torch.zeros(length, length)
    for source_words, target_words in _aligned_words(source, target):
        rows = [p for w in target_words for p in target_spans[w]]
        columns = [p for w in source_words for p in source_spans[w]]
        if len(rows) == len(columns):
            mapping[rows, columns] = 1.0
        else:
            mapping[torch.tensor(rows)[:, None], torch.tensor(columns)] = 1 / len(rows)
    mapping[0, 0] = 1.0  # start of text
    source_end = 1 + sum(len(span) for span in source_spans)
    target_end = 1 + sum(len(span) for span in target_spans)
    for column in range(source_end, length):  # end of text and padding, in order
        mapping[min(column - source_end + target_end, length - 1), column] = 1.0
    return mapping


def _aligned_words(source: str, target: str) -> list[tuple[list[int], list[int]]]:
    """Groups of (source word numbers, target word numbers) that stand for each other."""
    a, b = source.lower().split(), target.lower().split()
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


def _token_spans(model: LatentDiffusion, prompt: str) -> list[list[int]]:
    """Token positions of each whitespace-separated word; position 0 is the start of text."""
    ids = model.tokenize(prompt)
    spans, position = [], 1
    for word in prompt.split():
        pieces = model.tokenizer(word, add_special_tokens=False, padding=False).input_ids
        if ids[position : position + len(pieces)] != pieces:
            raise UserError(
                f"prompt {prompt!r} cannot be split into words: the tokenizer joins {word!r} with "
                "its neighbour"
            )
        spans.append(list(range(position, position + len(pieces))))
        position += len(pieces)
    return spans
