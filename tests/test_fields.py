"""Another value of a field shows where the table says: in the program, its result, what the host does, the text."""

from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from rnn_lm.config import check_config, complete_config, set_field
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.fields import FIELDS
from rnn_lm.mesh import AXIS, DataMesh
from rnn_lm.nn.models import RNNLM
from rnn_lm.program import Numbers, batches_of, cohort_of, program_of
from rnn_lm.runs.folder import Hashes
from rnn_lm.runs.load import text_and_origin
from rnn_lm.runs.record import read_metrics
from rnn_lm.runs.save import save
from rnn_lm.sweeps.members import members_of
from rnn_lm.sweeps.storage import in_our_words
from rnn_lm.sweeps.study import Study
from rnn_lm.sweeps.sweep import plan
from rnn_lm.training.loop import Trainer
from rnn_lm.training.progress import ProgressDisplay
from rnn_lm.training.run import Best, Run
from rnn_lm.training.step import new_state, train_steps
from tests.conftest import make_text

SMALL = {"steps": 4, "batch_size": 2, "segment_length": 8, "model.num_hiddens": 6, "optimizer.learning_rate": 0.01}


@dataclass(frozen=True)
class Row:
    """Another value of a field, and what else must be so for it to be read."""

    value: Any
    beside: dict[str, Any] = field(default_factory=dict)


ROWS = {
    "seed": Row(1),
    "steps": Row(6),
    "batch_size": Row(3),
    "segment_length": Row(9),
    "remat": Row(4),
    "partition": Row("random"),
    "log_every": Row(1),
    "eval_every": Row(2),
    "eval_tokens": Row(100),
    "save_every": Row(2),
    "stop_patience": Row(1, {"eval_every": 1, "optimizer.learning_rate": 0.0}),
    "init_from": Row("a run"),  # whose vocabulary it is
    "corpus.source": Row("recall", {"corpus.path": ""}),
    "corpus.path": Row("other.txt"),
    "corpus.tokens": Row("word"),
    "corpus.normalize": Row("letters"),
    "corpus.max_vocab": Row(5),
    "corpus.max_tokens": Row(900),
    "corpus.valid_fraction": Row(0.2),
    "corpus.test_fraction": Row(0.2),
    "model.kind": Row("mlp"),
    "model.cell": Row("gru"),
    "model.context": Row(3, {"model.kind": "mlp"}),
    "model.num_hiddens": Row(7),
    "model.num_layers": Row(2),
    "model.embed_dim": Row(4),
    "model.activation": Row("relu"),
    "model.dropout": Row(0.5, {"model.dropout": 0.2}),
    "model.tie": Row(True, {"model.embed_dim": 6}),
    "model.layer_norm": Row(True),
    "model.reset_after": Row(False, {"model.cell": "gru"}),
    "model.dtype": Row("bfloat16"),
    "model.initial_radius": Row(0.5),
    "truncation.kind": Row("window", {"truncation.kind": "segment", "truncation.steps": 3}),
    "truncation.steps": Row(4, {"truncation.kind": "segment", "truncation.steps": 3}),
    "truncation.update_every": Row(
        4, {"truncation.kind": "tbptt", "truncation.steps": 8, "truncation.update_every": 2}
    ),
    "truncation.keep_probability": Row(0.9, {"truncation.kind": "randomized", "truncation.keep_probability": 0.5}),
    "optimizer.name": Row("sgd"),
    "optimizer.learning_rate": Row(0.02),
    "optimizer.momentum": Row(0.9, {"optimizer.name": "sgd"}),
    "optimizer.schedule": Row("cosine"),
    "optimizer.warmup_steps": Row(3),
    "optimizer.decay_factor": Row(0.1, {"optimizer.schedule": "step", "optimizer.decay_every": 1}),
    "optimizer.decay_every": Row(2, {"optimizer.schedule": "step", "optimizer.decay_every": 1}),
    "optimizer.patience": Row(0, {"optimizer.schedule": "plateau"}),
    "optimizer.weight_decay": Row(0.1),
    "optimizer.clip_norm": Row(0.01),
    "mesh.data": Row(2),
    "sweep.mode": Row("vmap"),
    "sweep.trials": Row(3),
    "sweep.sampler": Row("random"),
    "sweep.pruner": Row("none"),
}


def at(place):
    return [name for name, field in FIELDS.items() if field.place == place]


@pytest.fixture(scope="module")
def configs(text_file):
    """`configs(name)`: a small config, and the same with another value of the field."""
    other = text_file.with_name("other.txt")
    other.write_text(make_text(seed=1))
    known = Vocabulary.of("machine", kind="char", normalize="none")
    save(text_file.with_name("run"), RNNLM(len(known), 6, rngs=nnx.Rngs(0)), known)
    named = {"other.txt": str(other), "a run": str(text_file.with_name("run"))}

    def both(name):
        row = ROWS[name]
        made = []
        for changes in (row.beside, row.beside | {name: row.value}):
            config = complete_config({})
            for each, value in ({"corpus.path": str(text_file)} | SMALL | changes).items():
                set_field(config, each, named.get(value, value))
            check_config(config)
            made.append(config)
        return made

    return both


def test_every_field_has_a_row_and_every_number_a_leaf():
    assert list(ROWS) == list(FIELDS)
    leaves = {name.rpartition(".")[2] for name in at("number")} | {"steps", "plateau_factor"}
    assert set(Numbers._fields) == leaves


@cache
def _corpus_of(init_from, **corpus):
    return text_and_origin(complete_config({"init_from": init_from, "corpus": corpus}))[0]


def corpus_of(config):
    return _corpus_of(config.init_from, **config.corpus)


def arguments(config):
    corpus = corpus_of(config)
    program, numbers = program_of(config, len(corpus.vocabulary))
    numbers = numbers.arrays()
    return program, (new_state(program, numbers), jnp.int32(config.steps), batches_of(program, corpus), numbers)


@pytest.mark.parametrize("name", at("program"))
def test_another_program(name, configs):
    programs, texts = [], []
    for config in configs(name):
        program, given = arguments(config)
        programs.append(program)
        mesh = DataMesh(AbstractMesh((2,), (AXIS,), (AxisType.Auto,)) if config.mesh.data == 2 else None)
        texts.append(train_steps.trace(*given, program=program, mesh=mesh).lower(lowering_platforms=("cpu",)).as_text())
    assert programs[0] != programs[1] and texts[0] != texts[1]


@pytest.mark.parametrize("name", at("number"))
def test_another_result_of_one_program(name, configs):
    results = []
    for program, given in map(arguments, configs(name)):
        results.append(train_steps(*given, program=program)[0].params)
        compiled = train_steps._cache_size()  # after the first
    assert train_steps._cache_size() == compiled
    assert not all(map(np.array_equal, *(jax.tree.leaves(params) for params in results)))
    assert len({program_of(config, 9)[0] for config in configs(name)}) == 1


@pytest.mark.parametrize("name", at("data"))
def test_another_text(name, configs):
    known = [
        (corpus.vocabulary.tokens, *(split.ids.tobytes() for split in (corpus.train, corpus.valid, corpus.test)))
        for corpus in map(corpus_of, configs(name))
    ]
    assert known[0] != known[1]
    assert len({program_of(config, 9) for config in configs(name)}) == 1


@pytest.mark.parametrize("name", at("host"))
def test_another_behaviour_of_the_host(name, configs, tmp_path, monkeypatch):
    monkeypatch.setattr("rnn_lm.training.loop.SAMPLE_LENGTH", 2)
    known = [BEHAVIOUR[name](config, tmp_path / str(i)) for i, config in enumerate(configs(name))]
    assert known[0] != known[1]
    assert len({program_of(config, 9)[0] for config in configs(name)}) == 1


def trained(config, workdir):
    """What the record has of a run, and its checkpoints."""
    run = Run(config, workdir, corpus_of(config))
    trainer = Trainer([run], batches_of(run.program, run.corpus))
    trainer.run(lambda: False, ProgressDisplay(0, config.steps))
    trainer.close()
    timeless = [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in read_metrics(workdir)]
    return timeless, sorted(path.name for path in (workdir / "checkpoints").iterdir())


def plateau(config, workdir):
    best = Best(step=1, nll=1.0)
    best.update(2, 2.0, config)
    return best.plateau_factor


def jobs(config, workdir):
    return [len(job) for job in plan(members_of(config, [{"seed": 0}, {"seed": 1}], workdir), 1)]


def found(config, workdir):
    """What a study draws, and which of its trials it gives up."""
    ended = []
    with in_our_words(), closing(Study(workdir, config, Hashes("", ""), "")) as study:
        while drawn := study.ask(lambda trial: {"x": trial.suggest_float("x", 0, 1)}):
            ended.append((drawn.overrides, study.prune(drawn.number, 3, drawn.number)))
            study.tell(drawn.number, "finished", 1.0)
    return ended


BEHAVIOUR = dict.fromkeys(at("host"), trained) | {"optimizer.patience": plateau, "sweep.mode": jobs}
BEHAVIOUR |= {"sweep.trials": found, "sweep.sampler": found, "sweep.pruner": found}


@pytest.mark.parametrize("name", FIELDS)
def test_runs_are_trained_together_that_differ_in_numbers_only(name, configs):
    together = len({cohort_of(config) for config in configs(name)}) == 1
    assert together == (FIELDS[name].place == "number")


def test_dropout_of_none_is_another_program(text_file):
    off, on = (complete_config({"model": {"dropout": rate}}) for rate in (0.0, 0.1))
    assert cohort_of(off) != cohort_of(on) and program_of(off, 9)[0] != program_of(on, 9)[0]
