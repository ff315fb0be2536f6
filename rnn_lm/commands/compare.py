"""Compare models on one text: python run.py compare --config=FILE [--workdir=DIR] [--config.FIELD=VALUE ...]

Compares uniform guessing, n-grams of order 1 to 10, an MLP over the last few tokens, and Elman, GRU and LSTM networks
on one split. All networks have the same optimizer, training tokens and units per layer (the MLP has one layer). Each is
a run in its own folder (DIR/mlp, DIR/elman, ...), which all other verbs take. Run the same command again to resume.
DIR/compare.json has the results, DIR/plots/ the plots.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

from rnn_lm.commands.flags import FlagValues, config_of, define_config_flags, workdir_of
from rnn_lm.commands.screen import NOT_COMPARABLE, Column, listing, number, paragraph, table
from rnn_lm.config import NAMES
from rnn_lm.files import Json
from rnn_lm.plots import can_draw
from rnn_lm.training.progress import format_seconds


def define_flags(flags: FlagValues) -> None:
    define_config_flags(flags, "the comparison's folder (default runs/NAME-compare for --config=NAME.py)")


def run(flags: FlagValues) -> str:
    config = config_of(flags, starts=False)
    workdir = workdir_of(flags, Path("runs") / f"{Path(flags.config).stem}-compare")

    from rnn_lm.sweeps.rivals import RESULT, compare

    result = compare(config, workdir, lambda what: print(f"=== {what}", file=sys.stderr, flush=True))
    pictures = _draw(workdir / "plots", result, config.model.num_hiddens)
    runs = f"{workdir}/{{{','.join(names_of(result))}}}/ (one run each)"
    return "\n".join([describe(result), "", listing(workdir / RESULT, *pictures, runs)])


def names_of(result: Json) -> dict[str, str]:
    """The networks' names in the table and the plots; a registered cell keeps its own."""
    names = [row["name"] for row in result["models"] if row["name"] not in ("uniform", "unigram", "ngram")]
    return {name: NAMES.get(name, name) for name in names}


COLUMNS = [
    Column("", words=True),
    Column("context"),
    Column("numbers", drop=1),
    Column("perplexity"),
    Column("bits/char"),
    Column("tokens/s", drop=3),
    Column("training", drop=2),
]


def describe(result: Json) -> str:
    """The table and remarks on it."""
    names = names_of(result)
    models, corpus = {row["name"]: row for row in result["models"]}, result["corpus"]
    ngram, size = models["ngram"], corpus["vocab_size"]
    rows = [("uniform", models["uniform"]), ("unigram", models["unigram"])]
    rows += [(f"{row['order']}-gram", row) for row in result["ngrams"][1:]]
    rows += [(shown, models[name]) for name, shown in names.items()]
    unseen = f"{result['tokens']:,} tokens of the {result['split']} split, vocabulary size {size}"
    budget = f"Networks were trained on {result['train_tokens']:,} tokens (seed {result['seed']})"
    return "\n".join(
        [
            paragraph(f"{corpus['source']}: {unseen}. {budget}, n-grams were counted on {ngram['train_tokens']:,}."),
            "",
            table(COLUMNS, [_cells(shown, row) for shown, row in rows]),
            "",
            *map(paragraph, _remarks(result, models, names)),
        ]
    )


def _remarks(result: Json, models: dict[str, Json], names: dict[str, str]) -> Iterator[str]:
    """How to read the table."""
    ngram, size = models["ngram"], result["corpus"]["vocab_size"]
    yield "'context' counts the tokens that a prediction uses, 'numbers' counts parameters or stored n-grams."
    yield (
        f"N-gram order {ngram['order']} is best on the validation text: it stores {ngram['num_params']:,} of "
        f"{size}^{ngram['order']} = {ngram['num_possible']:.1e} possible n-grams."
    )
    yield "A recurrent network has the same number of parameters for any context."
    if (share := result["unknown"] / result["tokens"]) > 0.01:
        yield f"{share:.0%} of the tokens are <unk>: bits/char cannot be compared across vocabularies."
    if not result.get("comparable", True):
        yield NOT_COMPARABLE
    if away := [shown for name, shown in names.items() if models[name]["runs_away"]]:
        yield f"Over this long text the state diverges: {', '.join(away)}. See `evaluate`."
    nlls = {name: math.inf if row["nll"] is None else row["nll"] for name, row in models.items()}  # null: not finite
    if behind := [shown for name, shown in names.items() if nlls[name] > nlls["ngram"]]:
        yield f"The n-gram model still beats {', '.join(behind)}: try more steps or a longer text."


def _cells(shown: str, row: Json) -> list[str]:
    speed, seconds = row.get("tokens_per_second"), row.get("train_seconds")
    cells = [shown, f"{row.get('context', 'any')}", f"{row['num_params']:,}"]
    cells += [number(row["perplexity"], 2), number(row["bits_per_char"], 3)]
    return [*cells, f"{speed:,.0f}" if speed else "", format_seconds(seconds) if seconds else ""]


def _draw(folder: Path, result: Json, num_hiddens: int) -> list[Path]:
    if not can_draw():
        return []
    from rnn_lm.plots.rivals import COMPARISON

    split = {"test": "test split", "valid": "validation split"}[result["split"]]
    of = f"networks of {num_hiddens} units and n-grams on {result['corpus']['source']}"
    paths = [folder / f"{name}.png" for name in COMPARISON]
    for path in paths:
        COMPARISON[path.stem](path, result, names_of(result), of=of if path.stem == "parameters" else f"{of}, {split}")
    return paths
