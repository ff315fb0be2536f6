"""The file that `compress` made an archive of: python run.py decompress --workdir=DIR IN OUT

The run must be the one that the archive was made with; whether it was mixed or went on learning, the archive knows.
Prints one JSON line: "input_bytes", "output_bytes", "bits_per_char" and "model_bits_per_char".
"""

from pathlib import Path

from rnn_lm.commands.archives import check, define_file_flags, opened
from rnn_lm.commands.flags import FlagValues, required
from rnn_lm.errors import UserError
from rnn_lm.files import dumps

ARGUMENTS = ("IN", "OUT")


def define_flags(flags: FlagValues) -> None:
    define_file_flags(flags)


def run(flags: FlagValues, given: str, wanted: str) -> str:
    workdir = Path(required(flags, "workdir", "runs/char"))
    check(Path(given), Path(wanted), force=flags.force)

    from rnn_lm.compression.archive import Header
    from rnn_lm.compression.compress import decompress
    from rnn_lm.runs.load import load

    with Path(given).open("rb") as source:
        header = _of_file(given, Header.read, source)
    model, vocabulary = load(workdir, mix=header.mix)
    with opened(Path(given), Path(wanted), what="decompressing", total=header.size) as (source, target, advance):
        report = _of_file(given, decompress, model, vocabulary, source, target, on_progress=advance)
    return dumps({"input_bytes": report.archive_bytes, "output_bytes": report.file_bytes} | report.figures())


def _of_file(name: str, function, *arguments, **options):
    """What a function returns, with a file's name in its complaint."""
    try:
        return function(*arguments, **options)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
