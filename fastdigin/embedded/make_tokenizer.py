"""Makes the embedded model's tokenizer: CLIP's byte-pair encoding with a vocabulary of this world.

Every word of the world's prompts is one token, everything else falls apart into shorter pieces, as
rare words do in CLIP's own vocabulary.
"""

import json
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from fastdigin.embedded import BACKGROUNDS, COLOURS, GARMENTS

MAX_LENGTH = 16
"""Tokens of a prompt, with start, end and padding."""

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = ("a", "photo", "of", "on", *GARMENTS, *COLOURS, *BACKGROUNDS)


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes the four files of a CLIP tokenizer into ``folder`` and reads them back."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = _vocabulary_and_merges()
    special = {"bos_token": _START, "eos_token": _END, "pad_token": _END, "unk_token": _END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        **special,
    }
    for name, content in (
        ("vocab.json", {token: number for number, token in enumerate(vocabulary)}),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", special),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def _vocabulary_and_merges() -> tuple[list[str], list[tuple[str, str]]]:
    symbols = list(bytes_to_unicode().values())
    vocabulary = symbols + [symbol + "</w>" for symbol in symbols]
    merges: dict[tuple[str, str], None] = {}
    # Longest words first: a merge of a short word then never splits a long one.
    for word in sorted(_WORDS, key=lambda word: (-len(word), word)):
        left, *rest = [*word[:-1], word[-1] + "</w>"]
        for right in rest:
            merges[left, right] = None
            left += right
    vocabulary += [left + right for left, right in merges]
    return [*vocabulary, _START, _END], list(merges)
