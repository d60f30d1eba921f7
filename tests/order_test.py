"""The order of an epoch without TensorFlow is the pipeline's."""

import numpy as np
import pytest
import tensorflow as tf

from vaejax import order, pipeline


@pytest.mark.parametrize("n", [1, 2, 13, 4_000, 65_536, 65_537, 65_538, 70_001, 300_000])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 3), (2**31 - 1, 10**9), (5, 2**32 + 1)])
def test_an_epoch_is_the_pipelines(n, seed, epoch):
    positions = epoch * n + np.arange(n)
    expected = pipeline.epoch_order(tf.constant(positions), n, seed)
    np.testing.assert_array_equal(np.sort(expected), np.arange(n))  # each image once
    np.testing.assert_array_equal(order.at(positions, n, seed), expected)


def test_a_batch_may_straddle_epochs_and_stand_in_any_of_them():
    n, positions = 10, np.arange(25, 33)
    epochs = np.concatenate([order.at(epoch * n + np.arange(n), n, seed=3) for epoch in range(4)])
    np.testing.assert_array_equal(order.at(positions, n, seed=3), epochs[positions])
    np.testing.assert_array_equal(np.sort(epochs.reshape(4, n), axis=1), np.tile(np.arange(n), (4, 1)))
    assert len(np.unique(epochs.reshape(4, n), axis=0)) == 4
