"""Make a run of the weights of another program: python run.py import-weights IN --workdir=DIR [--map=w_hq=NAME ...]

IN is a folder that `export` made, or the .safetensors file of a PyTorch, Keras or Flax language model, with a
vocabulary.json beside it: the JSON list of its tokens in the order of their ids. The layers are found by their names
and shapes; where two would fit, --map says which one is meant. docs/exchange.md lists what is understood.

All verbs take the run. It has no text: `evaluate` and `inspect` read one given by --text, and to train it further,
start a run from it (--config.init_from=DIR).
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rnn_lm.commands.flags import FlagValues, define, workdir_of
from rnn_lm.commands.screen import json_line, on_terminal, paragraph
from rnn_lm.errors import UserError
from rnn_lm.files import EXPORTED, VOCABULARY, path_of

if TYPE_CHECKING:
    from rnn_lm.convert.weights import Weights

ARGUMENTS = ("IN",)


def define_flags(flags: FlagValues) -> None:
    define(flags, "workdir", None, "the folder of the new run")
    about = (
        "OURS=THEIRS: which array of theirs is our embedding, w_hq, b_q, w_xh or b_h, or which layer cell.cells.0, ..."
    )
    define(flags, "map", [], about)
    define(flags, "activation", "tanh", "φ of the layers where the file does not say it: tanh, relu or identity")
    define(flags, "force", False, "take weights that are not finite")


def run(flags: FlagValues, given: str) -> str:
    workdir, source = workdir_of(flags), path_of(given)
    mapping = mapping_of(flags.map)

    from rnn_lm.config import model_name
    from rnn_lm.convert.folder import WEIGHTS, read_folder
    from rnn_lm.data.vocabulary import KINDS
    from rnn_lm.runs.folder import read_config
    from rnn_lm.runs.load import check_cell_is_known
    from rnn_lm.runs.save import save_weights

    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    own = source.parent if source.name == WEIGHTS else source
    if (own / EXPORTED).is_file():
        if mapping or flags["activation"].present:
            raise UserError(f"{own / EXPORTED} says all about the weights; leave out --map and --activation")
        check_cell_is_known(own, read_config(own)[0])
        weights = read_folder(own)
    else:
        weights = _foreign(_file_in(source), mapping, flags)
    config = save_weights(workdir, weights, force=flags.force)
    vocabulary, size = weights.vocabulary, sum(array.size for array in weights.arrays.values())
    if not on_terminal():
        sizes = {"num_params": size, "vocab_size": len(vocabulary), "tokens": vocabulary.kind}
        return json_line({"workdir": str(workdir), "model": weights.model} | sizes)
    tokens = f"{len(vocabulary) - 1:,} {KINDS[vocabulary.kind]} and <unk>"
    return paragraph(f"{workdir}: {model_name(config)}, {size:,} parameters, {tokens}")


def _foreign(file: Path, mapping: dict[str, str], flags: FlagValues) -> "Weights":
    """The weights of another library, and the vocabulary beside them."""
    from rnn_lm.convert.foreign import from_arrays
    from rnn_lm.convert.safetensors import read_arrays
    from rnn_lm.convert.tokens import FORMS, read_vocabulary

    arrays, beside = read_arrays(file), file.with_name(VOCABULARY)
    try:
        value = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{beside} cannot be read ({reason}); it is {FORMS}") from error
    vocabulary = read_vocabulary(value)
    return from_arrays(arrays, vocabulary, mapping=mapping, activation=flags.activation, force=flags.force)


def _file_in(source: Path) -> Path:
    """The one `.safetensors` file of a folder; the file itself."""
    from rnn_lm.runs.folder import CONFIG

    if not source.is_dir():
        return source
    found = sorted(source.glob("*.safetensors"))
    if len(found) != 1:
        if (source / CONFIG).exists():
            raise UserError(f"{source} is a run, which needs no import")
        raise UserError(f"{source} has {len(found)} .safetensors files; name the file to read")
    return found[0]


def mapping_of(flags: list[str] | None) -> dict[str, str]:
    """`["w_hq=decoder.weight"]` → `{"w_hq": "decoder.weight"}`."""
    mapping: dict[str, str] = {}
    for flag in flags or []:
        ours, equals, theirs = flag.partition("=")
        if not (ours and equals and theirs):
            raise UserError(f"--map={flag} is not OURS=THEIRS, such as --map=w_hq=decoder.weight")
        if ours in mapping:
            raise UserError(f"--map={flag}: {ours} is {mapping[ours]} already; give it once")
        mapping[ours] = theirs
    return mapping
