"""Makes the small files that `tests/test_golden.py` opens from then on: a run, an archive, a sweep, of today's format.

    python -m tests.golden.make

A new format is one more file beside the older ones, which stay: they are what users have.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import rnn_lm
from rnn_lm.compression.compress import compress
from rnn_lm.config import complete_config
from rnn_lm.files import FORMAT, write_json
from rnn_lm.inference.evaluate import evaluate
from rnn_lm.sweeps.sweep import sweep
from rnn_lm.training.train import train
from tests.conftest import make_text

PACKED = Path(__file__).with_name(f"format_{FORMAT}.tar.xz")
TEXT, RUN, SWEEP, ARCHIVE, EXPECTED = (Path(name) for name in ("text.txt", "run", "sweep", "archive", "expected.json"))
MEMBERS = [{"optimizer.learning_rate": rate} for rate in (0.01, 0.02)]


def config_with(text: Path, **changes):
    """The config of all that is made here."""
    corpus = {"path": str(text), "valid_fraction": 0.1, "test_fraction": 0.1}
    model = {"cell": "gru", "num_hiddens": 8}
    given = {"steps": 20, "batch_size": 4, "segment_length": 8, "corpus": corpus, "model": model}
    return complete_config(given | changes)


def figures(workdir: Path, text: Path) -> dict[str, dict[str, float]]:
    """What the network, and its mixture with the n-grams, make of a text."""
    found = {}
    for mix in ("none", "ngram"):
        model, vocabulary = rnn_lm.load(workdir, mix=mix)
        evaluation = evaluate(model, vocabulary.encode(text.read_text(encoding="utf-8")))
        found[mix] = {"tokens": evaluation.tokens, "nll": evaluation.nll}
    return found


def main() -> None:
    if PACKED.exists():
        sys.exit(f"{PACKED} stays as it is; raise FORMAT in rnn_lm/files.py first")
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    TEXT.write_text(make_text(100), encoding="utf-8")
    train(config_with(TEXT), RUN)
    sweep(config_with(TEXT), MEMBERS, SWEEP, command=["python", "run.py", "--config=golden.py"])
    write_json(EXPECTED, figures(RUN, TEXT))
    model, vocabulary = rnn_lm.load(RUN)
    with TEXT.open("rb") as source, ARCHIVE.open("w+b") as target:
        compress(model, vocabulary, source, target)
    for path in [*Path().rglob("plots"), *Path().rglob("events*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in [*Path().rglob("*.json"), *Path().rglob("*.txt")]:  # no path of this machine
        path.write_text(path.read_text(encoding="utf-8").replace(f"{folder}/", ""), encoding="utf-8")
    shutil.make_archive(str(PACKED).removesuffix(".tar.xz"), "xztar")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
