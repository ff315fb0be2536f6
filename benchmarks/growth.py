"""How costs grow: each series at three sizes, and the exponent of its growth.

    python -m benchmarks.growth

The exponent is the slope of the logarithm of the cost over that of the size: 0 is constant, 1 linear. Seconds are CPU
seconds of all threads, the least of three. What a larger size would cost is computed from the last cost and the larger
exponent of the two, the measured one and what it should be. tests/benchmarks/test_growth.py measures the small sizes.
"""

import argparse
import io
import itertools
import json
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.common import machine, save, table
from rnn_lm import RNNLM, NGramLM, sweeps
from rnn_lm.analysis.laboratory import Subject, randomized_truncation
from rnn_lm.commands.surprise import in_page
from rnn_lm.compression.compress import compress
from rnn_lm.config import complete_config
from rnn_lm.data.corpus import load_corpus
from rnn_lm.data.texts import read_files
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.files import write_json
from rnn_lm.inference.evaluate import evaluate
from rnn_lm.inference.generate import generate
from rnn_lm.inference.mixture import BUCKETS, Mixture
from rnn_lm.inference.score import score
from rnn_lm.keys import named_key
from rnn_lm.ngram import HeldOut
from rnn_lm.nn.truncation import Truncation, WindowTruncation
from rnn_lm.program import program_of
from rnn_lm.runs.folder import METRICS, SUMMARY
from rnn_lm.runs.lock import locked_members
from rnn_lm.runs.record import Record
from rnn_lm.sweeps.members import Member, check_members, members_of
from rnn_lm.sweeps.results import Results, check_sweep_folder, row_of
from rnn_lm.sweeps.sweep import sweep
from rnn_lm.training.run import Run
from rnn_lm.training.step import new_state

Measured = Callable[[], object]
LETTERS = "\n etaoinshrdlucmfwygpbvkxqjz"
VOCABULARY = Vocabulary.of(LETTERS, kind="char", normalize="none")
V = len(VOCABULARY)


@dataclass(frozen=True)
class Series:
    """A cost at growing sizes. `prepare(size, folder)` returns what is measured; the folder is empty."""

    name: str
    of: str  # what grows
    prepare: Callable[[int, Path], Measured]
    sizes: tuple[int, ...]
    small: tuple[int, ...]
    exponent: float = 1.0  # what it should be at most
    far: int = 0
    repeat: int = 3
    unit: str = "s"  # or "bytes", the peak of what Python and NumPy allocate; or what the measured function returns

    def costs(self, sizes: Sequence[int]) -> list[float]:
        """The least cost of each size; the sizes take turns."""
        with tempfile.TemporaryDirectory() as folder:
            folders = [Path(folder, str(size)) for size in sizes]
            for each in folders:
                each.mkdir()
            runs = list(map(self.prepare, sizes, folders))
            repeated = [list(map(self._cost, runs)) for _ in range(self.repeat)]
        return [min(costs) for costs in zip(*repeated, strict=True)]

    def _cost(self, run: Measured) -> float:
        if self.unit == "bytes":
            return _peak_bytes(run)
        start = time.process_time()
        result = jax.block_until_ready(run())
        return time.process_time() - start if self.unit == "s" else float(result)


def _peak_bytes(run: Measured) -> float:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def exponent_of(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """The slope of log cost over log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def ids_of(size: int) -> np.ndarray:
    """Token ids [N] with frequent and rare n-grams: each id depends on the one before it."""
    draw = np.random.default_rng(0)
    return (1 + np.cumsum(draw.geometric(0.3, size)) % (V - 1)).astype(np.int32)


def text_of(size: int) -> str:
    """A text of `size` characters, which repeats itself after a million."""
    part = VOCABULARY.decode(ids_of(min(size, 10**6)))
    return part * (size // len(part))


def load_text(size: int, folder: Path) -> Measured:
    (folder / "text").write_text(text_of(size))
    fields: dict[str, Any] = {"tokens": "char", "normalize": "none", "max_vocab": 0, "max_tokens": 0}
    return partial(load_corpus, source="", path=str(folder / "text"), valid_fraction=0.05, test_fraction=0.05, **fields)


def read_folder(size: int, folder: Path) -> Measured:
    for number in range(size):
        (folder / str(number)).write_text("a few words\n")
    return partial(read_files, str(folder))


def count_ngrams(size: int, folder: Path) -> Measured:
    return partial(NGramLM.fit, ids_of(size), order=6, vocab_size=V)


def gradient(
    size: int,
    folder: Path,
    *,
    grows: str,
    truncation: Callable[[int], Truncation] | None = None,
) -> Measured:
    sizes = {"hidden": 64, "batch": 32, "steps": 32} | {grows: size}
    model = RNNLM(V, sizes["hidden"], rngs=nnx.Rngs(0), cell="gru")
    graphdef, params = nnx.split(model)
    tokens = jnp.asarray(ids_of((sizes["steps"] + 1) * sizes["batch"]).reshape(-1, sizes["batch"]))

    def loss(params: nnx.State) -> jax.Array:
        model = nnx.merge(graphdef, params)
        cut = truncation(size) if truncation else None
        _, h = model.hidden(model.initialize_carry(sizes["batch"]), tokens[:-1], truncation=cut)
        return model.mean_nll(h, tokens[1:])

    step = jax.jit(jax.grad(loss)).lower(params).compile()
    jax.block_until_ready(step(params))
    return lambda: [jax.block_until_ready(step(params)) for _ in range(10)]


_units = itertools.count(20)  # a new number of hidden units each time, so that nothing is compiled already


def start(size: int, folder: Path) -> Measured:
    def run() -> object:
        config = complete_config({"model": {"cell": "lstm", "num_layers": size, "num_hiddens": next(_units)}})
        program, numbers = program_of(config, V)
        return new_state(program, numbers.arrays())

    return run


def read_text(size: int, folder: Path) -> Measured:
    model, ids = RNNLM(V, 64, rngs=nnx.Rngs(0), cell="gru"), ids_of(size)
    return partial(evaluate, model, ids)


def choose_order(size: int, folder: Path) -> Measured:
    models, ids = [*NGramLM.fit_orders(ids_of(10**5), order=6, vocab_size=V)], ids_of(size)

    def run() -> object:
        text = HeldOut(ids, V)
        return [text.nll(model) for model in models]

    return run


def mixture(size: int, folder: Path) -> Measured:
    draw = np.random.default_rng(0)
    ids = np.minimum(draw.zipf(1.3, 10**5), size - 1).astype(np.int32)
    ngram = NGramLM.fit(ids, order=4, vocab_size=size)
    mixed = Mixture(RNNLM(size, 64, rngs=nnx.Rngs(0), cell="gru"), ngram, np.full(4 * BUCKETS, 0.5))
    return partial(evaluate, mixed, ids[:4097])


def score_lines(size: int, folder: Path) -> Measured:
    """One line of this length among a hundred short ones."""
    model, prompt = RNNLM(V, 64, rngs=nnx.Rngs(0), cell="gru"), np.array([1])
    lines = [*np.split(ids_of(4_000), 100), ids_of(size)]
    return partial(score, model, prompt, lines)


def show_tokens(size: int, folder: Path) -> Measured:
    row = {"rank": 1, "bits": 1.0, "bits_per_char": 1.0, "perplexity": 2.0}
    return partial(in_page, "x", [row], [[("a", 1.0)] * size])


def write_text(size: int, folder: Path) -> Measured:
    model = RNNLM(V, 64, rngs=nnx.Rngs(0), cell="gru")
    return partial(generate, model, np.array([1]), size, key=named_key(0, "growth"))


def archive(size: int, folder: Path) -> Measured:
    model, text = RNNLM(V, 32, rngs=nnx.Rngs(0), cell="gru"), text_of(size).encode()
    return lambda: compress(model, VOCABULARY, io.BytesIO(text), io.BytesIO(), verify=False)


def inspect_randomized(size: int, folder: Path) -> Measured:
    model, ids = RNNLM(V, 32, rngs=nnx.Rngs(0), cell="gru"), ids_of(10_000)
    subject = Subject(model, ids, size, batch_size=32, segment_length=32, clip_norm=1.0, lines=[])
    return partial(randomized_truncation, subject)


def log_lines(first: int, last: int) -> list[dict[str, Any]]:
    line = {"tokens": 1, "split": "train", "nll": 2.0, "perplexity": 7.4, "bits_per_char": 2.9, "learning_rate": 1e-3}
    return [{"step": step} | line for step in range(first, last + 1)]


def write_log(size: int, folder: Path) -> Measured:
    def run() -> None:
        record = Record(folder, 0)
        for line in log_lines(1, size):
            record.write(line)

    return run


def resume_log(size: int, folder: Path) -> Measured:
    """The log of a run with this many lines, of which a checkpoint keeps all but ten."""
    kept = "".join(json.dumps(line) + "\n" for line in log_lines(1, size))
    lost = "".join(json.dumps(line) + "\n" for line in log_lines(size + 1, size + 10))

    def run() -> object:
        with (folder / METRICS).open("a") as file:
            file.write(lost)
        return Record(folder, size)

    (folder / METRICS).write_text(kept)
    return run


def members_in(folder: Path, count: int, **fields: Any) -> list[Member]:
    """The members of a sweep over seeds of a very small model, on a text in the folder."""
    (folder / "text").write_text(text_of(3_000))
    given = {
        "batch_size": 2, "segment_length": 8, "corpus": {"path": str(folder / "text")}, "model": {"num_hiddens": 8},
    }  # fmt: skip
    return members_of(complete_config(given | fields), sweeps.seeds(count), folder / "sweep")


def list_members(size: int, folder: Path) -> Measured:
    def run() -> None:
        members = members_in(folder, size)
        check_sweep_folder(folder / "sweep", members)
        check_members(members, folder / "sweep")

    return run


def write_results(size: int, folder: Path) -> Measured:
    """All members of a sweep end one after the other."""
    members = members_in(folder, size)
    figures = {"nll": 1.0, "perplexity": 2.7, "bits_per_char": 1.4, "tokens": 100}
    summary = {"valid": figures, "test": figures, "steps": 10**9, "num_params": 1, "lanes": 1} | {
        "tokens_per_second": 1.0, "wall_seconds": 1.0,
    }  # fmt: skip
    for member in members:
        write_json(member.workdir / SUMMARY, summary)

    def run() -> None:
        results = Results(folder / "sweep", members, [])
        for member in members:
            results.add(row_of(member))
        results.write()

    return run


def open_files(size: int, folder: Path) -> Measured:
    """Of the members of a sweep that are trained at once."""
    members = members_in(folder, size)

    def run() -> float:
        with locked_members([member.workdir for member in members]), ExitStack() as opened:
            for member in members:
                opened_run = Run(member.config, member.workdir, member.corpus, alone=False)
                opened_run.open()
                opened.callback(opened_run.close)
            return len(os.listdir("/proc/self/fd")) + len(os.listdir("/proc/self/task"))

    return run


def train_sweep(size: int, folder: Path) -> Measured:
    config = members_in(folder, 1, steps=20)[0].config
    return partial(sweep, config, sweeps.seeds(size), folder / "sweep")


SERIES = [
    Series("load a text", "characters", load_text, (10**6, 10**7, 10**8), (10**6, 10**7), far=10**9),
    Series("load a text", "characters", load_text, (10**6, 10**7, 10**8), (10**6, 10**7), far=10**9, unit="bytes"),
    Series("read a folder", "files", read_folder, (100, 1_000, 10_000), (200, 2_000), far=10**6),
    Series("count n-grams, order 6", "tokens", count_ngrams, (10**5, 10**6, 10**7), (10**5, 10**6), far=10**8),
    Series("score the orders 1 to 6", "tokens", choose_order, (10**5, 10**6, 10**7), (10**5, 10**6), far=10**8),
    Series("evaluate 4,096 tokens, --mix", "V", mixture, (1_000, 5_000, 20_000), (1_000, 5_000)),
    Series("start of an LSTM", "layers", start, (1, 4, 16), (2, 8), exponent=0.5),
    Series("gradient", "steps T", partial(gradient, grows="steps"), (64, 256, 1_024), (64, 512)),
    Series("gradient", "batch B", partial(gradient, grows="batch"), (64, 256, 1_024), (64, 512)),
    Series("gradient", "units H", partial(gradient, grows="hidden"), (128, 256, 512), (128, 512), exponent=2),
    Series(
        "gradient, window truncation", "steps k",
        partial(gradient, grows="window", truncation=WindowTruncation), (4, 8, 16), (4, 16),
    ),
    Series("evaluate", "tokens", read_text, (10**4, 10**5, 10**6), (10**4, 10**5), far=10**9),
    Series("score a long line", "tokens", score_lines, (10**4, 10**5, 10**6), (10**4, 10**5), far=10**7),
    Series("score --html", "tokens", show_tokens, (10**4, 10**5, 10**6), (10**4, 10**5), far=10**7),
    Series("generate", "tokens", write_text, (10**4, 10**5, 10**6), (10**4, 10**5), far=10**8),
    Series("compress", "characters", archive, (10**4, 10**5, 10**6), (10**4, 10**5), far=10**9),
    Series("inspect, randomized truncation", "window", inspect_randomized, (32, 64, 128), (32, 128), exponent=2),
    Series("write a log", "lines", write_log, (100, 1_000, 10_000), (100, 1_000), far=10**7),
    Series("resume a log", "lines", resume_log, (10**3, 10**4, 10**5), (10**3, 10**5), exponent=0, far=10**7),
    Series("list a sweep", "members", list_members, (100, 400, 1_600), (50, 200), far=10**4),
    Series("write a sweep's results", "members", write_results, (64, 256, 1_024), (64, 512), far=10**4),
    Series("files and threads of a group", "members", open_files, (4, 16, 64), (4, 16), exponent=0, unit="", far=10**4),
    Series("train a sweep of 20 steps", "members", train_sweep, (8, 32, 128), (4, 8), far=10**4, repeat=1),
]  # fmt: skip


def measure(series: Series, sizes: Sequence[int]) -> dict[str, Any]:
    costs = series.costs(sizes)
    exponent = exponent_of(sizes, costs)
    far = costs[-1] * (series.far / sizes[-1]) ** max(exponent, series.exponent) if series.far else None
    return {
        "name": series.name, "of": series.of, "unit": series.unit, "sizes": list(sizes), "costs": costs,
        "exponent": exponent, "should_be": series.exponent, "far": series.far, "far_cost": far,
    }  # fmt: skip


def report(rows: Sequence[dict[str, Any]]) -> str:
    head = ["what", "grows with", "at", "costs", "exponent", "should be", "would cost"]
    cells = []
    for row in rows:
        far = f"{shown(row['far_cost'], row['unit'])} at {row['far']:,}" if row["far"] else ""
        sizes = " / ".join(f"{size:,}" for size in row["sizes"])
        costs = " / ".join(shown(cost, row["unit"]) for cost in row["costs"])
        cells.append([row["name"], row["of"], sizes, costs, f"{row['exponent']:.2f}", f"{row['should_be']:g}", far])
    return table(head, cells)


def shown(cost: float, unit: str) -> str:
    number, unit = (cost / 1e6, "MB") if unit == "bytes" else (cost, unit)
    return (f"{number:.3g} {unit}" if number < 1e3 else f"{number:,.0f} {unit}").strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="series whose name starts with this")
    parser.add_argument("--out", default="benchmarks/results/growth.json", help="where the numbers go")
    arguments = parser.parse_args()
    rows = []
    for series in SERIES:
        if series.name.startswith(arguments.only):
            rows.append(measure(series, series.sizes))
            print(report(rows[-1:]).splitlines()[2], flush=True)
    if not arguments.only:
        save(arguments.out, {"machine": machine(), "series": rows})
    print("\n" + ", ".join(f"{key} {value}" for key, value in machine().items()) + "\n")
    print(report(rows))


if __name__ == "__main__":
    main()
