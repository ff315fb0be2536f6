"""Export a model for other programs: python run.py export --workdir=DIR OUT

OUT becomes a folder with model.safetensors (the weights), rnn_lm.json (the cell and sizes), vocabulary.json, README.md
(a model card), model.onnx (for ONNX Runtime), and index.html, a page that generates text in a browser: open it by a
double click. All verbs that read a run take OUT as --workdir, and a run may start from it (--config.init_from=OUT).
"""

import os
from pathlib import Path

from rnn_lm.commands.flags import FlagValues, define, workdir_of
from rnn_lm.commands.screen import json_line, listing, on_terminal, paragraph
from rnn_lm.errors import UserError
from rnn_lm.files import EXPORTED, Json, path_of

ARGUMENTS = ("OUT",)


def define_flags(flags: FlagValues) -> None:
    define(flags, "workdir", None, "the folder of a trained run")
    define(flags, "force", False, "replace the files of an exported folder")


def run(flags: FlagValues, out: str) -> str:
    workdir, target = workdir_of(flags), path_of(out)
    check_target(target, force=flags.force)

    from rnn_lm.config import model_name, text_name
    from rnn_lm.convert.folder import CARD, FILES, write_folder
    from rnn_lm.convert.weights import check_finite
    from rnn_lm.files import read_json
    from rnn_lm.runs.folder import config_path, read_config, read_summary
    from rnn_lm.runs.load import load
    from rnn_lm.runs.save import weights_of

    model, vocabulary = load(workdir)
    config, hashes = read_config(workdir)
    title = model_name(config) + (f", trained on {os.path.basename(text_name(config))}" if hashes.text else "")
    described = read_json(config_path(workdir))
    title, about = described.get("title", title), _about(read_summary(workdir)) or described.get("about", {})
    # By their names alone: elsewhere, files are in other folders.
    modules = [Path(name).name for name in described.get("import") or []]
    weights = weights_of(config, model, vocabulary)
    check_finite(weights.arrays)
    left_out = write_folder(target, weights, title=title, about=about, modules=modules)
    sizes = {name: (target / name).stat().st_size for name in (CARD, *FILES) if name not in left_out}
    if not on_terminal():
        return json_line({"out": out, "files": sizes, "left_out": left_out})
    lines = [
        f"{title}: {model.num_params:,} parameters.",
        *(f"Without {name}: {why}" for name, why in left_out.items()),
    ]
    return "\n".join([*map(paragraph, lines), "", listing(*(target / name for name in sizes))])


def _about(summary: Json | None) -> Json:
    """What the model card says of a run, without the folders of this machine."""
    if summary is None:
        return {}
    about = {name: summary[name] for name in ("steps", "tokens", "valid", "test", "baselines") if name in summary}
    corpus = summary["corpus"]
    return about | {"corpus": {"source": os.path.basename(corpus["source"]), "sha256": corpus["sha256"]}}


def check_target(target: Path, *, force: bool) -> None:
    """Raises UserError if the folder cannot be made."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} exists and is not a folder; give another name")
    if not target.absolute().parent.is_dir():
        raise UserError(f"{target.parent}: no such folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not (target / EXPORTED).is_file():
        raise UserError(f"{target} is a folder with other files; give another name")
    if not force:
        raise UserError(f"{target} exists; --force replaces it")
