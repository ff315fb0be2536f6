"""`rnn_lm.save`: a model of one's own loop becomes a run."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_lm
from rnn_lm.commands import main
from rnn_lm.errors import UserError
from rnn_lm.nn.activations import ACTIVATIONS
from rnn_lm.nn.registry import CELLS
from rnn_lm.runs.load import arrays_of
from rnn_lm.runs.save import config_of

TEXT = "the time machine\nstood there\n"
VOCABULARY = rnn_lm.Vocabulary.of(TEXT, kind="char", normalize="none")
SIZE = len(VOCABULARY)


class SavedCell(rnn_lm.Cell):
    num_gates = 1

    def gates(self, carry, projected, recurrent, /):
        return jnp.sin(projected + recurrent)


@pytest.fixture(autouse=True)
def own_cell(monkeypatch):
    monkeypatch.setitem(CELLS, "saved", SavedCell)


MODELS = {
    "elman": {},
    "relu": {"activation": "relu"},
    "identity": {"activation": "identity", "layer_norm": True},
    "gru": {"cell": "gru"},
    "the paper's gru": {"cell": "gru", "reset_after": False, "num_layers": 2},
    "lstm": {"cell": "lstm", "num_layers": 2, "embed_dim": 5, "dropout": 0.25},
    "lstm with layer norm": {"cell": "lstm", "layer_norm": True},
    "tied": {"cell": "gru", "embed_dim": 8, "tie": True},
    "bfloat16": {"dtype": "bfloat16"},
    "own": {"cell": "saved", "num_layers": 2},
    "mlp": {"context": 3},
    "mlp with embedding": {"context": 2, "embed_dim": 8, "tie": True, "activation": "relu"},
}


def model_of(name, seed=0):
    """A model of `MODELS` with no weight at 0."""
    options = MODELS[name]
    kind = rnn_lm.MLPLM if "context" in options else rnn_lm.RNNLM
    model = kind(SIZE, 8, rngs=nnx.Rngs(seed), **options)
    rng = np.random.default_rng(seed)
    params = nnx.state(model, nnx.Param)
    for _, leaf in nnx.to_flat_state(params):
        leaf[...] = leaf[...] + 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
    nnx.update(model, params)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "gru"
    rnn_lm.save(folder, model_of("gru"), VOCABULARY)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_it_comes_back_with_equal_bits(name, tmp_path):
    model = model_of(name)
    rnn_lm.save(tmp_path / "run", model, VOCABULARY)
    again, vocabulary = rnn_lm.load(tmp_path / "run")
    assert (vocabulary.tokens, vocabulary.kind) == (VOCABULARY.tokens, "char")
    assert again.fingerprint() == model.fingerprint() and again.dropout == model.dropout
    ids = jnp.asarray(VOCABULARY.encode(TEXT)[:, None])
    for one, other in zip(again(again.initialize_carry(1), ids), model(model.initialize_carry(1), ids), strict=True):
        np.testing.assert_array_equal(*(np.asarray(x[1] if isinstance(x, tuple) else x) for x in (one, other)))


@pytest.mark.slow
def test_verbs_take_it(saved, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 20)
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    packed, back = str(tmp_path / "packed"), str(tmp_path / "back")
    for verb in (["generate", "--length=5"], ["score", "--prompt=th", "--continuation=e"],
                 ["evaluate", f"--text={text}"], ["inspect", f"--text={text}", "--window=4"],
                 ["compress", str(text), packed], ["decompress", packed, back]):  # fmt: skip
        assert main([verb[0], f"--workdir={folder}", *verb[1:]]) == 0, verb
    assert (tmp_path / "back").read_text() == text.read_text()


def test_verbs_that_need_a_text_ask_for_it(saved, tmp_path, text_file, capsys):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    for verb, message in (
        (["evaluate"], "holds a model without a text of its own; to read another text, give --text=FILE"),
        (["inspect"], "holds a model without a text of its own; to read another text, give --text=FILE"),
        (["generate", "--mix=ngram"], "holds a model without a text, so it has no n-gram model; leave out --mix"),
    ):
        assert main([verb[0], f"--workdir={folder}", *verb[1:]]) == 2
        assert message in (error := capsys.readouterr().err) and len(error.splitlines()) == 1
    assert (
        main(
            [
                "train",
                "--config=char",
                f"--workdir={folder}",
                f"--config.corpus.path={text_file}",
                "--config.batch_size=2",
            ]
        )
        == 2
    )
    assert f"give --config.init_from={folder} and another --workdir" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_starts_from_it(saved, tmp_path, text_file, capsys):
    flags = ["--config.steps=2", f"--config.corpus.path={text_file}", "--config.batch_size=2"]
    assert main(["--config=char", f"--config.init_from={saved}", f"--workdir={tmp_path / 'run'}", *flags]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["model"]["cell"], config["model"]["num_hiddens"]) == ("gru", 8)


def subclass():
    class Shouting(rnn_lm.RNNLM):
        def logits(self, h):
            return 2 * super().logits(h)

    return Shouting(SIZE, 8, rngs=nnx.Rngs(0))


def with_own_activation():
    model = rnn_lm.RNNLM(SIZE, 8, rngs=nnx.Rngs(0))
    model.cell.gates = lambda carry, projected, recurrent: ACTIVATIONS["relu"](projected + recurrent)
    return model


def of_two_kinds():
    model = rnn_lm.RNNLM(SIZE, 8, rngs=nnx.Rngs(0), num_layers=2)
    model.cell.cells[1] = rnn_lm.GRUCell(8, 8, rngs=nnx.Rngs(1))
    return model


def of_two_sizes():
    model = rnn_lm.RNNLM(SIZE, 8, rngs=nnx.Rngs(0), num_layers=2)
    model.cell = rnn_lm.Stack([rnn_lm.ElmanCell(SIZE, 6, rngs=nnx.Rngs(0)), rnn_lm.ElmanCell(6, 8, rngs=nnx.Rngs(0))])
    return model


def not_registered():
    class NewCell(rnn_lm.ElmanCell):
        pass

    return rnn_lm.RNNLM(SIZE, 8, rngs=nnx.Rngs(0), cell=NewCell)


@pytest.mark.parametrize(
    "make, message",
    [
        (subclass, "only an RNNLM or an MLPLM can be saved as a run; this is a Shouting"),
        (of_two_kinds, "its layers are ElmanCell, GRUCell, but must be of one registered class"),
        (
            of_two_sizes,
            r"cell.cells.1.b_h is float32 \[8\], it must be float32 \[6\]",
        ),
        (not_registered, "its layers are NewCell, but must be of one registered class"),
        (with_own_activation, "with the same weights, the model of its config has other logits"),
        (lambda: rnn_lm.RNNLM(SIZE, 8, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16), "bfloat16"),
        (lambda: rnn_lm.RNNLM(SIZE, 8, rngs=nnx.Rngs(0), dtype=jnp.float16), "unknown config.model.dtype 'float16'"),
        (lambda: rnn_lm.RNNLM(SIZE + 1, 8, rngs=nnx.Rngs(0)), f"has {SIZE} tokens, the model has {SIZE + 1}"),
    ],
)
def test_a_model_that_no_config_describes_is_refused(make, message, tmp_path):
    with pytest.raises(UserError, match=message):
        rnn_lm.save(tmp_path / "run", make(), VOCABULARY)
    assert not [*tmp_path.iterdir()]


def test_nothing_is_overwritten_or_half_written(saved, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"is not empty \(it has thesis.txt\); give another folder, such as .*mine-2"):
        rnn_lm.save(tmp_path / "mine", model_of("gru"), VOCABULARY)
    monkeypatch.setattr("rnn_lm.runs.save.write_identity", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rnn_lm.save(tmp_path / "run", model_of("gru"), VOCABULARY)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_config_of_a_trained_run_is_found_again(run_folder):
    model, _ = rnn_lm.load(run_folder)
    assert config_of(model).model.num_hiddens == 16 and "cell.w_xh" in arrays_of(model)
