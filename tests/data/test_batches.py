import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnn_lm.data.batches import Batches, shuffled


def make(ids, B, T, partition="sequential", seed=0, stride=0):
    return Batches.of(np.asarray(ids), batch_size=B, segment_length=T, partition=partition, seed=seed, stride=stride)


def epoch(batches, number=0):
    """All inputs and labels of an epoch, [steps, T, B] each, and where the state starts anew."""
    steps = number * batches.steps_per_epoch + jnp.arange(batches.steps_per_epoch)
    return tuple(map(np.asarray, minibatches(batches, steps)))


minibatches = jax.jit(jax.vmap(Batches.__call__, in_axes=(None, 0)))


def test_machine_gives_machin_and_achine():
    ids = np.array([ord(c) for c in "machine" * 3])
    inputs, labels, _ = make(ids, 1, 6)(0)
    text = "".join(map(chr, np.asarray(inputs)[:, 0])) + chr(labels[-1, 0])
    assert text in "machine" * 3
    np.testing.assert_array_equal(inputs[1:], labels[:-1])
    offset_zero = next(seed for seed in range(99) if make(ids, 1, 6, seed=seed)(0)[0][0, 0] == ord("m"))
    inputs, labels, _ = make(ids, 1, 6, seed=offset_zero)(0)
    assert "".join(map(chr, np.asarray(inputs)[:, 0])) == "machin"
    assert "".join(map(chr, np.asarray(labels)[:, 0])) == "achine"


@pytest.mark.parametrize("partition", ["sequential", "random"])
@pytest.mark.parametrize(
    "B, T, extra, number", [(1, 1, 0, 0), (1, 1, 9, 3), (3, 4, 11, 1), (2, 7, 14, 2), (5, 3, 60, 0)]
)
def test_an_epoch_sees_each_token_at_most_once_and_drops_only_a_remainder(B, T, extra, number, partition):
    N = B * T + T + 1 + extra
    batches = make(np.arange(N), B, T, partition, seed=number)
    inputs, labels, restart = epoch(batches, number)
    assert batches.steps_per_epoch == (N - T - 1) // (B * T)
    np.testing.assert_array_equal(labels, inputs + 1)  # the tokens are their own positions
    assert len(np.unique(inputs)) == inputs.size == batches.steps_per_epoch * B * T
    assert N - inputs.size <= B * T + T
    if partition == "sequential":
        flat = np.concatenate(inputs)  # [steps · T, B]
        np.testing.assert_array_equal(np.diff(flat, axis=0), 1)  # each row of the batch is one stream
        assert flat.min() < T
        np.testing.assert_array_equal(restart, np.arange(len(inputs)) == 0)
    else:
        assert restart.all()


@pytest.mark.parametrize("B, T, S", [(1, 4, 1), (2, 6, 3), (3, 7, 3), (2, 5, 4)])
def test_with_a_stride_windows_overlap(B, T, S):
    ids = np.arange(120)
    batches = make(ids, B, T, stride=S)
    inputs, labels, restart = epoch(batches)
    np.testing.assert_array_equal(labels, inputs + 1)
    np.testing.assert_array_equal(np.diff(inputs, axis=1), 1)
    np.testing.assert_array_equal(np.diff(inputs, axis=0), S)
    new = inputs[:, -S:]  # what no window before has trained on
    assert len(np.unique(new)) == new.size and labels.max() < len(ids)
    assert new.size >= len(ids) - 1 - T - S - B * S
    np.testing.assert_array_equal(restart, np.arange(len(inputs)) == 0)
    least = (B + -(-T // S)) * S + 1
    assert make(ids[:least], B, T, stride=S).steps_per_epoch == 1
    with pytest.raises(ValueError, match=f"needs {least}"):
        make(ids[: least - 1], B, T, stride=S)


def test_offsets_and_orders_differ_between_epochs_and_seeds():
    ids = np.arange(2000)
    starts = [minibatches(make(ids, 2, 50, seed=seed), jnp.array([0, 19, 38]))[0][:, 0, 0] for seed in range(3)]
    assert len(np.unique(starts)) >= 7
    shuffles = [epoch(make(ids, 2, 5, "random", seed), number)[0] // 5 for seed in (0, 1) for number in (0, 1)]
    assert all((a != b).mean() > 0.9 for i, a in enumerate(shuffles) for b in shuffles[:i])


def test_a_step_is_the_same_alone_in_a_loop_and_under_vmap_of_seeds():
    ids = np.random.default_rng(0).integers(0, 9, 500)
    batches = make(ids, 3, 4, "random", seed=5)
    looped = jax.lax.map(lambda s: batches(s)[0], jnp.arange(50))
    np.testing.assert_array_equal(looped[37], batches(37)[0])
    of_seed = jax.vmap(lambda seed: Batches(batches.rows, seed, 3, 4, "random")(37)[0])(jnp.arange(7))
    np.testing.assert_array_equal(of_seed[5], batches(37)[0])


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 1000, 4097])
def test_a_shuffle_is_a_permutation(size):
    order = shuffled(jnp.arange(size), size, jax.random.key(size))
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


@pytest.mark.parametrize("size", [2, 3, 5, 8, 64])
def test_shuffles_of_few_are_uniform(size):
    """By chi-square: the first two places, and what follows 0 (by more than 5 standard deviations before)."""
    draws = 30_000
    orders = jax.jit(jax.vmap(lambda s: shuffled(jnp.arange(size), size, jax.random.key(s))))(jnp.arange(draws))
    orders = np.asarray(orders)
    at = np.argmin(orders, axis=1)
    after = orders[np.arange(draws), np.minimum(at + 1, size - 1)][at < size - 1]
    pairs = np.bincount(orders[:, 0] * size + orders[:, 1], minlength=size**2)
    for counts in (pairs.reshape(size, size)[~np.eye(size, dtype=bool)], np.bincount(after, minlength=size)[1:]):
        expected = counts.sum() / counts.size
        freedom = counts.size - 1
        assert ((counts - expected) ** 2 / expected).sum() <= freedom + 5 * np.sqrt(2 * freedom)


def test_shuffles_of_many_part_neighbours():
    """Two windows side by side land side by side as often as by chance; with four rounds it was twice as often."""
    size, draws = 1024, 2000
    orders = jax.jit(jax.vmap(lambda s: shuffled(jnp.arange(size), size, jax.random.key(s))))(jnp.arange(draws))
    together = (orders[:, ::2] ^ orders[:, 1::2]) == 1
    expected = draws * (size / 2) / (size - 1)
    assert abs(int(together.sum()) - expected) < 5 * np.sqrt(expected)


@pytest.mark.parametrize("size", [0, 1, 16])
def test_too_short_a_text_is_refused(size):
    with pytest.raises(ValueError, match="one minibatch of 3 windows of 4 needs 17"):
        make(np.arange(size), 3, 4)
    assert make(np.arange(17), 3, 4).steps_per_epoch == 1


def test_an_unknown_partition_is_refused():
    with pytest.raises(ValueError, match="unknown partition 'serial'; did you mean 'sequential'"):
        make(np.arange(99), 2, 3, "serial")


def test_every_offset_of_a_segment_occurs():
    batches = make(np.arange(30), 1, 4)
    starts = jnp.arange(60) * batches.steps_per_epoch  # the first step of each epoch
    inputs, _, _ = minibatches(batches, starts)
    assert set(np.asarray(inputs[:, 0, 0]).tolist()) == set(range(4))
