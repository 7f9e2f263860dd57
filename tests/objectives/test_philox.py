"""The generator against the vectors that its authors published, and what is made of its words."""

import math

import numpy as np
import pytest
import torch

from fastdigin.objectives.philox import key_words, normal, philox, uniform, words

KEYS = [(7, 0, 1), (-3, 19, 2), (2**63, 5, 0)]
WORDS = key_words(KEYS, "cpu")

VECTORS = [  # philox4x32 10 of kat_vectors in Random123: counter, key, expected
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_published_vectors(counter, key, expected):
    counter, key = ([torch.tensor(int(x, 16)) for x in text.split()] for text in (counter, key))
    assert " ".join(f"{int(x):08x}" for x in philox(counter, key)) == expected


def by_hand(key, count, stream):
    """The same in Python's integers, a block at a time."""
    seed, iteration, step = key
    found = []
    for block in range(math.ceil(count / 4)):
        a, b, c, d = block, stream, iteration, step
        low, high = seed % 2**32, seed // 2**32 % 2**32
        for _ in range(10):
            first, second = a * 0xD2511F53, c * 0xCD9E8D57
            a, b = second // 2**32 ^ b ^ low, second % 2**32
            c, d = first // 2**32 ^ d ^ high, first % 2**32
            low, high = (low + 0x9E3779B9) % 2**32, (high + 0xBB67AE85) % 2**32
        found += [a, b, c, d]
    return found[:count]


@pytest.mark.parametrize("count", [1, 4, 7])
def test_words_are_those_of_each_key_whatever_the_batch(count):
    together = words(WORDS, count, 1)
    assert together.tolist() == [by_hand(key, count, 1) for key in KEYS]
    assert torch.equal(together[1:2], words(WORDS[1:2], count, 1))
    assert not torch.equal(together, words(WORDS, count, 0))


def test_numbers_are_those_of_the_words():
    """Uniform ones to the bit; normal ones to 4 units in the last place of fp32."""
    drawn = words(WORDS, 1000, 1).numpy()
    assert np.array_equal(uniform(WORDS, 1000, 1).numpy(), (drawn + 0.5) / 2**32)
    pairs = ((drawn.astype(np.float32) + np.float32(0.5)) * np.float32(2**-32)).astype(np.float64)
    # The angle is rounded to fp32, as it is on every device.
    angle = (np.float32(2 * math.pi) * pairs[:, 1::2].astype(np.float32)).astype(np.float64)
    radius = np.sqrt(-2 * np.log(pairs[:, ::2]))
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(3, -1)
    found = normal(WORDS, 1000, 1).double().numpy()
    assert (np.abs(found - expected) <= 4 * np.spacing(np.abs(expected).astype(np.float32))).all()


def test_nothing_waits_for_the_device():
    keys = key_words(KEYS, "meta")
    assert normal(keys, 5, 1).shape == uniform(keys, 5, 1).shape == (3, 5)
