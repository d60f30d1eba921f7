"""The order in which an epoch takes its images, of NumPy alone: the very one that `pipeline.epoch_order` has of TensorFlow.

That one reaches any position at once, and is for data sets of any size; this one takes an epoch whole.
"""

import functools
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int64

ROUNDS = 16
"""Rounds of the cipher; TensorFlow's 4 leave batches that are visibly too even."""

SMALLEST = 16
"""Bits of a block at least."""

_Words: TypeAlias = tuple[int, ...]
"""Whole numbers of 32 bits."""


def at(positions: Int64[np.ndarray, " b"], n: int, seed: int) -> Int64[np.ndarray, " b"]:
    """The images at `positions` of the endless stream: epoch e is a permutation of 0..n-1 of its own, by (seed, e)."""
    epochs = positions // n
    found = np.empty_like(positions)
    for epoch in np.unique(epochs):
        own = epochs == epoch
        found[own] = _epoch(n, seed, int(epoch))[positions[own] % n]
    return found


def of_batches(step: int, count: int, batch_size: int, n: int, seed: int) -> Int64[np.ndarray, "count batch_size"]:
    """The images of `count` batches, from that of a step on."""
    positions = np.arange(step * batch_size, (step + count) * batch_size, dtype=np.int64)
    return at(positions, n, seed).reshape(count, batch_size)


@functools.lru_cache(maxsize=2)
def _epoch(n: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """The cipher permutes a block of numbers, of which n are images: each is enciphered until an image comes out."""
    half = (max((n - 1).bit_length(), SMALLEST) + 1) // 2
    enciphered = _simon(half, _epoch_key(seed, epoch))
    order = enciphered[:n].copy()
    while (outside := np.flatnonzero(order >= n)).size:
        order[outside] = enciphered[order[outside]]
    return order


def shuffled_numbers(n: int) -> int:
    """Numbers that TensorFlow is to shuffle for n images: n, or one more, which is then passed over.

    Its block is one too small where n is one more than it: one image would stand twice in an epoch, and another never.
    """
    block = 4 ** ((max((n - 2).bit_length(), SMALLEST) + 1) // 2)
    return n + (n > block)


def _simon(half: int, key: _Words) -> Int64[np.ndarray, " numbers"]:
    """All numbers of a block of two words of `half` bits by the cipher Simon (Beaulieu et al. 2013), its key cut to a word."""
    mask = 2**half - 1
    constants = 0x7369F885192C0EF5 & mask
    keys = [word & mask for word in key]
    while len(keys) < ROUNDS:
        turned = _turned(keys[-1], half - 3, half) ^ _turned(keys[-1], half - 4, half)
        keys.append((mask ^ 3) ^ (constants >> (len(keys) - 3) & 1) ^ keys[-3] ^ turned)
    words = np.arange(2**half, dtype=np.int64)
    mixed = _turned(words, 2, half) ^ (_turned(words, 1, half) & _turned(words, 8, half))
    right, left = np.repeat(words, 2**half), np.tile(words, 2**half)
    for word in keys:
        left, right = right ^ word ^ mixed[left], left
    return right << half | left


def _turned(word: Any, bits: int, size: int) -> Any:
    """A word of `size` bits turned to the left."""
    bits %= size
    return (word << bits | word >> (size - bits)) & (2**size - 1)


def _epoch_key(seed: int, epoch: int) -> _Words:
    """What TensorFlow draws from (seed, epoch): whole numbers of 64 bits, of which the shuffle takes the low halves."""
    mixed = _philox((*_halves(seed), *_halves(epoch)), (0x3EC8F720, 0x02461E29))
    drawn = [word for count in (0, 1) for word in _philox((count, 0, *mixed[2:]), mixed[:2])]
    return drawn[0], drawn[2], drawn[4]


def _philox(counter: _Words, key: _Words) -> _Words:
    """The counter-based random numbers Philox 4x32-10 (Salmon et al. 2011)."""
    for _ in range(10):
        (high, low), (higher, lower) = (divmod(a * b, 2**32) for a, b in ((0xD2511F53, counter[0]), (0xCD9E8D57, counter[2])))
        counter = (higher ^ counter[1] ^ key[0], lower, high ^ counter[3] ^ key[1], low)
        key = ((key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32)
    return counter


def _halves(number: int) -> _Words:
    return number % 2**32, number >> 32
