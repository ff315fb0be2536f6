"""Compress a file with a trained model: python run.py compress --workdir=DIR IN OUT

`decompress` restores every byte; it needs the same run and a machine that computes the same numbers, and checks both.
The archive is decoded and compared with IN before it is kept. Characters in the vocabulary cost what the model's
perplexity promises; others cost more the rarer they are in IN, and if they are most of IN, it is stored as it is.
Prints the sizes on a terminal, elsewhere one JSON line: "input_bytes", "output_bytes", "bits_per_char" and
"model_bits_per_char".
"""

from rnn_lm.commands.archives import check, define_file_flags, described, opened
from rnn_lm.commands.flags import FlagValues, define, define_dynamic_flag, define_mix_flag, workdir_of
from rnn_lm.files import path_of

ARGUMENTS = ("IN", "OUT")


def define_flags(flags: FlagValues) -> None:
    define_file_flags(flags)
    define_mix_flag(flags)
    define_dynamic_flag(flags)
    define(flags, "verify", True, "decode the archive and compare it with IN before it is kept; doubles the time")


def run(flags: FlagValues, *paths: str) -> str:
    workdir = workdir_of(flags)
    given, wanted = map(path_of, paths)
    check(given, wanted, force=flags.force)

    from rnn_lm.compression.compress import compress
    from rnn_lm.runs.load import load

    model, vocabulary = load(workdir, mix=flags.mix)
    total = given.stat().st_size * (1 + flags.verify)
    with opened(given, wanted, what="compressing", total=total) as (source, target, advance):
        options = {"mix": flags.mix, "dynamic": flags.dynamic, "verify": flags.verify}
        report = compress(model, vocabulary, source, target, on_progress=advance, **options)
    return described({"input_bytes": report.file_bytes, "output_bytes": report.archive_bytes} | report.figures())
