"""The cells of docs/own_cell.md: each is a loop over itself, is computed the way that the page says, and trains."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import rnn_lm
from rnn_lm import plugins
from rnn_lm.nn.cell import is_hoisted
from rnn_lm.nn.fused import is_fused
from rnn_lm.nn.registry import CELLS
from tests.conftest import small_config
from tests.nn.test_recurrence import assert_same, loop, loss_of

PAGE = (Path(rnn_lm.__file__).parent.parent / "docs" / "own_cell.md").read_text()
FILES = dict(re.findall(r"```python file=(\w+)\.py\n(.*?)```", PAGE, flags=re.DOTALL))
T, B, D, H = 6, 3, 4, 5


# One of them is enough for a quick look.
@pytest.fixture(params=[name if name == "mgu" else pytest.param(name, marks=pytest.mark.slow) for name in FILES])
def cell(request, tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "IMPORTED", [])
    path = tmp_path / f"{request.param}.py"
    path.write_text(FILES[request.param])
    plugins.import_module_or_file(str(path))
    yield request.param
    del CELLS[request.param]


def test_it_is_a_loop_computed_as_the_page_says_and_trains(cell, text_file, tmp_path):
    made = CELLS[cell](D, H, rngs=nnx.Rngs(0))
    x, carry = jax.random.normal(jax.random.key(0), (T, B, D)), jnp.full((B, H), 0.1)
    assert (is_hoisted(made), is_fused(made, carry, x)) == {
        "mgu": (True, True),
        "leaky": (True, False),
        "plain": (False, False),
    }[cell]
    assert_same(rnn_lm.unroll(made, carry, x), loop(made, carry, x))
    assert_same(*(jax.grad(loss_of(run, made))(nnx.state(made), carry, x) for run in (rnn_lm.unroll, loop)))
    config = small_config(text_file, model__cell=cell, model__embed_dim=4, steps=20)
    assert rnn_lm.train(config, tmp_path / "run")["steps"] == 20
    model, vocabulary = rnn_lm.load(tmp_path / "run")
    assert rnn_lm.evaluate(model, vocabulary.encode("the time traveller")).tokens == 17
