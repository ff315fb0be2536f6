"""TPE beside random search on the space of experiments/sweeps/search.py, at equal cost.

    python -m benchmarks.search

Both draw the same number of trials, each of the same number of steps and none pruned, for each of several seeds. With
one seed both draw the same first trials, as TPE starts at random. Prints the lowest validation loss after 10, 20, …
trials, the median of the last ten, and the test loss of the trial chosen at the end: means and standard errors over the
seeds.
"""

import argparse
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import rnn_lm
from benchmarks.common import machine, save, table
from rnn_lm.config import load_config, load_search, tokens_per_step
from rnn_lm.sweeps.sweep import use_all_cores

FILE = "experiments/sweeps/search.py"
SAMPLERS = ("tpe", "random")


def searched(folder: Path, sampler: str, seed: int, trials: int, steps: int) -> dict[str, Any]:
    """One search: its losses in the order of its trials, and its choice. Continues in its folder."""
    config, suggest = load_config(FILE), load_search(FILE)
    assert suggest is not None
    config.seed, config.steps, config.eval_every, config.save_every = seed, steps, steps // 2, steps
    config.sweep.sampler, config.sweep.pruner, config.sweep.trials = sampler, "none", trials
    result = rnn_lm.search(config, suggest, folder / f"{sampler}-{seed}")
    rows = result["members"]
    [best] = [row for row in rows if row["name"] == result["best"]["name"]]
    return {
        "sampler": sampler,
        "seed": seed,
        "valid_nll": [row["valid"]["nll"] if row["valid"] else None for row in rows],
        "chosen": {"overrides": best["overrides"], "valid_nll": best["valid"]["nll"], "test_nll": best["test"]["nll"]},
        "cells": [row["overrides"]["model.cell"] for row in rows],
        "diverged": sum(row["status"] == "diverged" for row in rows),
        "repeats": sum("repeats" in row for row in rows),
        "importances": result["search"]["importances"],
        # Of the steps alone, on one core each: cells do not cost the same, and a search may have been interrupted.
        "training_seconds": sum(
            row["steps"] * tokens_per_step(config) / row["tokens_per_second"] for row in rows if row["valid"]
        ),
    }


def lowest(search: dict[str, Any], trials: int) -> float:
    return min(nll for nll in search["valid_nll"][:trials] if nll is not None)


def summary_of(searches: list[dict[str, Any]], counts: list[int]) -> list[dict[str, Any]]:
    """A row for each count of trials, and one for the test loss of the choice; `difference` is TPE less random."""

    def row(name: str, figure: Any) -> dict[str, Any]:
        values = {sampler: [figure(s) for s in searches if s["sampler"] == sampler] for sampler in SAMPLERS}
        pairs = [tpe - random for tpe, random in zip(values["tpe"], values["random"], strict=True)]
        return {"what": name} | {key: _mean_and_error(each) for key, each in (values | {"difference": pairs}).items()}

    rows = [row(f"validation, after {count}", lambda s, count=count: lowest(s, count)) for count in counts]
    late = row("validation, median of the last ten", lambda s: statistics.median(filter(None, s["valid_nll"][-10:])))
    return [*rows, late, row("test, of the choice", lambda s: s["chosen"]["test_nll"])]


def _mean_and_error(values: list[float]) -> list[float]:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return [statistics.fmean(values), error]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--workdir", type=Path, help="where to keep the searches, to go on later (default: nowhere)")
    given = parser.parse_args()
    use_all_cores()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.workdir or Path(temporary)
        searches = [
            searched(folder, sampler, seed, given.trials, given.steps)
            for seed in range(given.seeds)
            for sampler in SAMPLERS
        ]
    rows = summary_of(searches, [*range(10, given.trials + 1, 10)])
    shown = [[row["what"], *(f"{mean:.4f} ± {error:.4f}" for mean, error in [*row.values()][1:])] for row in rows]
    print(table(["nats per character", "TPE", "random", "TPE − random"], shown))
    save(
        "benchmarks/results/search.json",
        {"trials": given.trials, "steps": given.steps, "rows": rows, "searches": searches} | machine(),
    )


if __name__ == "__main__":
    main()
