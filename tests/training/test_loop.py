import json
import os
import shutil
import signal
import time
from unittest.mock import ANY

import jax.numpy as jnp
import numpy as np
import pytest

from rnn_lm.data.corpus import load_corpus
from rnn_lm.errors import Diverged, UserError
from rnn_lm.inference.evaluate import evaluate
from rnn_lm.interrupts import Stopped
from rnn_lm.ngram import NGramLM
from rnn_lm.runs.checkpoints import Checkpoints
from rnn_lm.runs.folder import read_config, read_diverged
from rnn_lm.runs.load import load
from rnn_lm.runs.lock import locked
from rnn_lm.runs.record import read_metrics
from rnn_lm.training import loop as module
from rnn_lm.training.baselines import fit_ngram
from rnn_lm.training.run import Run
from rnn_lm.training.train import train
from tests.conftest import make_text, small_config


def numbers(workdir):
    """metrics.jsonl, timings aside."""
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in read_metrics(workdir)]


def final_arrays(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    arrays, _ = checkpoints.restore(checkpoints.steps()[-1])
    checkpoints.close()
    return arrays


def assert_same_run(a, b):
    assert numbers(a) == numbers(b)
    assert (a / "samples.txt").read_text() == (b / "samples.txt").read_text()
    mine, theirs = final_arrays(a), final_arrays(b)
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


def stop_at(monkeypatch, step, signum=signal.SIGTERM):
    """Sends this process a signal once a dispatch has passed `step`, and waits until the main thread has noted it."""
    original, sent = module.Trainer._handle, []

    def handle(self, start, until, report, launched, size):
        if until >= step and not sent:
            noting, deadline = signal.getsignal(signum), time.monotonic() + 10
            sent.append(os.kill(os.getpid(), signum))
            while signal.getsignal(signum) is noting and time.monotonic() < deadline:
                time.sleep(0.01)  # a thread that trains could be done with a short run before
        return original(self, start, until, report, launched, size)

    monkeypatch.setattr(module.Trainer, "_handle", handle)


def test_a_finished_run_has_all_its_files(run_folder):
    names = {path.name.partition(".tfevents")[0] for path in run_folder.iterdir()}
    assert names - {"mixture.json"} == {  # which is there once another test has used it
        "config.json", "vocabulary.json", "metrics.jsonl", "samples.txt", "summary.json", "ngram.npz",
        "checkpoints", "plots", "events.out",
    }  # fmt: skip
    assert (run_folder / "plots" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    lines = read_metrics(run_folder)
    assert [line["step"] for line in lines if line["split"] == "train"] == [10, 20, 30, 40, 50, 60]
    assert [line["step"] for line in lines if line["split"] == "valid"] == [20, 40, 60]
    assert all(line["tokens"] == line["step"] * 4 * 8 for line in lines)
    assert all(line["perplexity"] == pytest.approx(np.exp(line["nll"])) for line in lines)
    assert all(line["bits_per_char"] == pytest.approx(line["nll"] / np.log(2)) for line in lines)


def test_it_learns_and_the_summary_says_so(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
    baselines = summary["baselines"]
    assert baselines["uniform"]["perplexity"] == pytest.approx(summary["corpus"]["vocab_size"])
    assert summary["test"]["nll"] < baselines["unigram"]["nll"] < baselines["uniform"]["nll"]
    ngram = NGramLM.load(run_folder / "ngram.npz")
    corpus = load_corpus(**read_config(run_folder)[0].corpus)
    orders = [NGramLM.fit(corpus.train.ids, order=n, vocab_size=ngram.vocab_size) for n in range(1, 7)]
    best = min(orders, key=lambda model: model.nll(corpus.valid.ids))
    assert baselines["ngram"]["order"] == ngram.order == best.order > 1
    assert baselines["ngram"]["nll"] == best.nll(corpus.test.ids) < baselines["unigram"]["nll"]
    assert summary["valid_baselines"]["ngram"]["nll"] == best.nll(corpus.valid.ids) != baselines["ngram"]["nll"]
    assert set(summary["valid_baselines"]) == set(baselines)
    assert summary["steps"] == 60
    V, H = summary["corpus"]["vocab_size"], 16
    assert summary["num_params"] == V * H + H * H + H + H * V + V


def test_ngrams_are_counted_once_and_again_where_the_file_is_damaged(run_folder, tmp_path):
    shutil.copy(run_folder / "ngram.npz", tmp_path)
    corpus = load_corpus(**read_config(run_folder)[0].corpus)
    never = lambda: False  # noqa: E731
    kept = tmp_path / "ngram.npz"
    written, found = kept.stat().st_mtime_ns, fit_ngram(kept, corpus, never)
    assert kept.stat().st_mtime_ns == written
    other = NGramLM.fit(np.array([0, 1, 0]), order=1, vocab_size=2)
    for damage in (lambda: kept.write_bytes(b"damaged"), lambda: other.save(kept), kept.unlink):
        damage()
        assert fit_ngram(kept, corpus, never).nll(corpus.test.ids) == found.nll(corpus.test.ids)
        assert NGramLM.load(kept).order == found.order
    kept.unlink()
    assert fit_ngram(kept, corpus, lambda: True) is None and not kept.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer__schedule": "plateau", "optimizer__patience": 0},
        {"optimizer__schedule": "cosine", "model__kind": "mlp", "model__context": 1},
    ],
)
def test_stopped_twice_and_started_again_it_is_the_same_run(tmp_path, text_file, monkeypatch, changes):
    config = small_config(text_file, save_every=0, **changes)
    train(config, tmp_path / "through")
    for step, signum in [(13, signal.SIGTERM), (40, signal.SIGINT)]:
        with monkeypatch.context() as patch:
            stop_at(patch, step, signum)
            with pytest.raises(Stopped) as stopped:
                train(config, tmp_path / "stopped")
            assert stopped.value.signum == signum
            assert not (tmp_path / "stopped" / "summary.json").exists()
    train(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "through", tmp_path / "stopped")


def test_killed_without_a_word_it_goes_on_from_the_last_checkpoint(tmp_path, text_file, run_folder, monkeypatch):
    def die(self, step):
        if step == 60:
            raise KeyError("killed")
        return original(self, step)

    original = module.Trainer._evaluate
    with monkeypatch.context() as patch:
        patch.setattr(module.Trainer, "_evaluate", die)
        with pytest.raises(KeyError):
            train(small_config(text_file), tmp_path / "killed")
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "spl')  # a crash in the middle of a line
    train(small_config(text_file), tmp_path / "killed")
    assert_same_run(run_folder, tmp_path / "killed")


def test_logging_and_saving_do_not_change_the_model(tmp_path, text_file, run_folder):
    train(small_config(text_file, log_every=7, save_every=0), tmp_path / "other")
    mine, theirs = final_arrays(tmp_path / "other"), final_arrays(run_folder)
    for name in mine:
        if name.startswith(("params", "opt_state", "carry")):
            np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


def test_more_steps_continue_a_finished_run(tmp_path, text_file, run_folder):
    workdir = tmp_path / "run"
    shutil.copytree(run_folder, workdir)
    before = (workdir / "metrics.jsonl").read_text()
    assert train(small_config(text_file), workdir)["steps"] == 60  # finished: nothing happens
    assert (workdir / "metrics.jsonl").read_text() == before
    assert train(small_config(text_file, steps=80), workdir)["steps"] == 80
    assert (workdir / "metrics.jsonl").read_text().startswith(before)
    train(small_config(text_file, steps=80), tmp_path / "at_once")
    mine, theirs = final_arrays(workdir), final_arrays(tmp_path / "at_once")
    np.testing.assert_array_equal(mine["params.cell.w_hh"], theirs["params.cell.w_hh"])


def test_the_best_checkpoint_is_what_a_run_ends_with(tmp_path, text_file):
    """A rate that ruins the model late: the last evaluations are worse than an earlier one."""
    config = small_config(text_file, optimizer__name="sgd", optimizer__learning_rate=3.0, optimizer__clip_norm=0)
    config.steps, config.eval_every = 100, 5
    summary = train(config, tmp_path / "run")
    valid = {line["step"]: line["nll"] for line in read_metrics(tmp_path / "run") if line["split"] == "valid"}
    assert summary["best_step"] == min(valid, key=valid.get)
    kept = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert summary["best_step"] in kept and 100 in kept and len(kept) <= 4


def test_on_a_plateau_the_rate_falls_whenever_validation_is_not_better(tmp_path, text_file):
    given = {"name": "sgd", "learning_rate": 3.0, "clip_norm": 0.0, "schedule": "plateau", "patience": 0}
    changes = {f"optimizer__{name}": value for name, value in given.items()}
    train(small_config(text_file, steps=40, eval_every=5, log_every=5, **changes), tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    rate, best, rates = 3.0, np.inf, []
    for valid in (line["nll"] for line in lines if line["split"] == "valid"):
        rates.append(rate)
        rate, best = (rate, valid) if valid < best else (rate / 2, best)
    assert [line["learning_rate"] for line in lines if line["split"] == "train"] == pytest.approx(rates)
    assert 3.0 / 2**7 < rates[-1] < 3.0  # now and then


def test_a_signal_while_the_last_files_are_written_is_not_lost(tmp_path, text_file, monkeypatch):
    def close(self):
        os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    original = module.Trainer.close
    with monkeypatch.context() as patch:
        patch.setattr(module.Trainer, "close", close)
        with pytest.raises(Stopped):
            train(small_config(text_file, steps=5), tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    assert train(small_config(text_file, steps=5), tmp_path / "run")["steps"] == 5


def test_validation_lines_are_what_evaluate_says(tmp_path, text_file):
    config = small_config(text_file, steps=20, eval_tokens=320)
    train(config, tmp_path / "run")
    model, vocabulary = load(tmp_path / "run")
    corpus = load_corpus(**config.corpus)
    expected = evaluate(model, corpus.valid.ids[:321], reset_every=10).nll  # 32 streams of 10
    assert read_metrics(tmp_path / "run")[-1]["nll"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("where", ["parameter", "validation perplexity"])
def test_nothing_that_is_not_finite_is_saved(tmp_path, text_file, monkeypatch, where):
    def ruin(self, *arguments):
        state = arguments[-1] if where == "parameter" else self.state
        state.params.w_hq.set_value(jnp.asarray(state.params.w_hq[...]).at[0, 0].set(np.nan))
        return original(self, *arguments)

    owner, name = {"parameter": (Run, "save"), "validation perplexity": (module.Trainer, "_evaluate")}[where]
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, ruin)
    with pytest.raises(Diverged, match=f"{where} is not finite at step 20; no checkpoint is kept"):
        train(small_config(text_file), tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert read_diverged(tmp_path / "run") == {"step": 20, "what": ANY}


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, text_file):
    config = small_config(text_file, optimizer__name="sgd", model__activation="relu", optimizer__clip_norm=0)
    config.optimizer.learning_rate = 1e9
    with pytest.raises(Diverged, match="not finite at step"):
        train(config, tmp_path / "run")
    last = read_metrics(tmp_path / "run")[-1]
    assert last["perplexity"] is None
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_huge_loss_ends_the_run_and_no_checkpoint_of_it_stays(tmp_path, text_file):
    """The rate grows until a perplexity is not finite. Each step is saved before its loss is seen."""
    config = small_config(text_file, optimizer__name="sgd", optimizer__warmup_steps=1000, eval_every=0)
    config.save_every, config.log_every, config.optimizer.learning_rate = 1, 1, 1e5
    with pytest.raises(Diverged, match="the perplexity or a gradient is not finite at step"):
        train(config, tmp_path / "run")
    failed = read_diverged(tmp_path / "run")["step"]
    last = read_metrics(tmp_path / "run")[-1]
    assert last["step"] == failed and last["nll"] is not None and last["perplexity"] is None
    saved = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved[-1] == failed - 2  # update number `failed` saw the loss of the parameters of the step before it
    model, vocabulary = load(tmp_path / "run")
    assert np.isfinite(np.exp(evaluate(model, load_corpus(**config.corpus).train.ids[:200]).nll))
    with pytest.raises(Diverged, match=f"the checkpoint of step {saved[-1]} is kept"):  # resuming ends in the same way
        train(config, tmp_path / "run")
    assert sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())[-1] == saved[-1]


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_run_that_diverges_when_it_is_resumed_keeps_what_was_evaluated(tmp_path, text_file, monkeypatch, evaluated):
    """Without an evaluation nothing is known of the loss of the last checkpoint but that it is not finite."""
    config = small_config(text_file, steps=20, save_every=10, eval_every=20 if evaluated else 0)
    train(config, tmp_path / "run")
    if not evaluated:  # the end of a run always has one
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["split"] == "train"]
        (tmp_path / "run" / "metrics.jsonl").write_text("".join(kept))
    original = Run.open

    def ruined(self):
        state = original(self)
        state.params.w_hq[...] = 1e30 * state.params.w_hq[...]
        return state

    monkeypatch.setattr(Run, "open", ruined)
    config.steps = 40
    with pytest.raises(Diverged, match=f"the checkpoint of step {20 if evaluated else 10} is kept"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"model__num_hiddens": 17}, "model.num_hiddens is 16 there, 17 here"),
        ({"corpus__valid_fraction": 0.2}, "corpus.valid_fraction"),
    ],
)
def test_a_folder_of_another_config_is_refused(text_file, run_folder, changes, message):
    before = {path: path.read_bytes() for path in run_folder.glob("*.json*")}
    with pytest.raises(UserError, match=message) as caught:
        train(small_config(text_file, **changes), run_folder)
    assert f"--workdir={run_folder}-2" in str(caught.value)
    assert before == {path: path.read_bytes() for path in run_folder.glob("*.json*")}


def test_a_folder_of_another_text_is_refused_and_a_copy_of_the_text_is_not(tmp_path, text_file, run_folder):
    copy, other = tmp_path / "copy.txt", tmp_path / "other.txt"
    shutil.copy(text_file, copy)
    other.write_text(make_text(seed=1))
    assert train(small_config(copy), run_folder)["steps"] == 60
    with pytest.raises(UserError, match="the text has SHA-256"):
        train(small_config(other), run_folder)


def test_folders_that_are_no_runs_are_refused(tmp_path, text_file):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    (tmp_path / "full" / ".hidden").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "vocabulary.json").write_text("half of")  # as a kill before the first step may leave it
    for name, message in [("file", "is a file"), ("full", r"is not empty and not a run \(it has thesis.tex\)")]:
        with pytest.raises(UserError, match=message):
            train(small_config(text_file), tmp_path / name)
    assert {path.name for path in (tmp_path / "full").iterdir()} == {"thesis.tex", ".hidden"}
    assert train(small_config(text_file, steps=1), tmp_path / "empty")["steps"] == 1


def test_a_run_that_cannot_go_on_stays_as_it_is(tmp_path, text_file, run_folder):
    workdir = tmp_path / "run"
    shutil.copytree(run_folder, workdir)
    for path in (workdir / "checkpoints" / "60").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    before = {path: path.read_bytes() for path in workdir.rglob("*.*") if path.is_file()}
    with pytest.raises(UserError, match="is damaged"):
        train(small_config(text_file, steps=80), workdir)
    (workdir / "summary.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "60")
    with pytest.raises(UserError, match="is already at step 50; set --config.steps to at least that"):
        train(small_config(text_file, steps=30), workdir)
    assert before == before | {path: path.read_bytes() for path in before if path.exists()}


def test_two_processes_do_not_train_in_one_folder(tmp_path, text_file):
    with locked(tmp_path / "run"):
        with pytest.raises(UserError, match="another process is training"):
            train(small_config(text_file), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # nor is anything left


def test_the_suggested_folder_is_free_whatever_the_name(tmp_path, text_file, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "x").touch()
    monkeypatch.chdir(tmp_path / "here")
    for name in (".", "../here", str(tmp_path / "here")):
        with pytest.raises(UserError, match=r"here-2\Z"):
            train(small_config(text_file), name)
    with pytest.raises(UserError, match="such as --workdir=.*run-2"):
        train(small_config(text_file), "/")


def test_a_foreign_config_json_is_no_run(tmp_path, text_file):
    for content in ('{"architectures": ["GPT2"]}', '{"corpus": "wiki"}', "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match="config.json"):
            train(small_config(text_file), tmp_path)
        assert (tmp_path / "config.json").read_text() == content


def test_a_text_too_short_for_a_minibatch_leaves_nothing_behind(tmp_path, text_file):
    with pytest.raises(UserError, match="needs 80009: give a longer text, or a smaller batch_size"):
        train(small_config(text_file, batch_size=10_000), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_all_that_is_drawn_at_random_is_drawn_again_by_a_resumed_run(tmp_path, text_file, monkeypatch):
    """Dropout between two layers of LSTM and before the output layer, and randomized truncation."""
    model = {"cell": "lstm", "num_layers": 2, "dropout": 0.3, "embed_dim": 16, "tie": True, "layer_norm": True}
    truncation = {"truncation__kind": "randomized", "truncation__keep_probability": 0.5}
    config = small_config(text_file, **truncation, **{f"model__{name}": value for name, value in model.items()})
    train(config, tmp_path / "through")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 23)
        train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "through", tmp_path / "stopped")
    assert {"params.cell.cells.1.w_hh", "carry.1.c"} <= final_arrays(tmp_path / "through").keys()
    model, vocabulary = load(tmp_path / "through")
    result = evaluate(model, vocabulary.encode("the time traveller smiled"))
    assert result.nll < np.log(len(vocabulary)) and set(result.max_abs) == {"h", "c"}


@pytest.mark.slow
def test_a_run_by_tbptt_stopped_and_resumed_ends_with_the_same_bits(tmp_path, text_file, monkeypatch):
    given = {"kind": "tbptt", "steps": 8, "update_every": 2}
    config = small_config(text_file, **{f"truncation__{name}": value for name, value in given.items()})
    summary = train(config, tmp_path / "through")
    assert summary["tokens"] == 60 * 4 * 2
    assert read_metrics(tmp_path / "through")[-1]["tokens"] == summary["tokens"]
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 23)
        train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "through", tmp_path / "stopped")
