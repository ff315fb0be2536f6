"""What a text costs: general compressors, the n-grams, the network, their mixture, and all of it learning as it reads.

    python -m benchmarks.bits --workdir=runs/char [--text=FILE]

Without --text it is the run's test split. The general compressors are given the text alone, and after the text that the
run was trained (and validated) on, which is what they save by having seen it: the size of both minus that of the first.
Bytes of the network's rows are those of archives, each of which was decoded and compared; the n-grams' are their bits.
"""

import bz2
import gzip
import io
import lzma
import time
from pathlib import Path

import brotli
import numpy as np
import pyppmd
import zstandard
from absl import app, flags, logging

import rnn_lm
from rnn_lm.compression.compress import compress
from rnn_lm.data.corpus import read_files, read_source, text_split
from rnn_lm.errors import UserError
from rnn_lm.inference.evaluate import evaluate
from rnn_lm.ngram import NGramLM
from rnn_lm.runs.folder import NGRAM, read_config

flags.DEFINE_string("workdir", "runs/char", "the folder of a trained run")
flags.DEFINE_string("text", "", "a file to read in place of the run's test split")

GENERAL = {
    "gzip −9": lambda data: gzip.compress(data, 9),
    "bzip2 −9": lambda data: bz2.compress(data, 9),
    "xz −9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    "zstd −22": lambda data: zstandard.ZstdCompressor(level=22).compress(data),
    "brotli 11": lambda data: brotli.compress(data, quality=11, lgwin=24),
    "PPMd, order 6": lambda data: pyppmd.compress(data, max_order=6, mem_size=256 << 20),
}


def main(arguments: list[str]) -> None:
    """Prints a table in Markdown."""
    logging.set_verbosity(logging.FATAL)  # orbax tells all that it does
    workdir = Path(flags.FLAGS.workdir)
    config, _ = read_config(workdir)
    corpus = config.corpus
    if (corpus.tokens, corpus.normalize) != ("char", "none"):
        raise UserError("only for models of characters as they are")
    text = read_files(corpus.path) if corpus.path else read_source(corpus.source)
    start = len(text) - int(corpus.test_fraction * len(text))
    before, text = text[:start].encode(), read_files(flags.FLAGS.text) if flags.FLAGS.text else text[start:]
    data, characters = text.encode(), len(text)
    print(f"{characters:,} characters, {len(data):,} bytes\n")
    row("", "alone, bits per character", "bytes", "after the training text, bits per character", "bytes")
    row(*5 * ["---"])
    for name, pack in GENERAL.items():
        alone, after = len(pack(data)), len(pack(before + data)) - len(pack(before))
        row(name, f"{8 * alone / characters:.3f}", f"{alone:,}", f"{8 * after / characters:.3f}", f"{after:,}")

    mixture, vocabulary = rnn_lm.load(workdir, mix="ngram")
    model = mixture.model
    ngram, split = NGramLM.load(workdir / NGRAM), text_split(vocabulary, text)
    bits = ngram.nll(split.ids) * split.tokens / np.log(2)
    size = (workdir / NGRAM).stat().st_size
    row(f"n-grams, order {ngram.order} ({size:,} bytes)", "", "", f"{bits / characters:.3f}", f"{bits / 8:,.0f}")
    predictors = {f"network ({4 * model.num_params:,} bytes)": model, "mixture of both": mixture}
    details = []
    for dynamic in (False, True):
        for name, predictor in predictors.items():
            name += ", dynamic" if dynamic else ""
            started = time.perf_counter()
            report = compress(predictor, vocabulary, io.BytesIO(data), io.BytesIO(), dynamic=dynamic)
            speed = 2 * characters / (time.perf_counter() - started)  # there and, for verification, back
            archive, lanes = (report.figures()[key] for key in ("bits_per_char", "model_bits_per_char"))
            row(name, "", "", f"{archive:.3f}", f"{report.archive_bytes:,}")
            stream = evaluate(predictor, split.ids, dynamic=dynamic).nats / np.log(2) / characters
            details.append((name, f"{stream:.4f}", f"{lanes:.4f}", f"{archive:.4f}", f"{speed:,.0f}"))
    print()
    row("bits per character", "one stream (evaluate)", "the archive's lanes", "the archive", "characters/s")
    row(*5 * ["---"])
    for detail in details:
        row(*detail)


def row(*cells: str) -> None:
    """Of a Markdown table."""
    print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    app.run(main)
