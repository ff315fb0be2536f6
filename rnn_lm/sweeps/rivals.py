"""Models compared on one text and one budget: uniform, unigram, n-grams, an MLP and recurrent networks."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from rnn_lm.config import RECURRENT_ONLY, check_config, set_field, tokens_per_step
from rnn_lm.data.corpus import Corpus, Split, load_corpus
from rnn_lm.errors import Diverged, UserError
from rnn_lm.fields import FIELDS
from rnn_lm.files import Json, path_of, read_json, write_json
from rnn_lm.inference.evaluate import figures
from rnn_lm.inference.reading import MAX_LOGITS
from rnn_lm.interrupts import Stopped, deferred_signals
from rnn_lm.ngram import MAX_ORDER, HeldOut, NGramLM
from rnn_lm.nn.models import LanguageModel
from rnn_lm.nn.registry import OPTIONAL, cell_class, takes
from rnn_lm.program import new_model, program_of
from rnn_lm.runs.folder import SUMMARY, check_only
from rnn_lm.runs.load import load
from rnn_lm.runs.lock import LOCK
from rnn_lm.sweeps.members import Member, check_members
from rnn_lm.sweeps.results import NGRAMS, PLOTS, outcome_of, row_of
from rnn_lm.sweeps.shared import counts_path
from rnn_lm.sweeps.sweep import train_members
from rnn_lm.training.baselines import MAX_NGRAM_ORDER, MAX_NGRAM_TOKENS, order_chooser

RESULT = "compare.json"
NETWORKS = ("mlp", "elman", "gru", "lstm")
EMBED_DIM = 32  # of the MLP if model.embed_dim is 0
MAX_CONTEXT = 128  # tokens, the longest context in `use_of_context`
WINDOWS, MAX_SCORES = 2**14, 2**30  # at most, in `use_of_context`; MAX_SCORES are logits


def compare(config: ConfigDict, workdir: str | Path, on_progress: Callable[[str], object] = lambda what: None) -> Json:
    """Trains all models and scores them on the test text, or on the validation text if there is no test text.

    Each network is trained in its own folder; an interrupted comparison resumes. `on_progress` gets the name of each
    part before it starts.

    Returns:
      The content of `compare.json`.

    Raises:
      UserError: the config, the text or the folder is invalid; nothing is left behind.
      Diverged, Stopped: as in `train`.
    """
    workdir, names = path_of(workdir), networks_of(config)
    if config.stop_patience:
        raise UserError("config.stop_patience is not for compare: all networks get the same budget; leave it out")
    if config.init_from:
        raise UserError("config.init_from is not for compare: all start from random weights; give --config.init_from=")
    configs = {name: config_of(config, name) for name in names}
    corpus = load_corpus(**config.corpus)
    check_only(workdir, {*names, RESULT, NGRAMS, PLOTS, LOCK}, "a comparison")
    members = [Member(name, {}, configs[name], workdir / name, corpus) for name in names]
    check_members(members, workdir)
    part = "test" if corpus.test.tokens else "valid"
    split: Split = getattr(corpus, part)

    ngrams, counted = score_ngrams(corpus, split, on_progress)
    counted.save(counts_path(workdir / NGRAMS, corpus))
    on_progress(f"training {', '.join(names)}")
    with deferred_signals() as pending:  # one network at a time, to measure its speed
        train_members(
            members,
            workdir / NGRAMS,
            stop=lambda: bool(pending.signum),
            devices=jax.local_devices()[: config.mesh.data],
        )
        if pending.signum:
            raise Stopped(pending.signum, "stopped and saved; run the same command to resume")
    for row in map(row_of, members):
        if row["status"] == "diverged":
            raise Diverged(f"{outcome_of(row)}; try a smaller learning rate in a new --workdir")
    summaries = {name: read_json(workdir / name / SUMMARY) for name in names}
    networks = [_network_row(name, configs[name], summaries[name], part) for name in names]
    contexts = {}
    for name in names:
        on_progress(f"measuring {name} with longer contexts")
        contexts[name] = use_of_context(load(workdir / name)[0], split.ids, MAX_CONTEXT)
    summary = summaries[names[0]]
    result = {
        "split": part,
        "tokens": split.tokens,
        "unknown": split.unknown,
        "comparable": split.comparable,
        "carry": "one stream",
        "seed": config.seed,
        "train_tokens": networks[0]["train_tokens"],  # of each network
        "corpus": summary["corpus"],
        "device": summary["device"],
        "versions": summary["versions"],
        "models": [*_without_network(summary["baselines"], ngrams, corpus), *networks],
        "ngrams": ngrams,
        "by_context": contexts,
        "num_params_by_order": num_params_by_order(configs, len(corpus.vocabulary)),
    }
    write_json(workdir / RESULT, result)
    return result


def networks_of(config: ConfigDict) -> list[str]:
    """`NETWORKS`, and the config's cell if it is not one of them."""
    return [*dict.fromkeys([*NETWORKS, config.model.cell])]


def config_of(config: ConfigDict, name: str) -> ConfigDict:
    """The config of one network: the same data, budget, optimizer and number of units, another kind or cell."""
    if name != "mlp":
        changes: Json = {"model.kind": "rnn", "model.cell": name}
        dropped = [f"model.{option}" for option in OPTIONAL if not takes(cell_class(name), option)]
    else:
        changes = {"model.kind": "mlp", "model.embed_dim": config.model.embed_dim or EMBED_DIM}
        changes["segment_length"] = tokens_per_step(config) // config.batch_size
        dropped = [*RECURRENT_ONLY, *(name for name in FIELDS if name.startswith("truncation."))]
    config = config.copy_and_resolve_references()
    for field, value in changes.items() | {field: FIELDS[field].default for field in dropped}.items():
        set_field(config, field, value)
    check_config(config)
    return config


def score_ngrams(corpus: Corpus, split: Split, on_progress: Callable[[str], object]) -> tuple[list[Json], NGramLM]:
    """Scores n-gram models of order 1 to 10 on a split. Returns their rows, and the model that `fit_ngram` chooses."""
    ids, size = corpus.train.ids[:MAX_NGRAM_TOKENS], len(corpus.vocabulary)
    top = min(MAX_ORDER, len(ids))
    models = NGramLM.fit_orders(ids, order=top, vocab_size=size)
    chooser, valid, text = order_chooser(corpus), HeldOut(corpus.valid.ids, size), HeldOut(split.ids, size)
    rows: list[Json] = []
    least = math.inf
    seconds = 0.0  # each order includes the orders below
    for order in range(1, top + 1):
        on_progress(f"counting n-grams of order {order}")
        started = time.perf_counter()
        model = next(models)
        seconds += time.perf_counter() - started
        if order <= MAX_NGRAM_ORDER and (nll := chooser.nll(model)) < least:
            kept, least = model, nll
        rows.append(
            {
                "order": order,
                "context": order - 1,
                "num_params": model.num_counts,
                "num_possible": size**order,
                **figures(text.nll(model), split.tokens_per_character),
                "valid_nll": valid.nll(model),
                "train_tokens": len(ids),
                "train_seconds": seconds,
                "tokens_per_second": len(ids) / seconds,
            }
        )
    return rows, kept


def _without_network(baselines: Json, ngrams: list[Json], corpus: Corpus) -> Iterator[Json]:
    """The rows of uniform, unigram and the n-gram model with the lowest validation loss."""
    size = len(corpus.vocabulary)
    yield {"name": "uniform", "context": 0, "num_params": 0} | baselines["uniform"]
    yield {"name": "unigram", "context": 0, "num_params": size} | baselines["unigram"]
    yield {"name": "ngram"} | min(ngrams, key=lambda row: row["valid_nll"])


def _network_row(name: str, config: ConfigDict, summary: Json, part: str) -> Json:
    speed, tokens = summary["tokens_per_second"], summary["tokens"]
    return {
        "name": name,
        **({"context": config.model.context} if name == "mlp" else {}),
        "num_params": summary["num_params"],
        **summary[part],
        "train_tokens": tokens,
        "train_seconds": tokens / speed if speed else None,  # without compilation, evaluation and saving
        "tokens_per_second": speed,
    }


def num_params_by_order(configs: dict[str, ConfigDict], vocab_size: int) -> dict[str, Sequence[int | None]]:
    """For n = 1, 2, … 10: the possible n-grams, and the parameters of each network with a context of n − 1 tokens."""
    orders = range(1, MAX_ORDER + 1)

    def num_params(config: ConfigDict, context: int) -> int:
        program, numbers = program_of(config, vocab_size)
        return nnx.eval_shape(partial(new_model, replace(program, model_context=context), numbers)).num_params

    counts: dict[str, Sequence[int | None]] = {"order": [*orders], "possible": [vocab_size**n for n in orders]}
    for name, config in configs.items():
        if name == "mlp":
            counts[name] = [None, *(num_params(config, context) for context in orders[:-1])]
        else:
            counts[name] = len(orders) * [num_params(config, 1)]
    return counts


def use_of_context(model: LanguageModel, ids: Int[np.ndarray, "N"], longest: int) -> dict[str, list[float]]:
    """Mean nats of a token after k tokens of context, k = 1 … `longest`.

    The model reads evenly spaced windows of the text, each from the initial state. Results are averaged over groups of
    neighbouring k, four groups from k to 2 k.
    """
    longest = min(longest, len(ids) - 1)
    per_window = longest * model.vocab_size
    count = max(1, min(WINDOWS, len(ids) - longest, MAX_SCORES // per_window))
    at_once = max(1, min(count, MAX_LOGITS // per_window))
    starts = np.linspace(0, len(ids) - 1 - longest, count // at_once * at_once).astype(int)
    graphdef, params = nnx.split(model, nnx.Param)
    parts = [
        np.asarray(_nats_by_context(graphdef, params, ids[part + np.arange(longest + 1)[:, None]]), np.float64)
        for part in starts.reshape(-1, at_once)
    ]
    nats = np.mean(parts, axis=0)
    ends = np.unique(np.round(2 ** np.arange(0, np.log2(longest) + 0.25, 0.25)).clip(max=longest)).astype(int)
    groups = np.split(np.arange(longest), ends[:-1])
    return {
        "context": [float(group.mean() + 1) for group in groups],
        "nll": [float(nats[group].mean()) for group in groups],
    }


@partial(jax.jit, static_argnames="graphdef")
def _nats_by_context(graphdef: nnx.GraphDef, params: nnx.State, windows: Int[Array, "L N"]) -> Float[Array, "T"]:
    model = nnx.merge(graphdef, params)
    _, h = model.hidden(model.initialize_carry(windows.shape[1]), windows[:-1])
    return model.nll(h, windows[1:]).mean(1)
