"""The whole idea of the package, without the package; and that the real training step computes the same."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from rnn_lm.config import complete_config
from rnn_lm.data.batches import Batches
from rnn_lm.nn.arrays import named_leaves
from rnn_lm.program import program_of
from rnn_lm.training.step import new_state, train_steps


# [the idea]
def recurrent_layer(params, h, tokens):
    """Equation (8.4.5), step by step: token ids [T, B] pick rows of w_xh."""

    def cell(h, x_t):
        h = jnp.tanh(params["w_xh"][x_t] + h @ params["w_hh"] + params["b_h"])
        return h, h

    return lax.scan(cell, h, tokens)


def train_step(optimizer, params, opt_state, h, inputs, labels):
    """Backpropagation through one segment; the state goes on to the next, the gradient does not."""

    def loss(params):
        last, hs = recurrent_layer(params, lax.stop_gradient(h), inputs)
        logits = hs @ params["w_hq"] + params["b_q"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), last

    (nll, h), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, h, nll


# [the idea]


def test_the_page_on_architecture_shows_this_code():
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    idea = [line for line in Path(__file__).read_text(encoding="utf-8").split("# [the idea]\n")[1].splitlines() if line]
    assert [line for line in code.splitlines() if line] == [line for line in idea if '"""' not in line]


V, B, T, STEPS = 11, 3, 6, 20
OPTIMIZERS = {
    "sgd": (
        optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.5)),
        {"learning_rate": 0.5, "clip_norm": 0.5},
        1e-6,
    ),
    "adam": (optax.adam(0.01), {"learning_rate": 0.01, "clip_norm": 0.0}, 1e-4),  # it magnifies rounding
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_real_training_step_is_this_one(name):
    optimizer, given, tolerance = OPTIMIZERS[name]
    sizes = {"batch_size": B, "segment_length": T, "model": {"num_hiddens": 8}}
    program, numbers = program_of(complete_config(sizes | {"optimizer": {"name": name} | given}), V)
    numbers, ids = numbers.arrays(), np.random.default_rng(0).integers(0, V, STEPS * B * T)
    batches = Batches.of(ids, batch_size=B, segment_length=T, partition="sequential")
    state = new_state(program, numbers)
    params = {name.rpartition(".")[2]: jnp.array(leaf) for name, leaf in named_leaves(state.params).items()}
    opt_state, h = optimizer.init(params), jnp.zeros((B, 8))
    step = jax.jit(train_step, static_argnums=0)
    for number in range(STEPS):
        inputs, labels, restart = batches(number)
        h = jnp.zeros_like(h) if restart else h
        params, opt_state, h, nll = step(optimizer, params, opt_state, h, inputs, labels)
    state, report = train_steps(state, jnp.int32(STEPS), batches, numbers, program=program)
    for path, leaf in named_leaves(state.params).items():
        np.testing.assert_allclose(leaf, params[path.rpartition(".")[2]], atol=tolerance, err_msg=path)
    np.testing.assert_allclose(state.carry, h, atol=tolerance)
    assert STEPS > batches.steps_per_epoch and report["finite"]
