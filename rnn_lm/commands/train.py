"""Train a model, or resume: python run.py --config=FILE [--workdir=DIR] [--config.FIELD=VALUE ...]

Ctrl-C saves and stops; run the same command again to resume. DIR has metrics.jsonl, samples.txt, ngram.npz, plots/,
TensorBoard events, checkpoints/ and, once the run is done, summary.json.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from rnn_lm.commands.flags import FlagValues, config_of, define, define_config_flags, workdir_of
from rnn_lm.commands.job import define_job_flags, job
from rnn_lm.commands.screen import NOT_COMPARABLE, Column, command, number, paragraph, table
from rnn_lm.files import Json
from rnn_lm.plugins import IMPORTED

WRITTEN = ("summary.json", "metrics.jsonl", "samples.txt", "ngram.npz", "checkpoints", "plots/learning_curve.png")


def define_flags(flags: FlagValues) -> None:
    define_config_flags(flags, "the run's folder (default runs/NAME for --config=NAME.py)")
    about = "before training, trace a few extra steps, print the time of each part, and write the trace to this folder"
    define(flags, "profile", "", about)
    define_job_flags(flags)


def run(flags: FlagValues) -> str:
    config = config_of(flags)
    workdir = workdir_of(flags, Path("runs") / Path(flags.config).stem)

    with job(flags):
        from rnn_lm.processes import is_first
        from rnn_lm.training.train import train

        summary = train(config, workdir, profile=flags.profile)
        return describe(summary, workdir) if is_first() else ""


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
    shown = [(who, number(row["perplexity"], 2), number(row["bits_per_char"], 3)) for who, row in rows]
    measured = f"Measured on {result['tokens']:,} tokens of unseen {text} text, with the checkpoint that is best on the"
    folder = [f"--workdir={workdir}", *(f"--import={name}" for name in IMPORTED)]
    return "\n".join(
        [
            "",
            paragraph(f"Finished: {summary['steps']:,} steps, {summary['tokens']:,} tokens of {corpus['source']}."),
            "",
            paragraph(f"How good is it? {measured} validation text (step {summary['best_step']:,}):"),
            "",
            table([Column("", words=True), Column("perplexity"), Column("bits per character")], shown),
            "",
            paragraph(" ".join(_remarks(summary, result))),
            "",
            paragraph(_advice(summary, result), "Advice: "),
            "",
            paragraph(f"Files in {workdir}: {', '.join(name for name in WRITTEN if (workdir / name).exists())}"),
            "",
            "Try next:",
            command("generate", *folder, "--length=500"),
            command("evaluate", *folder),
        ]
    )


def _remarks(summary: Json, result: Json) -> Iterator[str]:
    """How to read the results."""
    perplexity = number(result["perplexity"], 1)
    yield f"A perplexity of {perplexity} means that the model's prediction of the next token is as uncertain as a"
    yield f"choice among {perplexity} equally likely tokens. 1 is perfect."
    in_training = summary.get("train", {}).get("perplexity")
    if in_training is not None:
        yield f"On the last part of the training text the perplexity was {in_training:.2f}."
    if patience := summary.get("stop_patience"):  # not in an older run's summary
        yield f"Training stopped early: the last {patience} evaluations brought no new best validation loss."
    if not result.get("comparable", True):
        yield NOT_COMPARABLE
    share = result.get("unknown", 0) / result["tokens"]
    if share > 0.01:
        yield f"{share:.0%} of the tokens are <unk>: bits per character cannot be compared with other models'."


def _advice(summary: Json, result: Json) -> str:
    """The one thing to try first: of all that is wrong, what hides the rest."""
    perplexity, baselines = result["perplexity"] or math.inf, summary["baselines"]
    in_training = summary.get("train", {}).get("perplexity") or math.inf
    flag = "stop_patience=0" if summary.get("stop_patience") else f"steps={2 * summary['steps']}"
    more = f"the same command with --config.{flag} trains it further"
    if result.get("runs_away"):  # not in an older run's summary
        every, reset = result["reset"]["every"], number(result["reset"]["perplexity"], 2)
        return (
            f"the state diverges over this long text. With the state reset every {every} tokens, the perplexity is "
            f"{reset}. Try a longer segment_length or weight decay."
        )
    if in_training < 0.5 * perplexity:
        return (
            "the model memorised the training text: its perplexity there is much lower. Try a longer text or dropout."
        )
    if perplexity > baselines["unigram"]["perplexity"]:
        return f"it does not beat token frequencies yet. Try another learning rate, or more steps: {more}."
    if summary["best_step"] < 0.8 * summary["steps"] or summary.get("stop_patience"):
        best = f"the validation text was predicted best at step {summary['best_step']:,} of {summary['steps']:,}"
        return f"{best}, and no better since. Try a longer text or dropout."
    if "ngram" in baselines and perplexity > baselines["ngram"]["perplexity"]:
        return f"it does not beat the n-gram model yet. Try more hidden units, or more steps: {more}."
    return f"it beats the baselines. To see how far it gets, {more}."
