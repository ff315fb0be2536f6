"""Has anything got worse? The working tree beside a git revision: speed, seconds to start, bits of short runs.

    python -m benchmarks.against HEAD~1
    python -m benchmarks.against main --only=training --seconds=30

Four to five minutes on two quiet cores. Both are copied to a temporary folder, so the tree may be edited meanwhile.
What is timed is compiled and warm in a process of each, and measured in turns, in the order ABBA, so that noise meets
both alike. Ratios are the working tree's speed over the revision's: above 1 is faster. Best is the ratio of the
shortest times, median that of the medians; the quartiles are of the ratios of neighbouring turns, and how far they are
apart is noise. Rows that differ are measured up to three times as long. A start is that of a new process without a
compilation cache. Two trees train with the same bits if a short run ends with the same test loss and parameters. What
one of them cannot do, its row says in a word.
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median, quantiles
from typing import Any

from benchmarks.common import SHAPES, Shape, machine, save, table

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("ref", "now")
TURNS, ROUNDS, SAME = 12, 3, 0.03  # of each side; so often until the shortest times differ by less
DISPATCH = 0.03  # seconds, where a step is not longer: the shorter, the likelier one that nothing disturbs
TRAINING = [SHAPES[i] for i in (0, 8, 4, 6)]  # the chapter's, a small model, large products, a large minibatch
TEXTS, LENGTH = (1, 16), 500  # of sampling
STARTS = {"import rnn_lm": ["-c", "import rnn_lm"], "run.py --help": ["run.py", "--help"]}
FIRST_STEP = "first training step"
# Runs whose bits are compared: between them all cells, two optimizers and all that is drawn at random.
RUN = {"steps": 60, "batch_size": 8, "segment_length": 32, "log_every": 20, "eval_every": 30}
RUNS: dict[str, dict[str, Any]] = {
    "gru": {"model": {"cell": "gru", "num_hiddens": 64}, "optimizer": {"schedule": "cosine", "warmup_steps": 10}},
    "lstm, 2 layers, dropout, randomized truncation": {
        "model": {"cell": "lstm", "num_layers": 2, "num_hiddens": 32, "dropout": 0.2},
        "truncation": {"kind": "randomized", "keep_probability": 0.9},
    },
    "elman, embedding, sgd": {
        "model": {"cell": "elman", "num_hiddens": 64, "embed_dim": 16, "dtype": "float32"},
        "optimizer": {"name": "sgd", "learning_rate": 0.5},
    },
}


class Failed(Exception):
    """In a word, and in more."""


class Checkout:
    """One of the two trees, and the process that works in it."""

    def __init__(self, folder: Path):
        self.folder, self._log = folder, folder.with_suffix(".log")
        self._process: Any = None
        drop = ("PYTHONDONTWRITEBYTECODE", "PYTHONSAFEPATH", "JAX_COMPILATION_CACHE_DIR")
        self._environment = {name: value for name, value in os.environ.items() if name not in drop}
        self._environment |= {"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

    def ask(self, *question: Any) -> Any:
        """What the child answers; one that has died is followed by another at the next question."""
        if self._process is None:
            child = str(Path(__file__).with_name("against_child.py"))
            command, pipe = [sys.executable, "-P", child, str(self.folder)], subprocess.PIPE
            options: dict[str, Any] = {"stdin": pipe, "stdout": pipe, "text": True, "env": self._environment}
            with self._log.open("w") as log:
                self._process = subprocess.Popen(command, cwd=self.folder, stderr=log, **options)
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
            answer = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            self.close()
            raise Failed("died", last_line(self._log.read_text())) from None
        if "error" in answer:
            raise Failed(answer["error"], answer["words"])
        return answer["result"]

    def run(self, *arguments: str) -> float:
        """Seconds of a new process."""
        command, start = [sys.executable, *arguments], time.perf_counter()
        done = subprocess.run(command, cwd=self.folder, env=self._environment, capture_output=True, text=True)
        if done.returncode:
            raise Failed("failed", last_line(done.stderr))
        return time.perf_counter() - start

    def train(self, config: Path, workdir: Path) -> dict[str, Any]:
        """A short run: the seconds to its first step, its test loss, and a hash of its parameters ("": unreadable)."""
        self.run("run.py", f"--config={config}", f"--workdir={workdir}")
        summary = json.loads((workdir / "summary.json").read_text())
        try:
            digest = self.ask("digest", str(workdir))
        except Failed:
            digest = ""
        nll = float(summary["test"]["nll"] or "nan")  # null where it is not finite
        return {"seconds": summary["seconds_to_first_step"], "nll": nll, "digest": digest}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


Pair = dict[str, Checkout]


@dataclass
class Row:
    """What was timed: of each side and turn the seconds of a unit, which is a step, some tokens or a start."""

    part: str
    name: str
    tokens: int = 0  # of a unit, where speed is told in them
    turns: dict[str, list[list[float]]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def seconds(self, side: str, statistic: Callable = min) -> float:
        return statistic([seconds for turn in self.turns[side] for seconds in turn])

    def ratio(self, statistic: Callable = min) -> float:
        return self.seconds("ref", statistic) / self.seconds("now", statistic)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        about: dict[str, Any] = {"part": self.part, "name": self.name}
        if self.errors:
            return about | {"errors": self.errors}
        ratios = [ref / now for ref, now in zip(*([median(t) for t in self.turns[s]] for s in SIDES), strict=True)]
        about["quartiles"] = quantiles(2 * ratios, method="inclusive")[::2]  # twice, as one alone has none
        for name, statistic in {"best": min, "median": median}.items():
            about[name] = {side: self.seconds(side, statistic) for side in SIDES} | {"ratio": self.ratio(statistic)}
        return about

    def cells(self) -> list[str]:
        """Of the table."""
        if self.errors:
            return [self.part, self.name, *(self.errors.get(side, "") for side in SIDES), "", "", ""]
        record = self.record()
        ratios = f"{self.ratio():.3f}", f"{self.ratio(median):.3f}", "{:.3f}–{:.3f}".format(*record["quartiles"])
        return [self.part, self.name, *(self._speed(record["best"][side]) for side in SIDES), *ratios]

    def _speed(self, seconds: float) -> str:
        if self.tokens:
            return f"{self.tokens / seconds:,.0f} tokens/s"
        return f"{1e3 * seconds:.2f} ms a step" if self.part == "training" else f"{seconds:.2f} s"


def alternate(pair: Pair, act: Callable[[Checkout], Any], turns: int, row: Row) -> dict[str, list[Any]]:
    """What `act` returns of each side, in the order ABBA, until something fails, which the row then says."""
    found: dict[str, list[Any]] = {side: [] for side in SIDES}
    for turn in range(turns):
        for side in SIDES if turn % 2 else SIDES[::-1]:
            try:
                found[side].append(act(pair[side]))
            except Failed as failed:
                row.errors[side] = failed.args[0]
                say(f"  {side}: {': '.join(failed.args)}")
        if row.errors:
            break
    return found


def timed(row: Row, pair: Pair, turn: Callable[[Checkout], list[float]]) -> Row:
    """Turns of both sides, after one each to be warm; more of them where the sides differ."""
    alternate(pair, turn, 1, row)
    row.turns = {side: [] for side in SIDES}
    for _ in range(ROUNDS):
        for side, its in alternate(pair, turn, TURNS, row).items():
            row.turns[side] += its
        if row.errors or abs(row.ratio() - 1) <= SAME:
            break
    return row


def steady(row: Row, pair: Pair, seconds: float, kind: str, **arguments: Any) -> Row:
    """Compiles something in both processes, then measures it in turns for about so many seconds in all, or more."""
    made = alternate(pair, lambda checkout: checkout.ask("make", kind, arguments), 1, row)
    if row.errors:
        return row
    of_a_turn = seconds / TURNS / len(SIDES)
    count = max(1, round(min(DISPATCH, of_a_turn) / min(made["ref"] + made["now"])))
    return timed(row, pair, lambda checkout: checkout.ask("turn", count, of_a_turn))


def training(pair: Pair, shape: Shape, seconds: float) -> Row:
    sizes = {"vocab_size": shape.vocab_size, "hidden": shape.hidden, "batch": shape.batch, "steps": shape.steps}
    return steady(Row("training", shape.name), pair, seconds, "training", cell=shape.cell, **sizes)


def experiment(pair: Pair, folder: Path, seconds: float) -> Row:
    """The default experiment as the revision has it, so that both do the same, on a text of 90 random characters."""
    path, text = pair["ref"].folder / "experiments" / "char.py", folder / "random.txt"
    text.write_text("".join(random.Random(0).choices([chr(code) for code in range(33, 123)], k=300_000)))
    return steady(Row("training", path.name), pair, seconds, "experiment", path=str(path), text=str(text))


def sampling(pair: Pair, texts: int, seconds: float) -> Row:
    row = Row("sampling", f"gru V65 H256 B{texts}", texts * LENGTH)
    sizes = {"cell": "gru", "vocab_size": 65, "hidden": 256, "texts": texts, "length": LENGTH}
    return steady(row, pair, seconds, "sampling", **sizes)


def start(pair: Pair, name: str) -> Row:
    return timed(Row("start", name), pair, lambda checkout: [checkout.run(*STARTS[name])])


def short_runs(pair: Pair, folder: Path, name: str, count: int, row: Row) -> dict[str, list[dict[str, Any]]]:
    """So many of each side, in turns, on a small made-up text."""
    text, words = folder / "words.txt", "the time traveller smiled and spoke of a machine that no one had seen".split()
    text.write_text("\n".join(" ".join(random.Random(i).choices(words, k=3 + i % 6)) for i in range(800)))
    given = RUN | RUNS[name] | {"corpus": {"path": str(text), "valid_fraction": 0.1, "test_fraction": 0.1}}
    config = folder / "config.py"
    config.write_text(f"def get_config():\n    return {given!r}\n")
    return alternate(pair, lambda checkout: checkout.train(config, Path(tempfile.mkdtemp(dir=folder))), count, row)


def bits(name: str, runs: dict[str, list[dict[str, Any]]], errors: dict[str, str]) -> dict[str, Any]:
    """Whether both sides end the same, and in words."""
    if errors:
        return {"name": name, "same": None, "says": ", ".join(f"{side}: {word}" for side, word in errors.items())}
    ends = {side: sorted({(str(run["nll"]), run["digest"]) for run in runs[side]}) for side in SIDES}
    (ref, *more_refs), (now, *more_nows) = ends["ref"], ends["now"]
    if more_refs or more_nows:
        same, says = False, "a side differs from itself, run by run"
    elif ref[0] != now[0]:
        same, says = False, f"other bits: nll {ref[0]} → {now[0]}, {float(now[0]) - float(ref[0]):+.1e}"
    elif "" in (ref[1], now[1]):
        same, says = True, "same nll; parameters cannot be read"
    else:
        same, says = ref == now, "same bits" if ref == now else f"other bits, though the same nll {ref[0]}"
    return {"name": name, "same": same, "says": says, **ends}


def verdict(rows: Sequence[Row], all_bits: Sequence[dict[str, Any]]) -> str:
    """One line."""
    said = []
    if trained := [row for row in rows if row.part == "training" and not row.errors]:
        means = [geometric_mean([row.ratio(statistic) for row in trained]) for statistic in (min, median)]
        slowest = min(trained, key=Row.ratio)
        said.append("training × {:.3f} (median × {:.3f}), ".format(*means) + f"slowest × {slowest.ratio():.3f}, ")
        said[-1] += slowest.name
    if all_bits:
        said.append(f"{sum(bool(its['same']) for its in all_bits)} of {len(all_bits)} runs with the same bits")
    if failed := sum(bool(row.errors) for row in rows):
        said.append(f"{failed} not measured")
    return "; ".join(said) or "no training measured"


def measure(pair: Pair, folder: Path, seconds: float, only: str) -> tuple[list[Row], list[dict[str, Any]]]:
    """All whose part and name contain `only`."""
    makers: dict[str, Callable[[], Row]] = {}
    makers |= {f"training {shape.name}": partial(training, pair, shape, seconds) for shape in TRAINING}
    makers["training char.py"] = partial(experiment, pair, folder, seconds)
    makers |= {f"sampling B{texts}": partial(sampling, pair, texts, seconds) for texts in TEXTS}
    makers |= {f"start {name}": partial(start, pair, name) for name in STARTS}
    rows, all_bits = [], []

    def done(row: Row) -> None:
        rows.append(row)
        say("  " + " | ".join(row.cells()[2:]))

    for name, make in makers.items():
        if only in name:
            say(name)
            done(make())
    for name in RUNS:
        compared, starts = only in f"bits {name}", only in f"start {FIRST_STEP}" and name == "gru"
        if compared or starts:
            say(f"short run {name}")
            row = Row("start", FIRST_STEP)
            runs = short_runs(pair, folder, name, 1 + max(1, min(5, round(seconds / 2))) if starts else 1, row)
            row.turns = {side: [[run["seconds"]] for run in its[1:]] for side, its in runs.items()}
            if starts:
                done(row)
            if compared:
                all_bits.append(bits(name, runs, row.errors))
                say("  " + all_bits[-1]["says"])
    return rows, all_bits


def git(*arguments: str, failing: str) -> bytes:
    """What git prints in the root of this checkout."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise Failed("git", failing) from None


def copies(ref: str, folder: Path) -> Pair:
    """The revision and the working tree, each in a folder of its own."""
    git("rev-parse", "--git-dir", failing=f"{ROOT} is no git checkout, so there is nothing to compare with")
    name = git("rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}", failing=f"git knows no revision {ref}")
    packed = git("archive", "--format=tar", name.decode().strip(), failing=f"git cannot unpack {ref}")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder / "ref", filter="data")
    for part in ("rnn_lm", "experiments"):
        shutil.copytree(ROOT / part, folder / "now" / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", folder / "now")
    return {side: Checkout(folder / side) for side in SIDES}


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no word"])[-1]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ref", metavar="REF", help="a revision that git knows: HEAD~1, main, a hash")
    parser.add_argument("--seconds", type=float, default=10, help="measuring time of a row, both sides together")
    parser.add_argument("--only", default="", help="only what contains this: training, sampling, start, bits, gru, …")
    parser.add_argument("--out", default="", help="a JSON file for the numbers")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by way of what cleans up
    try:
        with tempfile.TemporaryDirectory() as temporary, ExitStack() as opened:
            folder = Path(temporary).resolve()
            pair = copies(given.ref, folder)
            for checkout in pair.values():
                opened.callback(checkout.close)
            rows, all_bits = measure(pair, folder, given.seconds, given.only)
    except Failed as failed:
        say(f"error: {failed.args[1]}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    there = machine()
    if given.out:
        results = {"ref": given.ref, "machine": there, "rows": [row.record() for row in rows], "bits": all_bits}
        save(given.out, results)
    if rows:
        head = ["part", "what", given.ref, "working tree", "best", "median", "quartiles"]
        print(table(head, [row.cells() for row in rows]) + "\n")
    if all_bits:
        print(table(["short run", "how it ends"], [[its["name"], its["says"]] for its in all_bits]) + "\n")
    print(verdict(rows, all_bits))
    print(", ".join(f"{key} {value}" for key, value in there.items()))


if __name__ == "__main__":
    main()
