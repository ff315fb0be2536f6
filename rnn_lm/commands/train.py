"""Train a model, or go on with one: python run.py --config=FILE [--workdir=DIR] [--config.FIELD=VALUE ...]

Started again with the same --workdir, it goes on where it stopped; Ctrl-C saves first. The folder then holds
metrics.jsonl, samples.txt, ngram.npz, plots/, TensorBoard events, checkpoints/ and, at the end, summary.json.
"""

import os
import shlex
from pathlib import Path
from typing import Any

from rnn_lm.commands.flags import FlagValues, config_of, define, define_config_flags
from rnn_lm.plugins import IMPORTED


def define_flags(flags: FlagValues) -> None:
    define_config_flags(flags, "the run's folder; runs/NAME")
    about = "before training, run a few extra steps, tell how long each part of a step takes, and write a trace here"
    define(flags, "profile", "", about)


def run(flags: FlagValues) -> str:
    config = config_of(flags)
    workdir = Path(flags.workdir or Path("runs") / Path(flags.config).stem)

    from rnn_lm.training.train import train

    profile = os.path.expanduser(flags.profile)
    return describe(train(config, workdir, profile=profile), workdir)


def describe(summary: dict[str, Any], workdir: Path) -> str:
    """A finished run in words that a newcomer understands."""
    name = "test" if "test" in summary else "valid"
    result, baselines, corpus = summary[name], summary["baselines"], summary["corpus"]
    text = {"test": "test", "valid": "validation"}[name]
    rows = [
        (f"guessing among all {corpus['vocab_size']} tokens (uniform)", baselines["uniform"]),
        ("knowing how frequent each token is (unigram)", baselines["unigram"]),
    ]
    if "ngram" in baselines:  # not in an older run's summary
        rows.append((f"counting what follows what (n-gram, order {baselines['ngram']['order']})", baselines["ngram"]))
    rows.append((f"this model ({summary['num_params']:,} parameters)", result))
    table = "\n".join(
        f"  {what:<48}{number(x['perplexity'], 2):>12}{number(x['bits_per_char'], 3):>22}" for what, x in rows
    )
    folder = " ".join([shlex.quote(str(workdir)), *(shlex.quote(f"--import={name}") for name in IMPORTED)])
    return f"""
Finished: {summary["steps"]:,} steps, {summary["tokens"]:,} tokens of {corpus["source"]}.

How good is it? Measured on {result["tokens"]:,} tokens of the {text} text, which it never trained on, with
the checkpoint of step {summary["best_step"]:,}, the best on the validation text:

  {"":<48}{"perplexity":>12}{"bits per character":>22}
{table}

{_remarks(summary, result)}

Files:    {workdir}/
            summary.json, metrics.jsonl, samples.txt, ngram.npz, checkpoints/
            plots/learning_curve.png
Try next: python run.py generate --workdir={folder} --length=500
          python run.py evaluate --workdir={folder}"""


def _remarks(summary: dict[str, Any], result: dict[str, Any]) -> str:
    """What the numbers mean."""
    perplexity = number(result["perplexity"], 1)
    lines = [
        f"A perplexity of {perplexity} means that, asked for the next token, the model is as unsure as someone who",
        f"chooses among {perplexity} equally likely ones. 1 would be perfect.",
    ]
    in_training, baselines = summary.get("train", {}).get("perplexity"), summary["baselines"]
    if in_training is not None:
        lines.append(f"On the text that it trained on last it was {in_training:.2f}.")
        if result["perplexity"] is not None and in_training < 0.5 * result["perplexity"]:
            lines.append("So much less means that it learned that text by heart: a longer text or fewer steps help.")
    if result["perplexity"] is None or result["perplexity"] > baselines["unigram"]["perplexity"]:
        lines.append("It does not yet beat token frequencies: more steps or another learning rate help.")
    elif "ngram" in baselines and result["perplexity"] > baselines["ngram"]["perplexity"]:
        lines.append("It does not yet beat counting: more steps or more hidden units help.")
    if result.get("runs_away"):  # .get: an older run's summary may lack it
        every, reset = result["reset"]["every"], number(result["reset"]["perplexity"], 2)
        lines.append(
            f"Carried through so long a text its state runs away: reset every {every} tokens, the perplexity is"
        )
        lines.append(f"{reset}. A longer segment_length, weight decay or fewer steps may help.")
    share = result.get("unknown", 0) / result["tokens"]
    if share > 0.01:
        lines.append(
            f"{share:.0%} of these tokens are <unk>: its bits per character do not compare with other models'."
        )
    return "\n".join(lines)


def number(value: float | None, digits: int) -> str:
    """A figure of a summary, which has null for what is not finite."""
    return "infinite" if value is None else f"{value:.{digits}f}"
