"""Train many models and rank them: python run.py sweep --config=FILE [--workdir=DIR] [--shard=I/N]

The file's sweep() returns the members: a list of dicts, field name → value, each applied to the config of get_config().
`rnn_lm.sweeps` has helpers; experiments/sweeps/learning_rate.py is an example. Each member is a run in its own folder,
which all other verbs take. On CPUs each core trains one member; on a GPU or TPU, members that differ only in numbers
(seed, learning rate, clipping, dropout, ...) train at once as one program (--config.sweep.mode).

Run the same command again to resume; sweep() may then return more members. If a member diverges, the others continue.
DIR/results.json and results.csv list the members and rank the settings over their seeds; DIR/plots/ has the plots. In
job arrays, N processes with --shard=0/N to N-1/N fill one folder, in any order.

A file with search(trial) instead of sweep() draws its members: it calls Optuna's trial.suggest_float and the like, and
returns one member. There are --config.sweep.trials in all; experiments/sweeps/search.py is an example. The same
command, started several times at once, on one machine or on several that share the folder, searches together. What a
worker leaves behind, the next one takes up. Optuna keeps its study in a file in the folder, or with --storage in a
database.
"""

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rnn_lm.commands.flags import FlagValues, config_of, define, define_config_flags, workdir_of
from rnn_lm.commands.screen import Column, command, listing, number, paragraph, program, table
from rnn_lm.config import load_search, load_sweep, model_name, text_name
from rnn_lm.errors import UserError
from rnn_lm.fields import FIELDS, of_sweep, short_name
from rnn_lm.files import Json, alone_in
from rnn_lm.plots import can_draw

MAX_ROWS, MAX_FOUND = 40, 10  # of the table; of a search, where the best count
MAX_FIELDS = 3  # with columns of their own


def define_flags(flags: FlagValues) -> None:
    define_config_flags(flags, "the sweep's folder (default runs/NAME-sweep for --config=NAME.py)")
    define(flags, "shard", "0/1", "I/N: train only members I, I + N, I + 2N, ..., counted from 0")
    about = "URL of the database with the study of a search (default: a file in the folder), such as "
    define(flags, "storage", "", f"{about}postgresql+psycopg2://USER@HOST/DATABASE")


def run(flags: FlagValues) -> str:
    config, suggest = config_of(flags), load_search(flags.config)
    overrides = None if suggest else load_sweep(flags.config)
    workdir = workdir_of(flags, Path("runs") / f"{Path(flags.config).stem}-sweep")
    shard = parse_shard(flags.shard)
    if suggest and flags["shard"].present:
        raise UserError("--shard is for sweep(); to search on several machines, start the same command on each")
    if flags.storage and not suggest:
        raise UserError("--storage is for a config file with search(trial); the members of sweep() need none")
    fields = [field for field in FIELDS if flags[f"config.{field}"].present and not of_sweep(field)]
    trains = [*program().split(), f"--config={flags.config}"]
    trains += [f"--import={name}" for name in flags["import"].value or ()]
    trains += [f"--config.{field}={flags[f'config.{field}'].value}" for field in fields]

    from rnn_lm.sweeps.results import RESULTS, TABLE
    from rnn_lm.sweeps.sweep import sweep, use_all_cores

    use_all_cores()
    if suggest:
        from rnn_lm.sweeps.search import search

        result = search(config, suggest, workdir, storage=flags.storage, command=trains)
    else:
        result = sweep(config, overrides or [], workdir, shard=shard, command=trains)
    with alone_in(workdir):  # other shards draw too
        pictures = _draw(workdir / "plots", result, config)
    files = listing(workdir / RESULTS, workdir / TABLE, *pictures, f"{workdir}/MEMBER/ (one run each)")
    return "\n".join([describe(result), "", files])


def parse_shard(text: str) -> tuple[int, int]:
    """`"1/3"` → (1, 3)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise UserError(f"--shard={text} is not I/N with I from 0 to N-1, such as --shard=0/3")
    return int(found[1]), int(found[2])


def describe(result: Json) -> str:
    """The ranking of the settings and remarks on it."""
    settings = result["settings"]
    most = MAX_FOUND if "search" in result else MAX_ROWS
    split = "test" if any(row["test"] for row in result["members"]) else "valid"
    fields = list(dict.fromkeys(field for setting in settings for field in setting["overrides"]))
    columns = [Column("rank"), *(Column(short_name(field)) for field in fields), Column("seeds", drop=1)]
    columns += [Column("validation nats"), Column("± s.e.", drop=2), Column(f"{split} perplexity", drop=4)]
    columns += [Column(f"{split} bits/char"), Column("± s.e.", drop=3)]
    rows = [
        [str(rank), *(_cell(setting["overrides"].get(field)) for field in fields), *_figures(setting, split)]
        for rank, setting in enumerate(settings[:most], start=1)
    ]
    if len(fields) > MAX_FIELDS:  # they share a column
        columns[1 : 1 + len(fields)] = [Column("setting", words=True)]
        for row, setting in zip(rows, settings, strict=False):
            row[1 : 1 + len(fields)] = [
                " ".join(f"{short_name(f)}={_cell(v)}" for f, v in setting["overrides"].items())
            ]
    kept = [place for place, column in enumerate(columns) if _has_errors(settings) or column.head != "± s.e."]
    columns, rows = [columns[place] for place in kept], [[row[place] for place in kept] for row in rows]
    more = len(settings) - most
    return "\n".join(
        [
            table(columns, rows) + (f"\n  … and {more} more" if more > 0 else ""),
            "",
            *map(paragraph, _remarks(result, "test" if split == "test" else "validation")),
            *_next(result),
        ]
    )


def _remarks(result: Json, text: str) -> Iterator[str]:
    """How to read the table."""
    members = result["members"]
    yield (
        f"{len(members)} members. Validation nats are per token, and they rank the settings. Perplexity and bits per "
        f"character are those of the {text} text."
        + (" s.e. is the standard error of the mean over the seeds." if _has_errors(result["settings"]) else "")
    )
    diverged, pruned, unfinished = (
        [row["name"] for row in members if row["status"] == status] for status in ("diverged", "pruned", "unfinished")
    )
    if diverged:
        yield f"{len(diverged)} diverged: {' '.join(diverged[:8])}{' …' if len(diverged) > 8 else ''}"
    if pruned:
        yield f"{len(pruned)} pruned: stopped early, so they have no final figures."
    if repeats := sum("repeats" in row for row in members):
        yield f"{repeats} repeat an earlier trial and were not trained again."
    if unfinished:
        what = "Trials of other workers" if "search" in result else "Members of other shards"
        yield f"{what} that are not finished yet: {len(unfinished)}."
    if "search" in result:
        yield from _found(result["search"])


def _found(found: Json) -> Iterator[str]:
    """How a search went, and what the loss depends on."""
    best, lows = math.inf, []
    for count, row in enumerate(found["history"], start=1):
        if row["best"] < best:
            best = row["best"]
            lows.append(f"{best:.4f} (after {count})")
    if lows:
        yield f"Lowest validation nats as trials finished: {', '.join(lows[-8:])}."
    if shares := found["importances"]:
        parts = ", ".join(f"{name.rpartition('.')[2]} {share:.0%}" for name, share in shares.items())
        yield f"Importance for the loss, by PED-ANOVA over the finished trials: {parts}."


def _next(result: Json) -> Iterator[str]:
    """What to do with the best member, whose run is there; a copy is trained further, so that the sweep stays."""
    if best := result["best"]:
        [row] = [row for row in result["members"] if row["name"] == best["name"]]
        trains = shlex.split(best["command"])[len(program().split()) :]
        copy = trains[-1].removeprefix("--workdir=")
        yield ""
        yield paragraph(f"Best on the validation text: {best['name']}. Its run is in the sweep's folder:")
        imported = [word for word in trains if word.startswith("--import=")]
        yield command("generate", f"--workdir={row['workdir']}", *imported, "--length=500")
        yield "To train it for longer, continue a copy:"
        yield command("-r", row["workdir"], copy, start="cp")
        flag = "stop_patience=0" if row["stop_patience"] else f"steps={2 * row['steps']}"
        yield command(*trains, f"--config.{flag}")


def _figures(setting: Json, split: str) -> Sequence[str]:
    valid, scored = setting["valid"], setting[split]
    seeds = f"{setting['finished']}/{setting['members']}" + "".join(
        f", {setting[status]} {status}" for status in ("diverged", "pruned") if setting.get(status)
    )
    if valid is None or scored is None:
        return [seeds, "", "", "", "", ""]
    return [
        seeds,
        number(valid["nll"], 4),
        _error(valid["nll_standard_error"]),
        number(scored["perplexity"], 3),
        number(scored["bits_per_char"], 4),
        _error(scored["bits_per_char_standard_error"]),
    ]


def _has_errors(settings: Sequence[Json]) -> bool:
    """Whether a setting has several seeds, as few searches have."""
    return any(setting["valid"] and setting["valid"]["nll_standard_error"] is not None for setting in settings)


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _draw(folder: Path, result: Json, config: ConfigDict) -> list[Path]:
    if not can_draw():
        return []
    from rnn_lm.plots.curves import learning_curves, loss_by_field
    from rnn_lm.runs.record import read_metrics

    fields = list(dict.fromkeys(field for row in result["members"] for field in row["overrides"] if field != "seed"))
    curves = {row["name"]: read_metrics(Path(row["workdir"]), "valid") for row in result["members"]}
    paths, of = [folder / "learning_curves.png"], _subject(config, fields)
    learning_curves(paths[0], result, curves, of=of)
    for field in fields:
        path = folder / f"loss_by_{short_name(field)}.png"
        if loss_by_field(path, result, field, of=of):
            paths.append(path)
    if "search" in result:
        from rnn_lm.plots.search import history, importances

        paths += [folder / "history.png"]
        history(paths[-1], result, of=of)
        if importances(folder / "importances.png", result, of=of):
            paths += [folder / "importances.png"]
    return paths


def _subject(config: ConfigDict, fields: Sequence[str]) -> str:
    """What all members have in common: their model, unless it is varied, and their text."""
    varied = any(field.startswith("model.") for field in fields)
    several = {"corpus.source", "corpus.path"} & set(fields)
    text = "several texts" if several else text_name(config)
    return f"{'several models' if varied else model_name(config)} on {text}"
