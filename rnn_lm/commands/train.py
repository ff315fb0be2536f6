"""Train a model, or resume: python run.py --config=FILE [--workdir=DIR] [--config.FIELD=VALUE ...]

Ctrl-C saves and stops; run the same command again to resume. DIR has metrics.jsonl, samples.txt, ngram.npz, plots/,
TensorBoard events, checkpoints/ and, once the run is done, summary.json.
"""

import shlex
from pathlib import Path

from rnn_lm.commands.flags import FlagValues, config_of, define, define_config_flags, workdir_of
from rnn_lm.commands.screen import number
from rnn_lm.files import Json
from rnn_lm.plugins import IMPORTED


def define_flags(flags: FlagValues) -> None:
    define_config_flags(flags, "the run's folder (default runs/NAME for --config=NAME.py)")
    about = "before training, trace a few extra steps, print the time of each part, and write the trace to this folder"
    define(flags, "profile", "", about)


def run(flags: FlagValues) -> str:
    config = config_of(flags)
    workdir = workdir_of(flags, Path("runs") / Path(flags.config).stem)

    from rnn_lm.training.train import train

    return describe(train(config, workdir, profile=flags.profile), workdir)


def describe(summary: Json, workdir: Path) -> str:
    """The results of a run that is done, for newcomers."""
    name, text = ("test", "test") if "test" in summary else ("valid", "validation")
    result, baselines, corpus = summary[name], summary["baselines"], summary["corpus"]
    rows = [
        (f"uniform guessing ({corpus['vocab_size']} tokens)", baselines["uniform"]),
        ("token frequencies (unigram)", baselines["unigram"]),
    ]
    if "ngram" in baselines:  # not in an older run's summary
        rows.append((f"n-gram model (order {baselines['ngram']['order']})", baselines["ngram"]))
    rows.append((f"this model ({summary['num_params']:,} parameters)", result))
    table = "\n".join(
        f"  {who:<36}{number(row['perplexity'], 2):>12}{number(row['bits_per_char'], 3):>22}" for who, row in rows
    )
    folder = " ".join([shlex.quote(str(workdir)), *(shlex.quote(f"--import={name}") for name in IMPORTED)])
    return f"""
Finished: {summary["steps"]:,} steps, {summary["tokens"]:,} tokens of {corpus["source"]}.

How good is it? Measured on {result["tokens"]:,} tokens of unseen {text} text, with the checkpoint that is best
on the validation text (step {summary["best_step"]:,}):

  {"":<36}{"perplexity":>12}{"bits per character":>22}
{table}

{_remarks(summary, result)}

Files:    {workdir}/
            summary.json, metrics.jsonl, samples.txt, ngram.npz, checkpoints/
            plots/learning_curve.png
Try next: python run.py generate --workdir={folder} --length=500
          python run.py evaluate --workdir={folder}"""


def _remarks(summary: Json, result: Json) -> str:
    """How to read the results, and what to try."""
    perplexity = number(result["perplexity"], 1)
    lines = [
        f"A perplexity of {perplexity} means that the model's prediction of the next token is as uncertain as a choice",
        f"among {perplexity} equally likely tokens. 1 is perfect.",
    ]
    in_training, baselines = summary.get("train", {}).get("perplexity"), summary["baselines"]
    if in_training is not None:
        lines.append(f"On the last training text it was {in_training:.2f}.")
        if result["perplexity"] is not None and in_training < 0.5 * result["perplexity"]:
            lines.append("The gap means that it memorised the training text: use a longer text or fewer steps.")
    if result["perplexity"] is None or result["perplexity"] > baselines["unigram"]["perplexity"]:
        lines.append("It does not beat token frequencies yet: try more steps or another learning rate.")
    elif "ngram" in baselines and result["perplexity"] > baselines["ngram"]["perplexity"]:
        lines.append("It does not beat the n-gram model yet: try more steps or more hidden units.")
    if result.get("runs_away"):  # not in an older run's summary
        every, reset = result["reset"]["every"], number(result["reset"]["perplexity"], 2)
        lines.append(f"Over this long text the state diverges. Reset every {every} tokens, the perplexity is {reset}.")
        lines.append("Try a longer segment_length, weight decay or fewer steps.")
    share = result.get("unknown", 0) / result["tokens"]
    if share > 0.01:
        lines.append(f"{share:.0%} of the tokens are <unk>: bits per character cannot be compared with other models'.")
    return "\n".join(lines)
