"""Randomness: typed keys, one base key, streams by name, and one key an example.

Whatever is drawn for an example comes from `fold_in(key, index)` and then its sample number, so that it depends on neither
the batch that the example came in, nor its place there, nor how many samples are drawn at a time.
"""

import zlib

import jax
from jaxtyping import Array, Int, Key


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of a named use ("noise", "init"), so that two uses never share draws."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def of_examples(key: Key[Array, ""], index: Int[Array, " b"]) -> Key[Array, " b"]:
    """One key an example, by its stable number in the split."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def of_part(keys: Key[Array, " n"], number: int | Int[Array, ""]) -> Key[Array, " n"]:
    """The keys of a part of what is drawn, such as a level of latents or a place among codes, by its number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def of_samples(keys: Key[Array, " b"], samples: Int[Array, " k"]) -> Key[Array, "k b"]:
    """One key a sample and example, by the sample's number."""
    return jax.vmap(of_part, (None, 0))(keys, samples)
