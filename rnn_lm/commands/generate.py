"""Generate text with a trained model: python run.py generate --workdir=DIR [--prompt=TEXT] [--length=N]

Prints the prompt, N more tokens and a newline; several samples one below the other on a terminal,
elsewhere as JSON lines with "sample" and "text".
"""

from rnn_lm.commands.flags import FlagValues, define, define_mix_flag, workdir_of
from rnn_lm.commands.screen import json_line, on_terminal
from rnn_lm.errors import UserError
from rnn_lm.visible import visible


def define_flags(flags: FlagValues) -> None:
    define(flags, "workdir", None, "the folder of a trained run")
    define(flags, "prompt", None, "the text to continue (default: a line end, or the most frequent token)")
    define(flags, "length", 500, "N: number of tokens to generate")
    define(flags, "temperature", 1.0, "below 1: more conservative, above 1: more random; 0: always the likeliest token")
    define(flags, "top_k", 0, "sample from the k likeliest tokens only; 0: all")
    define(flags, "top_p", 1.0, "sample only from the fewest likeliest tokens whose probabilities sum to top_p; 1: all")
    define(flags, "seed", 0, "seed of the random draws")
    define(flags, "num_samples", 1, "number of samples")
    define(flags, "strict", False, "refuse a prompt with tokens that the vocabulary lacks")
    define_mix_flag(flags)


MAX_TOKENS = 10**8  # per call: they stay in memory until they are printed
RANGES = {
    "length": (1, 2**31 - 1),
    "temperature": (0, 1e6),
    "top_k": (0, 2**31 - 1),
    "top_p": (1e-9, 1),
    "seed": (0, 2**31 - 1),
    "num_samples": (1, 2**16),
}


def run(flags: FlagValues) -> str:
    workdir = workdir_of(flags)
    for name, (low, high) in RANGES.items():
        if not low <= getattr(flags, name) <= high:  # false for nan too
            raise UserError(f"--{name} is {getattr(flags, name)}; it must be from {low} to {high}")
    if flags.length * flags.num_samples > MAX_TOKENS:
        raise UserError(f"--length times --num_samples is more than {MAX_TOKENS:,}; generate less at a time")
    if flags.prompt == "":
        raise UserError("--prompt is empty; leave it out, or give at least one character")

    from rnn_lm.commands.texts import check_known
    from rnn_lm.inference.generate import generate
    from rnn_lm.keys import named_key
    from rnn_lm.runs.load import load

    model, vocabulary = load(workdir, mix=flags.mix)
    prompt, ids = vocabulary.prompt_of(flags.prompt)
    check_known(vocabulary, prompt, name="the prompt", strict=flags.strict)
    if not len(ids):
        raise UserError(f"--prompt={prompt!r} has no tokens; give at least one")
    options = {name: getattr(flags, name) for name in ("num_samples", "temperature", "top_k", "top_p")}
    samples = generate(model, ids, flags.length, key=named_key(flags.seed, "generate"), **options)
    texts = [vocabulary.continue_text(prompt, sample) for sample in samples]
    if on_terminal():
        texts = [visible(text, keep="\n\t") for text in texts]
    if flags.num_samples == 1:
        return texts[0]
    if on_terminal():
        return "\n".join(f"--- sample {number}\n{text}" for number, text in enumerate(texts))
    return "\n".join(json_line({"sample": number, "text": text}) for number, text in enumerate(texts))
