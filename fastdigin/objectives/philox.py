"""Random numbers that depend only on what they are for: Philox 4x32-10 on any device.

A counter-based generator is a function from (key, counter) to four random words; there is no state
that batching or recomputation could change. The words are integers, the same on every device.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Four random words from four words of counter and two of key.

    Args:
        counter, key: int64 tensors of values below 2^32 that can be broadcast together.

    Returns:
        Four int64 tensors of values below 2^32.

    Example:
        >>> zero = torch.zeros((), dtype=torch.int64)
        >>> hex(philox([zero] * 4, [zero] * 2)[0])
        '0x6627e8d5'
    """
    (a, b, c, d), (low, high) = counter, key
    for _ in range(ROUNDS):
        # A product of 64 bits wraps around as int64, which changes none of its bits.
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            (second >> 32) & _MASK ^ b ^ low,
            second & _MASK,
            (first >> 32) & _MASK ^ d ^ high,
            first & _MASK,
        )
        low, high = (low + _KEY_STEPS[0]) & _MASK, (high + _KEY_STEPS[1]) & _MASK
    return [a, b, c, d]


def key_words(keys: Sequence[tuple[int, int, int]], device: torch.device | str) -> Tensor:
    """(B, 4) int64 of keys (seed, iteration, loss step); nothing waits for the device.

    Of the seed 64 bits count, of the others 32.
    """
    rows = [
        (seed & _MASK, seed >> 32 & _MASK, iteration & _MASK, step & _MASK)
        for seed, iteration, step in keys
    ]
    return torch.tensor(rows).to(device, non_blocking=True)


def words(keys_b4: Tensor, count: int, stream: int) -> Tensor:
    """(B, count) words below 2^32, a row a key.

    stream: below 2^32; numbers of different streams have nothing to do with each other.
    """
    low, high, iteration, step = keys_b4[:, :, None].unbind(1)
    block = torch.arange(math.ceil(count / 4), device=keys_b4.device)
    found = philox((block, torch.full_like(block, stream), iteration, step), (low, high))
    return torch.stack(found, dim=-1).flatten(1)[:, :count]


def uniform(keys_b4: Tensor, count: int, stream: int) -> Tensor:
    """(B, count) in (0, 1), float64: the same on every device."""
    return (words(keys_b4, count, stream).double() + 0.5) * 2.0**-32


def normal(keys_b4: Tensor, count: int, stream: int) -> Tensor:
    """(B, count), float32: two of two words each (Box and Muller 1958)."""
    pairs = (words(keys_b4, 2 * math.ceil(count / 2), stream).float() + 0.5) * 2.0**-32
    radius, angle = pairs.unflatten(1, (-1, 2)).unbind(-1)
    radius, angle = (-2 * radius.log()).sqrt(), 2 * math.pi * angle
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)[:, :count]
