"""The end of a run: final figures, `summary.json` and the learning curve."""

import importlib.metadata
import platform
import sys
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import rnn_lm
from rnn_lm.data.corpus import Corpus
from rnn_lm.files import write_json
from rnn_lm.inference.evaluate import evaluate, figures, runs_away
from rnn_lm.ngram import NGramLM
from rnn_lm.nn import native
from rnn_lm.training.baselines import score_baselines
from rnn_lm.training.config import tokens_per_step
from rnn_lm.training.metrics import read_metrics
from rnn_lm.training.progress import load_plots
from rnn_lm.training.run_folder import SUMMARY, load_checkpoint

RESET_EVERY = 1000  # tokens, in the second measurement of each split


def write_summary(
    workdir: Path,
    config: ConfigDict,
    corpus: Corpus,
    ngram: NGramLM,
    *,
    started: float,
    seconds_to_first_step: float | None,
    tokens_per_second: float | None,
) -> None:
    """Scores the best checkpoint on the whole of the validation and test text; writes the summary and the picture."""
    print("scoring the best checkpoint on the whole validation and test text …", file=sys.stderr, flush=True)
    model, best_step, steps = load_checkpoint(workdir, config, len(corpus.vocabulary))
    summary: dict[str, Any] = {
        "steps": steps,
        "best_step": best_step,
        "tokens": steps * tokens_per_step(config),
        "num_params": model.num_params,
        "seconds_to_first_step": seconds_to_first_step,
        "wall_seconds": None,
        "tokens_per_second": tokens_per_second,
        "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
        "machine_code": native.is_available(),  # whether unroll has it; the bits of a run depend on it
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
    lines = read_metrics(workdir)
    train_lines = [line for line in lines if line["split"] == "train"]
    if train_lines:
        summary["train"] = {name: train_lines[-1][name] for name in ("nll", "perplexity", "bits_per_char")}
    for name, split in [("valid", corpus.valid), ("test", corpus.test)]:
        if split.tokens:
            carried, reset = (evaluate(model, split.ids, reset_every=every) for every in (0, RESET_EVERY))
            summary[name] = figures(carried.nll, split.tokens_per_character) | {
                "tokens": carried.tokens,
                "unknown": split.unknown,
                "reset": {"every": RESET_EVERY} | figures(reset.nll, split.tokens_per_character),
                "runs_away": runs_away(carried, reset),
            }
    summary["baselines"] = score_baselines(ngram, corpus, corpus.test if "test" in summary else corpus.valid)
    _draw(workdir, lines, summary)
    summary["wall_seconds"] = time.perf_counter() - started
    write_json(workdir / SUMMARY, summary)


def _draw(workdir: Path, lines: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    if (plots := load_plots()) is None:
        return
    name = "test" if "test" in summary else "valid"
    result, baselines = summary[name], summary["baselines"]
    names = {name: f"{baselines['ngram']['order']}-gram" if name == "ngram" else name for name in baselines}
    plots.learning_curve(
        workdir / "plots" / "learning_curve.png",
        lines,
        {f"{names[name]} model": value["perplexity"] for name, value in baselines.items()},
        f"The best checkpoint, of step {summary['best_step']:,}, has {name} perplexity {result['perplexity']:.2f} "
        f"({result['bits_per_char']:.2f} bits per character); the {names['ngram']} model has "
        f"{baselines['ngram']['perplexity']:.2f}.",
    )


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"rnn_lm": rnn_lm.__version__, "python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names
    }
