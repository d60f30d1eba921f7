"""Keys: streams differ, and an example's key follows from its index and sample number alone."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vaejax import keys


def bits(key: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


def distinct(key: jax.Array) -> bool:
    rows = bits(key).reshape(key.size, -1)
    return len(np.unique(rows, axis=0)) == len(rows)


def test_streams_differ_by_name_and_by_base_key_and_repeat():
    names = ["init", "noise", "order", "binarization"]
    streams = [keys.stream(jax.random.key(seed), name) for seed in (0, 1) for name in names]
    assert distinct(jnp.stack([jax.random.key(0), *streams]))
    np.testing.assert_array_equal(bits(keys.stream(jax.random.key(0), "noise")), bits(streams[1]))


@settings(max_examples=20, deadline=None)
@given(index=st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=8, unique=True))
def test_the_key_of_an_example_depends_on_its_index_alone(index):
    base = jax.random.key(3)
    together = keys.of_examples(base, jnp.array(index))
    assert distinct(together)
    for place, number in enumerate(index):
        alone = keys.of_examples(base, jnp.array([number]))
        np.testing.assert_array_equal(bits(alone)[0], bits(together)[place])


def test_the_key_of_a_sample_depends_on_its_number_and_example_alone():
    examples = keys.of_examples(jax.random.key(3), jnp.arange(4))
    together = keys.of_samples(examples, jnp.arange(6))
    assert together.shape == (6, 4)
    assert distinct(jnp.concatenate([together, examples[None]]))
    chunk = keys.of_samples(examples[1:3], jnp.array([5, 2]))
    np.testing.assert_array_equal(bits(chunk), bits(together)[[5, 2]][:, 1:3])
