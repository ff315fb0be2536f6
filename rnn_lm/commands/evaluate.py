"""Measure how well a trained model predicts a text: python run.py evaluate --workdir=DIR [--text=FILE ...]

Reads the text as one stream from the initial state; the first token is context only. Prints a table on a terminal,
elsewhere one JSON line: nll is in nats per token, perplexity = exp(nll), bits_per_char is per character of text.
"reset" has the same figures with the state reset every --reset_every tokens; --dynamic omits it.
"""

import math
from functools import partial

from rnn_lm.commands.flags import (
    FlagValues,
    define,
    define_dynamic_flag,
    define_mix_flag,
    define_text_flags,
    workdir_of,
)
from rnn_lm.commands.screen import (
    NOT_COMPARABLE,
    Column,
    json_line,
    number,
    on_terminal,
    paragraph,
    progress_bar,
    table,
)
from rnn_lm.errors import NotFinite, UserError
from rnn_lm.files import Json


def define_flags(flags: FlagValues) -> None:
    define_text_flags(flags)
    define_mix_flag(flags)
    define_dynamic_flag(flags)
    define(flags, "reset_every", 1000, 'tokens between resets for the figures under "reset"')


def run(flags: FlagValues) -> str:
    workdir = workdir_of(flags)
    if flags.reset_every < 1:
        raise UserError(f"--reset_every is {flags.reset_every}; it must be at least 1")
    if flags.dynamic and flags["reset_every"].present:
        raise UserError("--reset_every cannot be used with --dynamic; leave one of them out")

    from rnn_lm.commands.texts import text_of, warn
    from rnn_lm.inference.evaluate import evaluate, figures, runs_away
    from rnn_lm.runs.folder import read_config
    from rnn_lm.runs.load import load

    model, vocabulary = load(workdir, mix=flags.mix)
    text = text_of(workdir, vocabulary, flags.text, strict=flags.strict)
    split = text.split
    if split.tokens < 1:
        raise UserError(f"{text.name} has {len(split.ids)} tokens, at least 2 are needed; give a text with --text=FILE")
    reset = None
    with progress_bar() as bar:
        task = bar.add_task("reading", total=(1 if flags.dynamic else 2) * split.tokens)
        on_progress = partial(bar.advance, task)
        carried = evaluate(model, split.ids, dynamic=flags.dynamic, on_progress=on_progress)
        if not flags.dynamic:
            reset = evaluate(model, split.ids, reset_every=flags.reset_every, on_progress=on_progress)
    if not math.isfinite((reset or carried).nll):
        raise NotFinite()
    ratio = split.tokens_per_character
    if split.unknown > 0.5 * split.tokens:
        warn(f"{split.unknown / split.tokens:.0%} of the tokens are unknown to the vocabulary: the figures mean little")
    if reset and runs_away(carried, reset):
        warn(
            f"the state diverges over the text: {carried.nll:.2f} nats per token, but {reset.nll:.2f} "
            f"if it is reset every {flags.reset_every} tokens; largest values "
            + ", ".join(f"|{letter}| = {value:.3g}" for letter, value in carried.max_abs.items())
        )
    config, _ = read_config(workdir)
    result = (
        {
            "text": text.name,
            "split": text.part,
            "sha256": text.sha256,
            "seed": config.seed,
            "vocab_size": len(vocabulary),
            "tokens": carried.tokens,
            "unknown": split.unknown,
            "carry": "one stream",
            "mix": flags.mix,
            "dynamic": flags.dynamic,
        }
        | figures(carried.nll, ratio)
        | {"comparable": split.comparable}
        | ({"reset": {"every": flags.reset_every} | figures(reset.nll, ratio)} if reset else {})
        | {f"max_abs_{letter}": value for letter, value in carried.max_abs.items()}
    )
    return describe(result) if on_terminal() else json_line(result)


def describe(result: Json) -> str:
    """The table and sentences for a terminal."""
    network = "the network averaged with its n-gram model" if result["mix"] == "ngram" else "the network"
    learning = ", which keeps training on what it reads" if result["dynamic"] else ""
    rows = [("one stream", result)]
    if reset := result.get("reset"):
        rows.append((f"state reset every {reset['every']:,} tokens", reset))
    columns = [Column("", words=True), Column("nats per token"), Column("perplexity"), Column("bits per character")]
    figures = [
        (who, number(row["nll"], 4), number(row["perplexity"], 3), number(row["bits_per_char"], 4)) for who, row in rows
    ]
    unknown = f" {result['unknown']:,} of the tokens are not in it." if result["unknown"] else ""
    largest = [f"|{name[-1]}| = {value:.3g}" for name, value in result.items() if name.startswith("max_abs_")]
    return "\n".join(
        [
            paragraph(f"{result['tokens']:,} tokens of {result['text']}, read by {network}{learning}."),
            paragraph(f"The vocabulary has {result['vocab_size']:,} tokens.{unknown}"),
            "",
            table(columns, figures),
            "",
            paragraph("The perplexity is exp(nats per token); 1 is perfect, guessing has the vocabulary's size."),
            *([] if result["comparable"] else [paragraph(NOT_COMPARABLE)]),
            *([paragraph(f"Largest values of the state: {', '.join(largest)}.")] if largest else []),
        ]
    )
