"""Restore a file from an archive: python run.py decompress --workdir=DIR IN OUT

DIR must be the run that made the archive; --mix and --dynamic are read from the archive.
Prints the sizes on a terminal, elsewhere one JSON line: "input_bytes", "output_bytes", "bits_per_char" and
"model_bits_per_char".
"""

from rnn_lm.commands.archives import check, define_file_flags, described, opened
from rnn_lm.commands.flags import FlagValues, workdir_of
from rnn_lm.errors import UserError
from rnn_lm.files import path_of

ARGUMENTS = ("IN", "OUT")


def define_flags(flags: FlagValues) -> None:
    define_file_flags(flags)


def run(flags: FlagValues, *paths: str) -> str:
    workdir = workdir_of(flags)
    given, wanted = map(path_of, paths)
    check(given, wanted, force=flags.force)

    from rnn_lm.compression.archive import Header
    from rnn_lm.compression.compress import decompress
    from rnn_lm.runs.load import load

    with given.open("rb") as source:
        header = _of_file(str(given), Header.read, source)
    model, vocabulary = load(workdir, mix=header.mix)
    with opened(given, wanted, what="decompressing", total=header.size) as (source, target, advance):
        report = _of_file(str(given), decompress, model, vocabulary, source, target, on_progress=advance)
    return described({"input_bytes": report.archive_bytes, "output_bytes": report.file_bytes} | report.figures())


def _of_file(name: str, function, *arguments, **options):
    """Calls a function; its UserError is prefixed with the file's name."""
    try:
        return function(*arguments, **options)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
