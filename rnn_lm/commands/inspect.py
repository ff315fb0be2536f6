"""Analyse the gradients of a trained model: python run.py inspect --workdir=DIR

Measures how fast gradients shrink or grow through time, how far back the loss depends on the state, the eigenvalues of
W_hh, the effect of truncation (segments, windows, randomized), how often the gradient was clipped, and the memory and
time of a training step. Prints the findings; DIR/inspect.json has all numbers, DIR/plots/ a plot of each.
"""

import sys
import time
from pathlib import Path

from ml_collections import ConfigDict

from rnn_lm.commands.flags import FlagValues, define, define_text_flags, workdir_of
from rnn_lm.commands.screen import listing, paragraph
from rnn_lm.config import model_name, text_name
from rnn_lm.errors import UserError
from rnn_lm.files import Json
from rnn_lm.plots import can_draw


def define_flags(flags: FlagValues) -> None:
    define_text_flags(flags)
    define(flags, "window", 128, "number of steps to look back; the time grows with its square")


def run(flags: FlagValues) -> str:
    workdir = workdir_of(flags)
    if flags.window < 4:
        raise UserError(f"--window is {flags.window}; it must be at least 4")

    from rnn_lm.analysis.laboratory import Subject, inspect
    from rnn_lm.commands.texts import text_of
    from rnn_lm.data.vocabulary import readable
    from rnn_lm.files import write_json
    from rnn_lm.runs.folder import read_config, read_summary
    from rnn_lm.runs.load import load
    from rnn_lm.runs.record import read_metrics

    started = time.perf_counter()
    model, vocabulary = load(workdir)
    text = text_of(workdir, vocabulary, flags.text, strict=flags.strict, or_valid=True)
    config, _ = read_config(workdir)
    subject = Subject(
        model,
        text.split.ids,
        flags.window,
        batch_size=config.batch_size,
        segment_length=config.segment_length,
        clip_norm=config.optimizer.clip_norm,
        lines=read_metrics(workdir),
    )

    def say(question: str) -> None:
        print(f"{time.perf_counter() - started:5.1f} s  {question}", file=sys.stderr, flush=True)

    sections = inspect(subject, say)
    if "strategies" in sections:
        sections["strategies"]["tokens"] = [readable(vocabulary.tokens[i]) for i in sections["strategies"]["tokens"]]
        back = f"looking back {flags.window} steps"
    else:
        back = "no gradients through time (the model has no state)"
    write_json(workdir / "inspect.json", {"text": text.name, "window": flags.window} | sections)
    pictures = _draw(workdir / "plots", sections, _subjects(config, read_summary(workdir), text.name))
    findings = [paragraph(s["finding"], "- ") for s in sections.values()]
    files = listing(workdir / "inspect.json", *pictures)
    return "\n".join([paragraph(f"{workdir} on {text.name}, {back}:"), "", *findings, "", files])


def _subjects(config: ConfigDict, summary: Json | None, text: str) -> dict[str, str]:
    """What the plots are of, by section; "": of all others."""
    model = model_name(config) + (f", step {summary['best_step']:,}" if summary else "")
    trained = f"{model_name(config)}, trained on {text_name(config)}"
    return {"": f"{model}, on {text}", "clipping": trained, "cost": model_name(config), "strategies": text}


def _draw(folder: Path, sections: Json, subjects: dict[str, str]) -> list[Path]:
    """Plots each section and returns the paths."""
    if not can_draw():
        return []
    from rnn_lm.plots.laboratory import INSPECTION

    paths = []
    for name, section in sections.items():
        paths.append(folder / f"{name}.png")
        INSPECTION[name](paths[-1], section, of=subjects.get(name, subjects[""]))
    return paths
