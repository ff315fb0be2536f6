"""`init_from`: a run that starts from the weights of another."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import rnn_lm
from rnn_lm.commands import main
from rnn_lm.data.corpus import load_corpus
from rnn_lm.data.vocabulary import NEVER
from rnn_lm.errors import UserError
from rnn_lm.files import read_json
from rnn_lm.program import model_of, program_of
from rnn_lm.runs.load import adopt, arrays_of, text_and_origin
from rnn_lm.sweeps.members import members_of
from rnn_lm.sweeps.rivals import compare
from rnn_lm.sweeps.sweep import sweep
from rnn_lm.training.step import new_state
from rnn_lm.training.train import train
from tests.conftest import make_text, small_config


@pytest.fixture(scope="module")
def other_text(tmp_path_factory):
    """A text with three characters that the source's lacks."""
    path = tmp_path_factory.mktemp("text") / "other.txt"
    path.write_text("ÄÖÄ?ÄÖ\n" * 40 + make_text(lines=200, seed=1), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, run_folder, other_text):
    workdir = tmp_path_factory.mktemp("runs") / "tuned"
    config = small_config(other_text, init_from=str(run_folder), seed=3, steps=30, model__num_hiddens=99)
    return config, workdir, train(config, workdir)


def test_the_weights_and_the_vocabulary_are_the_sources_and_new_tokens_come_last(tuned, run_folder, capsys):
    config, workdir, _ = tuned
    source, known = rnn_lm.load(run_folder)
    model, vocabulary = rnn_lm.load(workdir)
    assert config.model.num_hiddens == 99  # not changed
    assert model.w_hq.shape == (16, len(known) + 3)
    assert vocabulary.tokens == [*known.tokens, "Ä", "Ö", "?"]  # the most frequent first
    assert read_json(workdir / "config.json")["model"]["num_hiddens"] == 16
    assert source.w_hq.shape == (16, len(known))


KINDS = {
    "elman": {},
    "lstm": {"model__cell": "lstm", "model__num_layers": 2, "model__embed_dim": 16, "model__tie": True},
    "gru": {"model__cell": "gru", "model__reset_after": False},
    "mlp": {"model__kind": "mlp", "model__context": 3},
    "mlp with embedding": {"model__kind": "mlp", "model__context": 3, "model__embed_dim": 5},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_weights_give_the_sources_logits(kind, text_file, other_text, tmp_path):
    """For all tokens that it knows; the rows of new ones are those of a random start."""
    source = small_config(text_file, **KINDS[kind])
    known = load_corpus(**source.corpus).vocabulary
    program, numbers = program_of(source, len(known))
    old = model_of(program, new_state(program, numbers).params)
    rnn_lm.save(tmp_path / "source", old, known)
    config = adopt(small_config(other_text, init_from=str(tmp_path / "source"), seed=5))
    corpus, origin = text_and_origin(config)
    program, numbers = program_of(config, len(corpus.vocabulary))
    fresh = new_state(program, numbers).params
    params = origin.put_into(fresh, program)
    new, random = model_of(program, params), model_of(program, fresh)
    ids = jnp.asarray(known.encode("the machine seen")[:, None])
    size = len(known)
    _, expected = old(old.initialize_carry(1), ids)
    _, logits = new(new.initialize_carry(1), ids)
    np.testing.assert_array_equal(logits[..., :size], expected)
    if config.model.tie:
        np.testing.assert_array_equal(new.embedding[size:], random.embedding[size:])
    else:
        np.testing.assert_array_equal(new.w_hq[:, size:], random.w_hq[:, size:])
    if config.model.kind == "mlp" and not config.model.embed_dim:
        blocks = [np.asarray(model.w_xh[...]).reshape(3, -1, 16) for model in (new, random)]
        np.testing.assert_array_equal(blocks[0][:, size:], blocks[1][:, size:])
    assert not np.array_equal(
        *(arrays_of(model)["embedding" if config.model.embed_dim else "w_hq"][:size] for model in (new, random))
    )


def test_it_says_so_and_learns_faster(tuned, run_folder, other_text, tmp_path, capsys):
    config, _, summary = tuned
    train(config, tmp_path / "again")
    assert f"weights: from {run_folder}; 3 tokens are new to it, with random weights: 'Ä', 'Ö', '?'" in (
        capsys.readouterr().err
    )
    assert read_json(tmp_path / "again" / "summary.json")["valid"] == summary["valid"]  # the same bits
    plain = train(small_config(other_text, seed=3, steps=30), tmp_path / "plain")
    assert summary["valid"]["nll"] < plain["valid"]["nll"]
    assert (summary["init_from"], "init_from" in plain) == ({"path": str(run_folder), "new_tokens": 3}, False)


def test_it_is_a_run_like_others_also_when_the_source_is_gone(run_folder, other_text, tmp_path, capsys):
    source, workdir = tmp_path / "source", tmp_path / "tuned"
    shutil.copytree(run_folder, source)
    config = small_config(other_text, init_from=str(source), steps=20)
    train(config, workdir)
    config.steps = 40
    train(config, workdir)  # resumed
    through = train(config, tmp_path / "through")
    assert read_json(workdir / "summary.json")["test"] == through["test"]
    shutil.rmtree(source)
    assert main(["evaluate", f"--workdir={workdir}"]) == 0
    assert json.loads(capsys.readouterr().out)["nll"] == pytest.approx(through["test"]["nll"], rel=1e-6)
    with pytest.raises(UserError, match=f"--config.init_from={source} holds no run"):
        train(config, workdir)


def test_the_weights_are_part_of_the_runs_identity(tuned, text_file, other_text, run_folder, tmp_path):
    config, workdir, _ = tuned
    train(small_config(text_file, steps=2, seed=7, eval_every=0), tmp_path / "other")
    for start, message in (
        (str(tmp_path / "other"), "SHA-256 .*… there, SHA-256 .*… here"),
        ("", "SHA-256 .*… there, none here"),
    ):
        changed = small_config(other_text, init_from=start, seed=3, steps=30)
        with pytest.raises(UserError, match=f"another config: .*the model of init_from has {message}"):
            train(changed, workdir)
    shutil.copytree(run_folder, tmp_path / "copy")  # the same weights elsewhere
    config = small_config(other_text, init_from=str(tmp_path / "copy"), seed=3, steps=30)
    assert train(config, workdir)["steps"] == 30


def test_what_must_agree_is_the_sources_unless_it_was_given(run_folder, other_text, tmp_path, capsys):
    file = tmp_path / "conf.py"
    file.write_text(
        "def get_config():\n    return {'steps': 2, 'eval_every': 0, 'model': {'cell': 'gru', 'num_layers': 3},\n"
        f"            'batch_size': 2, 'segment_length': 8, 'corpus': {{'path': {str(other_text)!r}}}}}\n"
    )
    flags = [f"--config={file}", f"--workdir={tmp_path / 'run'}", f"--config.init_from={run_folder}"]
    assert main([*flags, "--config.model.num_hiddens=17"]) == 2
    error = capsys.readouterr().err
    assert "error: config.model.num_hiddens is 17 here and 16 in --config.init_from=" in error
    assert len(error.splitlines()) == 1 and not (tmp_path / "run").exists()
    assert main([*flags, "--config.corpus.tokens=byte"]) == 2
    assert main([*flags, "--config.model.num_hiddens=16"]) == 0
    assert read_json(tmp_path / "run" / "config.json")["model"]["cell"] == "elman"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: None, "holds no run"),
        (lambda path: path.mkdir(), "holds no run"),
        (lambda path: path.write_text("a file"), "holds no run"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("{}")), "is not the config of a run"),
    ],
)
def test_no_model_there(make, message, other_text, tmp_path):
    make(tmp_path / "source")
    with pytest.raises(UserError, match=message):
        train(small_config(other_text, init_from=str(tmp_path / "source")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["sequential", pytest.param("vmap", marks=pytest.mark.slow)])
def test_members_of_a_sweep_start_from_it(run_folder, other_text, tmp_path, mode):
    config = small_config(other_text, init_from=str(run_folder), steps=10, eval_every=0, sweep__mode=mode)
    result = sweep(config, [{"seed": 3}, {"seed": 4}], tmp_path / "sweep")
    alone = train(small_config(other_text, init_from=str(run_folder), steps=10, eval_every=0, seed=3), tmp_path / "run")
    assert result["members"][0]["valid"]["nll"] == pytest.approx(alone["valid"]["nll"], rel=1e-5)
    both = [{"init_from": "", "seed": 3}, {"init_from": str(run_folder), "seed": 3}]
    members = members_of(small_config(other_text, steps=10), both, tmp_path / "both")
    assert [len(member.corpus.vocabulary) for member in members] == [
        len(load_corpus(**config.corpus).vocabulary),
        len(rnn_lm.load(run_folder)[1]) + 3,
    ]
    with pytest.raises(UserError, match="member 1 .* config.model.cell is 'gru' here and 'elman' in"):
        members_of(config, [{"model.cell": "gru"}], tmp_path / "wrong")


def test_an_unk_that_could_not_be_drawn_can_be_learned(run_folder, other_text, tmp_path):
    """As imported models have it."""
    model, vocabulary = rnn_lm.load(run_folder)
    model.b_q[...] = model.b_q[...].at[0].set(NEVER)
    rnn_lm.save(tmp_path / "source", model, vocabulary)
    config = small_config(other_text, init_from=str(tmp_path / "source"), steps=20, corpus__max_vocab=2)
    assert train(config, tmp_path / "run")["train"]["perplexity"] < 100


def test_another_vocabulary_is_another_origin(tuned, run_folder, other_text, tmp_path):
    config, workdir, _ = tuned
    shutil.copytree(run_folder, tmp_path / "source")
    file = tmp_path / "source" / "vocabulary.json"
    value = json.loads(file.read_text())
    value["tokens"][1:3] = value["tokens"][2:0:-1]
    file.write_text(json.dumps(value))
    changed = small_config(other_text, init_from=str(tmp_path / "source"), seed=3, steps=30)
    with pytest.raises(UserError, match="the model of init_from has SHA-256 .*… there, SHA-256 .*… here"):
        train(changed, workdir)
    with pytest.raises(UserError, match=f"--config.init_from={workdir} is the --workdir; give another folder"):
        train(small_config(other_text, init_from=str(workdir)), workdir)


def test_a_comparison_starts_from_nothing(run_folder, other_text, tmp_path):
    with pytest.raises(UserError, match="config.init_from is not for compare"):
        compare(small_config(other_text, init_from=str(run_folder)), tmp_path / "compared")


def test_a_limit_counts_the_sources_tokens_too(run_folder, other_text):
    known = len(rnn_lm.load(run_folder)[1])
    for limit, size in ((known + 1, known + 1), (2, known)):
        config = adopt(small_config(other_text, init_from=str(run_folder), corpus__max_vocab=limit))
        assert len(text_and_origin(config)[0].vocabulary) == size
