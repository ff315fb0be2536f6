import ast
import re
from pathlib import Path

import numpy as np
import pytest

import rnn_lm
from rnn_lm.config import (
    EXAMPLE,
    check_config,
    complete_config,
    default_config,
    load_config,
    load_sweep,
    model_name,
    set_field,
    text_name,
)
from rnn_lm.data.batches import PARTITIONS
from rnn_lm.data.corpus import SOURCES
from rnn_lm.data.vocabulary import NORMALIZE, TOKENIZE
from rnn_lm.errors import UserError
from rnn_lm.fields import FIELDS
from rnn_lm.nn.activations import ACTIVATIONS
from rnn_lm.nn.registry import CELLS
from rnn_lm.sweeps.study import PRUNERS, SAMPLERS
from rnn_lm.sweeps.sweep import MODES
from rnn_lm.training.optimizers import OPTIMIZERS, SCHEDULES
from rnn_lm.training.step import TRUNCATIONS

ROOT = Path(rnn_lm.__file__).parent
EXPERIMENTS = sorted((ROOT.parent / "experiments").rglob("*.py"))


def test_the_names_in_the_table_are_those_that_the_code_looks_up():
    tables = {
        "partition": PARTITIONS,
        "corpus.source": SOURCES,
        "corpus.tokens": TOKENIZE,
        "corpus.normalize": NORMALIZE,
        "model.kind": ["rnn", "mlp"],
        "model.cell": CELLS,
        "model.activation": ACTIVATIONS,
        "model.dtype": ["float32", "bfloat16"],
        "optimizer.name": OPTIMIZERS,
        "optimizer.schedule": SCHEDULES,
        "truncation.kind": TRUNCATIONS,
        "sweep.mode": MODES,
        "sweep.sampler": SAMPLERS,
        "sweep.pruner": PRUNERS,
    }
    assert {name: list(field.names) for name, field in FIELDS.items() if field.names} == {
        name: list(table) for name, table in tables.items()
    }


def test_no_default_is_none_and_all_are_in_range():
    assert all(field.default is not None for field in FIELDS.values())
    check_config(default_config())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_are_valid_and_comment_every_field(path):
    check_config(load_config(str(path)))
    lines = path.read_text().splitlines()
    assigned = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.Assign)]
    for node in assigned:
        if isinstance(node.targets[0], ast.Attribute):
            assert "#" in lines[node.end_lineno - 1], f"{path.name}:{node.lineno} has no comment"
    assert any(re.search(r"run.py (sweep )?--config=experiments/", line) for line in lines[:6])


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("optimiser.name", "sgd", "unknown config field 'optimiser.name'; did you mean 'optimizer.name'"),
        ("steps", 1.5, "config.steps is 1.5; it takes a whole number"),
        ("steps", True, "takes a whole number"),
        ("model.cell", None, "takes a string"),
        ("model", 3, "unknown config field 'model'"),
    ],
)
def test_unknown_fields_and_wrong_types_are_refused(name, value, message):
    with pytest.raises(UserError, match=re.escape(message)):
        set_field(default_config(), name, value)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("batch_size", 0, "config.batch_size is 0; it must be at least 1"),
        ("steps", -1, "config.steps is -1; it must be from 1 to 2147483647"),
        ("optimizer.learning_rate", float("nan"), "config.optimizer.learning_rate is nan"),
        ("optimizer.learning_rate", float("inf"), "is inf; it must be from 0 to"),
        ("batch_size", 10**400, "it must be from 1 to 2147483647"),
        ("corpus.test_fraction", 0.9, "from 0 to 0.49"),
        ("model.cell", "elmen", "unknown config.model.cell 'elmen'; did you mean 'elman'"),
        ("partition", "sequental", "did you mean 'sequential'"),
        ("optimizer.momentum", 0.9, "momentum is for sgd only"),
        ("model.tie", True, "config.model.tie needs config.model.embed_dim = num_hiddens = 256; it is 0"),
        ("model.num_layers", 0, "config.model.num_layers is 0; it must be at least 1"),
        ("model.dropout", 1.0, "config.model.dropout is 1.0; it must be from 0 to 0.99"),
        ("corpus.max_vocab", 1, "leaves only <unk>"),
    ],
)
def test_values_out_of_range_are_refused(name, value, message):
    config = default_config()
    set_field(config, name, value)
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(config)


@pytest.mark.parametrize(
    "truncation, message",
    [
        ({"kind": "segment"}, "config.truncation.steps is 0; with truncation.kind segment it must be more than 0"),
        ({"kind": "window", "steps": -1}, "config.truncation.steps is -1; it must be at least 0"),
        ({"steps": 3}, "config.truncation.steps is 3; with truncation.kind none it must be left out"),
        (
            {"kind": "randomized"},
            "config.truncation.keep_probability is 0.0; with truncation.kind randomized it must be",
        ),
        ({"kind": "randomized", "keep_probability": 1.5}, "keep_probability is 1.5; it must be from 0 to 1"),
        ({"kind": "tbptt", "steps": 64}, "config.truncation.update_every is 0"),
        ({"kind": "tbptt", "steps": 64, "update_every": 65}, "they are 65, 64 and 64"),
        ({"kind": "tbptt", "steps": 32, "update_every": 8}, "they are 8, 32 and 64"),
        ({"kind": "windows", "steps": 8}, "did you mean 'window'"),
    ],
)
def test_truncations_that_cannot_be_are_refused(truncation, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(complete_config({"truncation": truncation}))


def test_a_window_has_a_backward_pass_of_its_own():
    with pytest.raises(UserError, match="config.remat cannot be used with truncation.kind window"):
        check_config(complete_config({"remat": 8, "truncation": {"kind": "window", "steps": 4}}))


def test_tbptt_carries_the_state():
    given = {"partition": "random", "truncation": {"kind": "tbptt", "steps": 64, "update_every": 8}}
    with pytest.raises(UserError, match="set config.partition to sequential"):
        check_config(complete_config(given))
    check_config(complete_config(given | {"partition": "sequential"}))


def test_patience_counts_evaluations():
    with pytest.raises(UserError, match="config.stop_patience counts evaluations; set config.eval_every"):
        check_config(complete_config({"stop_patience": 2, "eval_every": 0}))


def test_an_activation_is_of_the_elman_cell_only():
    config = complete_config({"model": {"cell": "gru", "activation": "relu"}})
    with pytest.raises(UserError, match="the gru cell has no option activation; leave out config.model.activation"):
        check_config(config)


@pytest.mark.parametrize(
    "model, message",
    [
        ({"reset_after": False}, "the elman cell has no option reset_after; leave out config.model.reset_after"),
        ({"cell": "gru", "layer_norm": True, "reset_after": False}, "layer_norm needs the reset after the product"),
    ],
)
def test_the_reset_after_the_product_is_the_grus(model, message):
    with pytest.raises(UserError, match=message):
        check_config(complete_config({"model": model}))
    check_config(complete_config({"model": {"cell": "gru", "reset_after": False}}))


@pytest.mark.parametrize(
    "given, field",
    [
        ({"model": {"kind": "mlp", "num_layers": 2}}, "model.num_layers"),
        ({"model": {"kind": "mlp", "layer_norm": True}}, "model.layer_norm"),
        ({"model": {"kind": "mlp", "reset_after": False}}, "model.reset_after"),
        ({"model": {"kind": "mlp"}, "remat": 4}, "remat"),
        ({"model": {"kind": "mlp"}, "truncation": {"kind": "segment", "steps": 4}}, "truncation.kind"),
    ],
)
def test_what_recurrent_layers_have_an_mlp_has_not(given, field):
    with pytest.raises(
        UserError, match=f"config.{field} is for recurrent layers only; leave it out for model.kind mlp"
    ):
        check_config(complete_config(given))
    check_config(complete_config({"model": {"kind": "mlp", "cell": "gru", "activation": "relu"}}))


def test_an_mlp_is_trained_on_as_many_tokens_as_it_looks_at():
    given = {"model": {"kind": "mlp", "context": 9}, "segment_length": 8, "partition": "random"}
    with pytest.raises(
        UserError, match="config.model.context is 9; with partition random it must be at most segment_length = 8"
    ):
        check_config(complete_config(given))
    check_config(complete_config(given | {"partition": "sequential"}))


def test_a_config_need_not_be_complete_and_whole_numbers_may_be_floats():
    config = complete_config({"steps": 7, "optimizer": {"learning_rate": 1}})
    assert (config.steps, config.optimizer.learning_rate, config.batch_size) == (7, 1.0, FIELDS["batch_size"].default)


def test_a_config_is_locked():
    with pytest.raises(AttributeError):
        default_config().stesp = 3


@pytest.mark.parametrize(
    "source, message",
    [
        ("x = 1", "has no get_config"),
        ("def get_config(): pass", "has no get_config.. that returns a config"),
        ("def get_config(): return 3", "has no get_config.. that returns a config"),
        ("def get_config(): return {'stepz': 3}", "unknown config field 'stepz'; did you mean 'steps'"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
    ],
)
def test_files_that_are_no_experiments(tmp_path, source, message):
    path = tmp_path / "experiment.py"
    path.write_text(source)
    with pytest.raises(UserError, match=message):
        load_config(str(path))
    with pytest.raises(UserError, match="no such file"):
        load_config(str(tmp_path / "none.py"))


@pytest.mark.parametrize(
    "line, error",
    [
        ("c.steps = 1 // 0", "ZeroDivisionError: integer division or modulo by zero"),
        ("c.steps = = 3", "SyntaxError: invalid syntax"),
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
        ("import raises", "ZeroDivisionError: division by zero"),
        ("import unreadable", r"SyntaxError: '\(' was never closed \(.*unreadable.py, line 2\)"),
        ("c.model.hidden = 3", "unknown config field 'model.hidden'; did you mean 'model.num_hiddens'.$"),
        ("c['optimizer']['lerning_rate'] = 3", "unknown config field 'optimizer.lerning_rate'; did you mean 'opt"),
        ("c.steps = c.step", "unknown config field 'step'; did you mean 'steps'"),
        ("c.optimizer.learning_rate = 'high'", "config.optimizer.learning_rate is 'high'; it takes a number"),
        ("raise KeyError('\\x1b[31m')", "KeyError: \x1b"),
    ],
)
@pytest.mark.parametrize("function", ["get_config", "sweep"])
def test_an_error_in_a_config_file_has_its_line(tmp_path, monkeypatch, function, line, error):
    (tmp_path / "raises.py").write_text("\n\n1 / 0\n")
    (tmp_path / "unreadable.py").write_text("\nx = (\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "conf.py"
    path.write_text(f"from rnn_lm import default_config\ndef {function}():\n    c = default_config()\n    {line}\n")
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}:4: {line}')}: {error}"):
        (load_config if function == "get_config" else load_sweep)(str(path))


def test_the_line_of_an_error_is_the_deepest_one_of_the_file(tmp_path):
    path = tmp_path / "conf.py"
    path.write_text("def rate():\n    return 1 // 0\n\ndef get_config():\n    return {'seed': rate()}\n")
    with pytest.raises(UserError, match=re.escape(f"{path}:2: return 1 // 0: ZeroDivisionError: ")):
        load_config(str(path))


def test_advice_on_config_files_works_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_config(load_config(EXAMPLE.partition("--config=")[2]))
    Path("mine.py").touch()
    with pytest.raises(UserError, match="has no get_config.. that returns a config; one line is enough: ") as error:
        load_config("mine.py")
    Path("mine.py").write_text(str(error.value).partition("enough: ")[2])
    assert load_config("mine.py") == default_config()
    with pytest.raises(UserError, match="has no sweep.. that returns a list of dicts.*; add a line such as: ") as error:
        load_sweep("mine.py")
    with Path("mine.py").open("a") as file:
        file.write("\n" + str(error.value).partition("such as: ")[2])
    assert load_sweep("mine.py") == [{"seed": 0}, {"seed": 1}] and load_config("mine.py") == default_config()


def test_numbers_of_numpy_are_numbers():
    config = default_config()
    set_field(config, "optimizer.learning_rate", np.geomspace(1e-3, 1e-1, 3)[1])
    set_field(config, "seed", np.arange(5)[3])
    assert config.optimizer.learning_rate == pytest.approx(1e-2) and type(config.optimizer.learning_rate) is float
    assert config.seed == 3 and type(config.seed) is int
    with pytest.raises(UserError, match="it takes a number"):
        set_field(config, "optimizer.learning_rate", np.ones(1))


def test_a_model_is_named_in_words():
    names = [
        ({"model": {"cell": "gru", "num_hiddens": 256}}, "GRU of 256 units"),
        ({"model": {"cell": "lstm", "num_layers": 2, "num_hiddens": 128}}, "LSTM of 2 × 128 units"),
        ({"model": {"kind": "mlp", "num_hiddens": 64}}, "MLP of 64 units"),
        ({"model": {"cell": "mine", "num_hiddens": 8}}, "mine of 8 units"),
    ]
    for given, name in names:
        assert model_name(complete_config(given)) == name
    assert text_name(complete_config({})) == "shakespeare"
    assert text_name(complete_config({"corpus": {"path": "novels/*.txt"}})) == "novels/*.txt"
