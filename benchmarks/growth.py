"""How costs grow: each series at three sizes, and the exponent of its growth.

    python -m benchmarks.growth

The exponent is the slope of the logarithm of the cost over that of the size: 0 is constant, 1 linear. Seconds are CPU
seconds of all threads, the least of three. What a size that nobody waits for here would cost is computed from the last
cost and the exponent. tests/benchmarks/test_growth.py measures the small sizes.
"""

import argparse
import io
import itertools
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.common import machine, save, table
from rnn_lm import RNNLM, NGramLM
from rnn_lm.compression.compress import compress
from rnn_lm.config import complete_config
from rnn_lm.data.corpus import load_corpus
from rnn_lm.data.texts import read_files
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.inference.evaluate import evaluate
from rnn_lm.inference.generate import generate
from rnn_lm.keys import named_key
from rnn_lm.nn.truncation import Truncation, WindowTruncation
from rnn_lm.program import program_of
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
    evaluate(model, ids)
    return partial(evaluate, model, ids)


def write_text(size: int, folder: Path) -> Measured:
    model = RNNLM(V, 64, rngs=nnx.Rngs(0), cell="gru")
    write = partial(generate, model, np.array([1]), size, key=named_key(0, "growth"))
    write()
    return write


def archive(size: int, folder: Path) -> Measured:
    model, text = RNNLM(V, 32, rngs=nnx.Rngs(0), cell="gru"), text_of(size).encode()
    pack = lambda: compress(model, VOCABULARY, io.BytesIO(text), io.BytesIO(), verify=False)  # noqa: E731
    pack()
    return pack


SERIES = [
    Series("load a text", "characters", load_text, (10**6, 10**7, 10**8), (10**6, 10**7), far=10**9),
    Series("load a text", "characters", load_text, (10**6, 10**7, 10**8), (10**6, 10**7), far=10**9, unit="bytes"),
    Series("read a folder", "files", read_folder, (100, 1_000, 10_000), (200, 2_000), far=10**6),
    Series("count n-grams, order 6", "tokens", count_ngrams, (10**5, 10**6, 10**7), (10**5, 10**6), far=10**8),
    Series("start of an LSTM", "layers", start, (1, 4, 16), (2, 8), exponent=0.5),
    Series("gradient", "steps T", partial(gradient, grows="steps"), (64, 256, 1_024), (64, 512)),
    Series("gradient", "batch B", partial(gradient, grows="batch"), (64, 256, 1_024), (64, 512)),
    Series("gradient", "units H", partial(gradient, grows="hidden"), (128, 256, 512), (128, 512), exponent=2),
    Series(
        "gradient, window truncation", "steps k",
        partial(gradient, grows="window", truncation=WindowTruncation), (4, 8, 16), (4, 16),
    ),
    Series("evaluate", "tokens", read_text, (10**4, 10**5, 10**6), (10**4, 10**5), far=10**9),
    Series("generate", "tokens", write_text, (10**4, 10**5, 10**6), (10**4, 10**5), far=10**8),
    Series("compress", "characters", archive, (10**4, 10**5, 10**6), (10**4, 10**5), far=10**9),
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
    head = ["what", "grows with", "at", "costs", "exponent", "should be", "computed from it"]
    cells = []
    for row in rows:
        far = f"{shown(row['far_cost'], row['unit'])} at {row['far']:,}" if row["far"] else ""
        sizes = " / ".join(f"{size:,}" for size in row["sizes"])
        costs = " / ".join(shown(cost, row["unit"]) for cost in row["costs"])
        cells.append([row["name"], row["of"], sizes, costs, f"{row['exponent']:.2f}", f"{row['should_be']:g}", far])
    return table(head, cells)


def shown(cost: float, unit: str) -> str:
    if unit == "bytes":
        return f"{cost / 1e6:.3g} MB"
    return (f"{cost:.3g} {unit}" if cost < 1e3 else f"{cost:,.0f} {unit}").strip()


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
