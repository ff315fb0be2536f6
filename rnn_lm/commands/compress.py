"""A file in fewer bytes, by what a trained model expects: python run.py compress --workdir=DIR IN OUT

Any file comes back byte for byte, by `decompress` with the same run on a machine that computes the same (the archive
knows which): the archive is decoded and compared before it is kept. Characters that the vocabulary knows cost what the
model's perplexity promises; each other one costs by how rare it is in the file, and a file that is mostly of those is
kept as it is. Prints one JSON line: "input_bytes", "output_bytes", "bits_per_char" and "model_bits_per_char".
"""

from pathlib import Path

from rnn_lm.commands.archives import check, define_file_flags, opened
from rnn_lm.commands.flags import FlagValues, define, define_dynamic_flag, define_mix_flag, required
from rnn_lm.files import dumps

ARGUMENTS = ("IN", "OUT")


def define_flags(flags: FlagValues) -> None:
    define_file_flags(flags)
    define_mix_flag(flags)
    define_dynamic_flag(flags)
    about = "decode the archive and compare it with the file before it is kept, which doubles the time"
    define(flags, "verify", True, about)


def run(flags: FlagValues, given: str, wanted: str) -> str:
    workdir = Path(required(flags, "workdir", "runs/char"))
    check(Path(given), Path(wanted), force=flags.force)

    from rnn_lm.compression.compress import compress
    from rnn_lm.runs.load import load

    model, vocabulary = load(workdir, mix=flags.mix)
    total = Path(given).stat().st_size * (1 + flags.verify)
    with opened(Path(given), Path(wanted), what="compressing", total=total) as (source, target, advance):
        options = {"mix": flags.mix, "dynamic": flags.dynamic, "verify": flags.verify}
        report = compress(model, vocabulary, source, target, on_progress=advance, **options)
    return dumps({"input_bytes": report.file_bytes, "output_bytes": report.archive_bytes} | report.figures())
