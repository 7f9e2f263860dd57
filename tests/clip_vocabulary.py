"""CLIP's own byte-pair vocabulary, which open_clip's package contains."""

import gzip
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

LENGTH = 77


def clip_tokenizer(folder: Path, pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """The tokenizer of Stable Diffusion 1.x, as its repository's four files.

    pad_token: "!" for Stable Diffusion 2.x and the second one of SDXL. Skips the test where
    open_clip is not installed.
    """
    package = find_spec("open_clip")
    if package is None:
        pytest.skip("open_clip_torch, which has CLIP's vocabulary, is not installed")
    path = Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    symbols = _byte_symbols()
    vocabulary = symbols + [symbol + "</w>" for symbol in symbols]
    vocabulary += ["".join(merge.split()) for merge in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    special = {
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>", "pad_token": pad_token,
    }  # fmt: skip
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **special}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("vocab.json", {token: number for number, token in enumerate(vocabulary)}),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", special),
    ):
        (folder / name).write_text(json.dumps(content))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def _byte_symbols() -> list[str]:
    """Printable stand-ins of the 256 bytes, in the order of CLIP's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
