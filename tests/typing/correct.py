"""A user's script that uses every public name as it is meant to be: type checkers find nothing, and it runs."""

import sys
from pathlib import Path
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from flax import nnx
from jax import Array

import rnn_lm

ORTHOGONAL = nnx.initializers.orthogonal()


@rnn_lm.register_cell("leaky")
class LeakyCell(rnn_lm.Cell):
    """h_t = a h_{t-1} + (1 − a) tanh(x_t w_xh + h_{t-1} w_hh + b_h)."""

    num_gates = 1

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype | None = None,
        recurrent_init: nnx.Initializer = ORTHOGONAL,
        leak: float = 0.5,
    ):
        super().__init__(in_features, hidden_features, rngs=rngs, dtype=dtype, recurrent_init=recurrent_init)
        self.leak = leak

    def gates(self, carry: Array, projected: Array, recurrent: Array) -> Array:
        return self.leak * carry + (1 - self.leak) * jnp.tanh(projected + recurrent)


@rnn_lm.register_cell("lossless")
class LosslessCell(rnn_lm.LSTMCell):
    """An LSTM cell that never forgets."""

    def gates(self, carry: tuple[Array, Array], projected: Array, recurrent: Array) -> rnn_lm.LSTMState:
        c, h = super().gates(carry, projected, recurrent)
        return rnn_lm.LSTMState(c + carry[0], h)


@rnn_lm.register_optimizer("lion")
def lion(numbers: Any) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_lion(), optax.add_decayed_weights(numbers.weight_decay))


def run_cells() -> None:
    rngs = nnx.Rngs(0)
    leaky = LeakyCell(3, 4, rngs=rngs, leak=0.1)
    assert_type(leaky, LeakyCell)  # what is registered stays what it is
    assert_type(leaky.leak, float)
    x = jnp.ones((5, 2, 3))
    cells: list[rnn_lm.Cell] = [
        rnn_lm.ElmanCell(3, 4, rngs=rngs, activation="relu", recurrent_init=nnx.initializers.zeros),
        rnn_lm.GRUCell(in_features=3, hidden_features=4, rngs=rngs, reset_after=False, param_dtype=jnp.float32),
        leaky,
    ]
    for cell in cells:
        h, outputs = rnn_lm.unroll(cell, cell.initialize_carry((2, 3)), x, lengths=[5, 3], remat="sqrt")
        assert_type(outputs, Array)
        print(h.shape, outputs.mean(), cell(h, x[0])[1].shape)

    lstm = rnn_lm.LSTMCell(3, 4, rngs=rngs, forget_bias=2.0, layer_norm=True, dtype=jnp.bfloat16)
    carry = lstm.initialize_carry((2, 3))
    assert_type(carry, rnn_lm.LSTMState)
    print(carry.c.shape, carry.h.dtype, lstm.output(carry).sum())
    lossless = LosslessCell(3, 4, rngs=rngs)
    print(lossless.num_gates, lossless.w_xh.shape, lossless.b_h[...].sum())

    stack = rnn_lm.Stack([lstm, rnn_lm.GRUCell(4, 4, rngs=rngs), nnx.GRUCell(4, 4, rngs=rngs)], dropout=0.1)
    start = stack.initialize_carry((2, 3), rngs)  # which one of Flax needs
    resets = np.zeros((5, 2), bool)
    for truncation in (
        rnn_lm.SegmentTruncation(2),
        rnn_lm.WindowTruncation(steps=2),
        rnn_lm.RandomizedTruncation(0.5, key=jax.random.key(0)),
        None,
    ):
        last, outputs = rnn_lm.unroll(stack, start, x, truncation=truncation, key=jax.random.key(1))
        print(len(last), outputs.shape)
    rnn_lm.unroll(stack, start, np.ones((5, 2, 3), np.float32), resets=resets, reverse=True, backward="autodiff")


def learn(vocabulary: rnn_lm.Vocabulary, ids: np.ndarray) -> None:
    batches = rnn_lm.Batches.of(ids, batch_size=4, segment_length=8, partition="sequential")
    model = rnn_lm.RNNLM(len(vocabulary), 16, rngs=nnx.Rngs(0), cell=LeakyCell, num_layers=2, dropout=0.1)
    named = rnn_lm.RNNLM(len(vocabulary), 16, rngs=nnx.Rngs(0), cell="leaky", embed_dim=16, tie=True)
    mlp = rnn_lm.MLPLM(len(vocabulary), 16, rngs=nnx.Rngs(0), context=3, activation="relu")

    def loss(model: rnn_lm.RNNLM, inputs: Array, labels: Array) -> Array:
        _, logits = model(model.initialize_carry(batch_size=4), inputs, key=jax.random.key(0))
        return rnn_lm.cross_entropy(logits, labels).mean()

    for step in range(2):
        inputs, labels, restart = batches(step)
        value, gradient = nnx.value_and_grad(loss)(model, inputs, labels)
        print(step, float(value), bool(restart), len(jax.tree.leaves(gradient)))

    for its in (named, mlp):
        new = rnn_lm.generate(its, ids[:5], 10, key=jax.random.key(0), temperature=0.5, top_k=3)
        print(vocabulary.decode(new[0]), rnn_lm.score(its, ids[:5], [ids[5:7], ids[5:8]])[0].sum())
    evaluation = rnn_lm.evaluate(model, ids[:100], reset_every=10)
    assert_type(evaluation.nll, float)
    print(evaluation.tokens, evaluation.max_abs["h"], model.num_params, model.fingerprint())
    ngram = rnn_lm.NGramLM.fit(ids, order=3, vocab_size=len(vocabulary))
    print(ngram.nll(ids), ngram.log_probs([1, 2]).argmax())


def main(folder: Path) -> None:
    print(rnn_lm.__version__)
    run_cells()

    path = folder / "text.txt"
    path.write_text("what is now proved was once only imagined\n" * 50)
    config = rnn_lm.default_config()
    config.corpus.path = str(path)
    config.steps = 2
    config.batch_size = 4
    config.segment_length = 8
    config.model.num_hiddens = 8
    corpus = rnn_lm.load_corpus(**config.corpus)
    print(corpus.name, corpus.train.tokens_per_character)
    learn(corpus.vocabulary, corpus.train.ids)

    lines: list[dict[str, Any]] = []
    summary = rnn_lm.train(config, folder / "run", on_line=lines.append)
    assert_type(summary, dict[str, Any])
    print(summary["steps"])
    rnn_lm.save(folder / "mine", rnn_lm.load(folder / "run")[0], corpus.vocabulary)
    model, vocabulary = rnn_lm.load(folder / "run", mix="ngram")
    assert_type(vocabulary, rnn_lm.Vocabulary)
    print(rnn_lm.evaluate(model, vocabulary.encode("was once only imagined")).nll, vocabulary.start)
    results = rnn_lm.sweep(config, [{"optimizer.learning_rate": 0.1}], str(folder / "sweep"), shard=(0, 1))
    print(sorted(results))
    results = rnn_lm.search(
        config, lambda trial: {"seed": trial.suggest_int("seed", 0, 9)}, folder / "search", storage=""
    )
    assert_type(results, dict[str, Any])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
