"""Drawing text: machine code beside the scan, and both beside a loop in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.errors import NotFinite
from rnn_lm.inference.generate import generate
from rnn_lm.inference.sampling import at_quantile, draw, keep_likeliest
from rnn_lm.nn import native
from rnn_lm.nn.cells import GRUCell
from rnn_lm.nn.choice import is_in
from rnn_lm.nn.models import RNNLM
from tests.reference import gru_step, lstm_step

needs_compiler = pytest.mark.skipif(not native.is_available(), reason="no C++ compiler here, or RNN_LM_NATIVE=0")
STEPS, BATCH, VOCAB = 40, 7, 37


def model_of(cell="elman", **options):
    """A model of 33 units, two vectors and a last one, whose predictions are far from uniform."""
    model = RNNLM(VOCAB, 33, cell=cell, rngs=nnx.Rngs(0), bias_init=nnx.initializers.normal(0.5), **options)
    model.b_q[...] = jnp.linspace(-2, 2, VOCAB)
    if cell == "gru":
        for layer in getattr(model.cell, "cells", [model.cell]):
            layer.b_hn[...] = jnp.linspace(-1, 1, 33)
    return model


def start_of(model, batch=BATCH):
    """A carry and the next logits, after two tokens."""
    tokens = jnp.arange(2 * batch).reshape(2, batch) % VOCAB
    carry, logits = model(model.initialize_carry(batch), tokens)
    return carry, logits[-1]


def uniform_of(steps=STEPS, batch=BATCH):
    return jax.random.uniform(jax.random.key(1), (steps, batch))


def drawn(model, wanted, temperature=1.0, top_k=0, top_p=1.0, start=None, uniform=None):
    """The carry, the logits and the tokens, by the machine code or by the scan."""
    run = jax.jit(partial(draw, model, top_k=top_k, top_p=top_p, wanted=wanted))
    return run(*(start or start_of(model)), uniform_of() if uniform is None else uniform, jnp.float32(temperature))


def assert_same(fast, slow):
    """The tokens; states and logits to rounding."""
    np.testing.assert_array_equal(fast[2], slow[2])
    for got, expected in zip(jax.tree.leaves(fast[:2]), jax.tree.leaves(slow[:2]), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    return fast[2]


MODELS = {
    "elman": {},
    "relu, two layers": {"activation": "relu", "num_layers": 2},
    "identity": {"activation": "identity", "recurrent_init": nnx.initializers.normal(0.05)},
    "gru": {"cell": "gru"},
    "gru, two layers, tied": {"cell": "gru", "num_layers": 2, "embed_dim": 33, "tie": True},
    "lstm, three layers": {"cell": "lstm", "num_layers": 3},
    "lstm, embedding": {"cell": "lstm", "embed_dim": 20},
}
LIMITS = [(0, 1.0), (5, 1.0), (0, 0.7), (5, 0.7)]


@needs_compiler
@pytest.mark.parametrize(
    "name, top_k, top_p", [*(("elman", *limits) for limits in LIMITS[1:]), *((name, 0, 1.0) for name in MODELS)]
)
def test_the_machine_code_draws_the_scans_tokens(name, top_k, top_p):
    model = model_of(**MODELS[name])
    fast, slow = (jax.jit(partial(draw, model, top_k=top_k, top_p=top_p, wanted=wanted)) for wanted in (True, False))
    for temperature in (0.0, 0.7, 1.0, 5.0):
        given = *start_of(model), uniform_of(), jnp.float32(temperature)
        tokens = assert_same(fast(*given), slow(*given))
        assert (tokens > 0).all()


@needs_compiler
def test_embeddings_of_a_large_vocabulary_are_multiplied_step_by_step(monkeypatch):
    monkeypatch.setattr(native.cpu.sample, "TABLE", 0)
    model = model_of("lstm", embed_dim=20, num_layers=2)
    assert_same(drawn(model, True), drawn(model, False))


@pytest.mark.parametrize("wanted", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize(
    "cell, temperature, top_k, top_p",
    [("gru", 0.0, 0, 1.0), ("gru", 1.5, 9, 0.6), ("lstm", 1.0, 0, 1.0), ("lstm", 0.7, 4, 1.0)],
)
def test_both_are_a_loop(cell, temperature, top_k, top_p, wanted):
    model = model_of(cell)
    weights = {name: getattr(model.cell, name, None) for name in ("w_xh", "w_hh", "b_h", "b_hn")}
    p = {name: np.asarray(w[...], np.float64) for name, w in weights.items() if w is not None}
    w_hq, b_q = (np.asarray(x[...], np.float64) for x in (model.w_hq, model.b_q))
    start, uniform = start_of(model), uniform_of()
    _, _, tokens = drawn(model, wanted, temperature, top_k, top_p, start, uniform)
    for text in range(BATCH):
        state, logits = jax.tree.map(lambda x, text=text: np.asarray(x[text], np.float64), start)
        for t in range(STEPS):
            order = 1 + np.argsort(-logits[1:])  # never <unk>
            weights = np.exp((logits - logits[order[0]]) / (temperature or 1))
            shares = weights / weights[1:].sum()
            before = np.cumsum(shares[order]) - shares[order]
            kept = np.sort(order[: top_k or VOCAB][(before < top_p)[: top_k or VOCAB]])
            reached = np.cumsum(shares[kept]) > uniform[t, text] * shares[kept].sum()
            token = kept[np.argmax(reached)] if temperature else order[0]
            assert tokens[t, text] == token
            x = np.eye(VOCAB)[token]
            if cell == "gru":
                state = h = gru_step(p, state, x, reset_after=True)
            else:
                state = _, h = lstm_step(p, state, x)
            logits = h @ w_hq + b_q


@needs_compiler
def test_calls_that_follow_each_other_are_one_call():
    model, uniform = model_of("lstm", num_layers=2), uniform_of()
    carry, logits, tokens = drawn(model, True)
    *start, first = drawn(model, True, uniform=uniform[:13])
    *last, second = drawn(model, True, start=start, uniform=uniform[13:])
    np.testing.assert_array_equal(jnp.concatenate([first, second]), tokens)
    for got, expected in zip(jax.tree.leaves(last), jax.tree.leaves((carry, logits)), strict=True):
        np.testing.assert_array_equal(got, expected)


@needs_compiler
@pytest.mark.parametrize("cell", ["elman", "gru"])
def test_a_text_does_not_depend_on_the_others(cell):
    model, uniform = model_of(cell, embed_dim=20), uniform_of(batch=70)
    carry, logits = start_of(model, 70)
    together = drawn(model, True, 1.5, start=(carry, logits), uniform=uniform)
    for texts in (slice(1), slice(3, 8)):
        alone = drawn(model, True, 1.5, start=(carry[texts], logits[texts]), uniform=uniform[:, texts])
        np.testing.assert_array_equal(alone[2], together[2][:, texts])
        np.testing.assert_array_equal(alone[1], together[1][texts])


@pytest.mark.parametrize("wanted", [pytest.param(True, marks=needs_compiler), False])
def test_ties_are_broken_in_favour_of_smaller_ids(wanted):
    model = model_of()
    model.w_hq[...] *= 0
    model.b_q[...] = jnp.zeros(VOCAB).at[20].set(-1.0).at[30:33].set(1.0)
    for top_k, top_p, kept in [(2, 1.0, {30, 31}), (5, 1.0, {1, 2, 30, 31, 32}), (0, 0.01, {30})]:
        tokens = drawn(
            model, wanted, top_k=top_k, top_p=top_p, start=(start_of(model)[0], model.b_q[...][None].repeat(BATCH, 0))
        )[2]
        assert set(np.unique(tokens).tolist()) == kept
    assert (drawn(model, wanted, 0.0)[2][1:] == 30).all()


@needs_compiler
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("limits", LIMITS[::3])
def test_logits_that_are_not_finite_go_the_scans_way(temperature, limits):
    model = model_of()
    carry, logits = start_of(model)
    odd = [{4: jnp.nan}, {4: jnp.inf}, {4: jnp.inf, 2: jnp.inf}, {4: -jnp.inf}, {0: jnp.nan}]
    for text, changes in enumerate(odd):
        for token, value in changes.items():
            logits = logits.at[text, token].set(value)
    start = carry, logits.at[5].set(-jnp.inf).at[6].set(jnp.nan)
    fast, slow = (drawn(model, wanted, temperature, *limits, start, uniform_of(3)) for wanted in (True, False))
    assert_same(fast, slow)
    model.w_hq[...] *= jnp.nan
    with pytest.raises(NotFinite):
        generate(model, np.ones(1, int), 3, key=jax.random.key(0), temperature=temperature)


@needs_compiler
def test_several_members_are_drawn_from_one_by_one():
    models = [RNNLM(VOCAB, 5, rngs=nnx.Rngs(seed)) for seed in range(2)]
    graphdefs, states = zip(*map(nnx.split, models), strict=True)
    given = *start_of(models[0]), uniform_of(), jnp.float32(1)
    options = {"top_k": 0, "top_p": 1.0, "wanted": True}
    run = jax.jit(jax.vmap(lambda state: draw(nnx.merge(graphdefs[0], state), *given, **options)))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    assert "rnn_lm_sample" in run.lower(stacked).as_text()
    for together, model in zip(run(stacked)[2], models, strict=True):
        np.testing.assert_array_equal(together, drawn(model, True, start=given[:2])[2])


def is_machine_code(model, wanted=True):
    run = partial(draw, model, top_k=0, top_p=1.0, wanted=wanted)
    return is_in(str(jax.make_jaxpr(run)(*start_of(model), uniform_of(), jnp.float32(1))), "sampling")


class Sharp(RNNLM):
    """Logits of its own."""

    def logits(self, h):
        return 2 * super().logits(h)


class Read(RNNLM):
    """Reads tokens in a way of its own."""

    def hidden(self, carry, tokens, **options):
        return super().hidden(carry, tokens + 0, **options)


class Centred(GRUCell):
    """Projects inputs in a way of its own."""

    def project(self, x):
        return super().project(x) - 1.0


@needs_compiler
def test_who_is_drawn_from_by_machine_code():
    assert is_machine_code(model_of("lstm", num_layers=2, embed_dim=33, tie=True))
    assert not is_machine_code(model_of(), wanted=False)
    make = partial(RNNLM, VOCAB, 5, rngs=nnx.Rngs(0))
    options = {"layer_norm": True}, {"dtype": jnp.bfloat16}, {"param_dtype": jnp.bfloat16}, {"cell": Centred}
    for other in (*(make(**option) for option in options), *(cls(VOCAB, 5, rngs=nnx.Rngs(0)) for cls in (Sharp, Read))):
        assert not is_machine_code(other)
    model = make(cell="gru")
    model.cell = GRUCell(VOCAB, 5, rngs=nnx.Rngs(0), reset_after=False)
    assert not is_machine_code(model)


@needs_compiler
def test_without_machine_code_generate_runs_the_scan(monkeypatch):
    model = model_of()
    options = {"key": jax.random.key(0), "num_samples": 3}
    expected = generate(model, np.ones(1, int), 20, **options)
    monkeypatch.setenv("RNN_LM_NATIVE", "0")
    called = []
    monkeypatch.setattr(native.cpu.sample, "draw", lambda *_, **__: called.append(1))
    np.testing.assert_array_equal(generate(model, np.ones(1, int), 20, **options), expected)
    assert not called


def test_top_k_and_top_p():
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]]))
    kept = lambda *limits: np.flatnonzero(np.isfinite(keep_likeliest(logits, *limits)[0])).tolist()  # noqa: E731
    assert kept(0, 1.0) == [0, 1, 2, 3]
    assert kept(2, 1.0) == [1, 3]
    assert kept(9, 1.0) == [0, 1, 2, 3]
    assert kept(0, 0.65) == [1, 3]
    assert kept(0, 0.75) == [1, 2, 3]
    assert kept(0, 0.01) == kept(1, 1.0) == [1]
    assert kept(1, 0.9) == [1]
    logits = jnp.zeros((1, 5))  # ties: no more than were asked for
    assert kept(2, 1.0) == [0, 1]
    assert kept(0, 0.5) == [0, 1, 2]


def test_a_token_without_weight_is_never_drawn():
    kept = np.random.default_rng(0).random((200, 300)) < 0.1
    weights = jnp.where(kept, jax.random.uniform(jax.random.key(0), kept.shape), 0.0)
    for u in (0.0, 0.3, 1 - 2**-24):
        tokens = at_quantile(weights, jnp.full(200, u))
        assert kept[np.arange(200), tokens].all()
    assert (at_quantile(weights, jnp.zeros(200)) == kept.argmax(-1)).all()


@pytest.mark.parametrize("native_too", ["0", "1"])
def test_double_precision_elsewhere_changes_no_token(monkeypatch, native_too):
    monkeypatch.setenv("RNN_LM_NATIVE", native_too)
    model, key = model_of("gru"), jax.random.key(0)
    expected = generate(model, np.ones(2, np.int32), 20, key=key, num_samples=2)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(generate(model, np.ones(2, np.int32), 20, key=key, num_samples=2), expected)


def test_a_cell_that_normalises_one_product_only_is_drawn_from_in_the_scan():
    model = model_of("lstm")
    model.cell.scale_x = nnx.Param(jnp.full(4 * 33, 0.5))
    np.testing.assert_array_equal(drawn(model, True)[2], drawn(model, False)[2])
