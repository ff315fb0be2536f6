"""The end of a run: final figures, `summary.json` and the learning curve."""

import importlib.metadata
import math
import platform
import threading
import time
from collections import deque

import jax

import rnn_lm
from rnn_lm.config import model_name, tokens_per_step
from rnn_lm.data.corpus import Split
from rnn_lm.files import Json, absolute, write_json
from rnn_lm.inference.evaluate import MAX_NLL, Evaluation, evaluate_members, figures, runs_away
from rnn_lm.nn import native
from rnn_lm.plots import can_draw
from rnn_lm.runs.folder import NGRAM, SUMMARY
from rnn_lm.runs.load import load_checkpoint
from rnn_lm.runs.record import metric_lines
from rnn_lm.training.baselines import Baselines
from rnn_lm.training.loop import Trainer
from rnn_lm.training.run import Run

_drawing = threading.Lock()  # matplotlib is not thread-safe
RESET_EVERY = 1000  # tokens between resets in the second evaluation of each split


def finish(trainer: Trainer, baselines: Baselines) -> None:
    """Scores the best checkpoint of each run on the whole validation and test text; writes its summary and plot."""
    runs = [run for run in trainer.runs if not (run.ended or run.diverged or run.pruned)]
    if not runs:
        return
    corpus = runs[0].corpus
    for run in runs:
        baselines.share(run.workdir / NGRAM)
    loaded = [load_checkpoint(run.workdir, run.config, len(corpus.vocabulary)) for run in runs]
    models = [model for model, _, _ in loaded]
    scores = {
        name: [evaluate_members(models, split.ids, reset_every=every) for every in (0, RESET_EVERY)]
        for name, split in (("valid", corpus.valid), ("test", corpus.test))
        if split.tokens
    }
    rivals, read = _rivals(trainer, baselines) if can_draw() else {}, _read(trainer)
    for i, (run, (model, best_step, steps)) in enumerate(zip(runs, loaded, strict=True)):
        if away := [name for name, (carried, _) in scores.items() if not carried[i].nll < MAX_NLL]:
            run.diverge(best_step, f"the perplexity of the whole {away[0]} text")
            continue
        summary: Json = {
            "steps": steps,
            "best_step": best_step,
            "stop_patience": run.config.stop_patience if steps < run.config.steps else 0,  # 0: not stopped early
            "tokens": steps * tokens_per_step(run.config),
            "num_params": model.num_params,
            "wall_seconds": None,
            "seconds_to_first_step": trainer.seconds_to_first_step,
            "tokens_per_second": trainer.total.speed(tokens_per_step(run.config)),
            "lanes": trainer.members.count,
            "devices": trainer.mesh.size,  # that share each minibatch
            "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
            # The bits of a run depend on it.
            "machine_code": jax.default_backend() == "cpu" and native.is_available(),
            "versions": _versions(),
            "corpus": {
                "source": corpus.name,
                "sha256": corpus.sha256,
                "vocab_size": len(corpus.vocabulary),
                "train_tokens": len(corpus.train.ids),
                "valid_tokens": len(corpus.valid.ids),
                "test_tokens": len(corpus.test.ids),
            },
        }
        if run.origin:
            new = len(corpus.vocabulary) - len(run.origin.vocabulary)
            summary["init_from"] = {"path": absolute(run.origin.path), "new_tokens": new}
        for line in deque(metric_lines(run.workdir, "train"), maxlen=1):
            summary["train"] = {name: line[name] for name in ("nll", "perplexity", "bits_per_char")}
        for name, (carried, reset) in scores.items():
            summary[name] = _scored(getattr(corpus, name), carried[i], reset[i])
        summary["baselines"], summary["valid_baselines"] = baselines.scores, baselines.valid_scores
        with _drawing:
            _draw(run, rivals, read)
        summary["wall_seconds"] = time.perf_counter() - trainer.started
        write_json(run.workdir / SUMMARY, summary)


def _scored(split: Split, carried: Evaluation, reset: Evaluation) -> Json:
    return figures(carried.nll, split.tokens_per_character) | {
        "comparable": split.comparable,
        "tokens": carried.tokens,
        "unknown": split.unknown,
        "reset": {"every": RESET_EVERY} | figures(reset.nll, split.tokens_per_character),
        "runs_away": runs_away(carried, reset),
    }


def _rivals(trainer: Trainer, baselines: Baselines) -> dict[str, float]:
    """The baselines' perplexities on what the evaluations during training read."""
    names = {"ngram": f"{baselines.scores['ngram']['order']}-gram"}
    nlls = baselines.valid_nlls(len(trainer.eval_ids) - 1)
    return {f"{names.get(name, name)} model": math.exp(nll) for name, nll in nlls.items()}


def _read(trainer: Trainer) -> str:
    """What the evaluations during training read, in words."""
    tokens, all_tokens = len(trainer.eval_ids) - 1, trainer.runs[0].corpus.valid.tokens
    return f"the first {tokens:,} tokens of the validation text" if tokens < all_tokens else "the validation text"


def _draw(run: Run, rivals: dict[str, float], read: str) -> None:
    if not can_draw():
        return
    from rnn_lm.plots.curves import learning_curve

    of = f"{model_name(run.config)} on {run.corpus.name}, seed {run.config.seed}"
    path, lines = run.workdir / "plots" / "learning_curve.png", metric_lines(run.workdir)
    learning_curve(path, lines, rivals, of=of, read=read)


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"rnn_lm": rnn_lm.__version__, "python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names
    }
