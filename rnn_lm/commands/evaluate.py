"""How well a trained model predicts a text: python run.py evaluate --workdir=DIR [--text=FILE ...]

Prints one JSON line. The text is read as one stream from the initial state; its first token is context only. nll is
nats per token, perplexity = exp(nll), bits_per_char counts characters of text. Beside it, under "reset", the same
with the state set back every --reset_every tokens. --mix=ngram reads with the run's n-gram model beside the network,
--dynamic goes on learning from the text ("reset" is left out then).
"""

import sys
from functools import partial
from pathlib import Path

from rnn_lm.commands.flags import FlagValues, define, define_dynamic_flag, define_mix_flag, define_text_flags, required
from rnn_lm.errors import UserError


def define_flags(flags: FlagValues) -> None:
    define_text_flags(flags)
    define_mix_flag(flags)
    define_dynamic_flag(flags)
    define(flags, "reset_every", 1000, "tokens between resets in the second measurement")


def run(flags: FlagValues) -> str:
    workdir = Path(required(flags, "workdir", "runs/char"))
    if flags.reset_every < 1:
        raise UserError(f"--reset_every is {flags.reset_every}; it must be at least 1")
    if flags.dynamic and flags["reset_every"].present:
        raise UserError("--reset_every and --dynamic exclude each other: what is learned is not taken back")

    from rich.console import Console
    from rich.progress import Progress

    from rnn_lm.commands.texts import text_of, warn
    from rnn_lm.files import dumps
    from rnn_lm.inference.evaluate import evaluate, figures, runs_away
    from rnn_lm.runs.folder import read_config
    from rnn_lm.runs.load import load

    model, vocabulary = load(workdir, mix=flags.mix)
    text = text_of(workdir, vocabulary, flags.text, strict=flags.strict)
    split = text.split
    if split.tokens < 1:
        raise UserError(
            f"{text.name}: {len(split.ids)} tokens; at least 2 are needed. Another text can be given with --text=FILE"
        )
    reset = None  # what is learned is not taken back
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("reading", total=(1 if flags.dynamic else 2) * split.tokens)
        on_progress = partial(bar.advance, task)
        carried = evaluate(model, split.ids, dynamic=flags.dynamic, on_progress=on_progress)
        if not flags.dynamic:
            reset = evaluate(model, split.ids, reset_every=flags.reset_every, on_progress=on_progress)
    ratio = split.tokens_per_character
    if split.unknown > 0.5 * split.tokens:
        warn(f"{split.unknown / split.tokens:.0%} of the tokens are unknown to the vocabulary: the figures say little")
    if reset and runs_away(carried, reset):
        warn(
            f"carried through the text the state runs away: {carried.nll:.2f} nats a token, but {reset.nll:.2f} "
            f"where it is reset every {flags.reset_every} tokens; largest values "
            + ", ".join(f"|{letter}| = {value:.3g}" for letter, value in carried.max_abs.items())
        )
    config, _ = read_config(workdir)
    return dumps(
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
        | ({"reset": {"every": flags.reset_every} | figures(reset.nll, ratio)} if reset else {})
        | {f"max_abs_{letter}": value for letter, value in carried.max_abs.items()}
    )
