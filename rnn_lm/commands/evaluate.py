"""Measure how well a trained model predicts a text: python run.py evaluate --workdir=DIR [--text=FILE ...]

Reads the text as one stream from the initial state; the first token is context only. Prints one JSON line: nll is in
nats per token, perplexity = exp(nll), bits_per_char is per character of text. "reset" has the same figures with the
state reset every --reset_every tokens; --dynamic omits it.
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
from rnn_lm.commands.screen import progress_bar
from rnn_lm.errors import NotFinite, UserError


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
    from rnn_lm.files import dumps
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
        | {"comparable": split.comparable}
        | ({"reset": {"every": flags.reset_every} | figures(reset.nll, ratio)} if reset else {})
        | {f"max_abs_{letter}": value for letter, value in carried.max_abs.items()}
    )
