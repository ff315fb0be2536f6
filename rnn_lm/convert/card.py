"""The model card of an exported folder: what the model is, how good it is, and how to use it."""

from rnn_lm.convert.weights import Weights
from rnn_lm.data.vocabulary import KINDS
from rnn_lm.files import Json


def to_card(weights: Weights, *, title: str, about: Json, files: dict[str, str]) -> str:
    """The card in Markdown. Its head is what model hubs read."""
    head = ["---", "library_name: rnn_lm", "pipeline_tag: text-generation", "tags: [rnn, language-model, jax]", "---"]
    size = sum(array.size for array in weights.arrays.values())
    tokens = f"{len(weights.vocabulary):,} tokens ({KINDS[weights.vocabulary.kind]} and `<unk>`)"
    return "\n".join(
        [
            *head,
            "",
            f"# {title}",
            "",
            f"A language model of rnn_lm with {size:,} parameters and {tokens}.",
            "",
            *_figures(about),
            "## Use",
            "",
            "In this folder, with rnn_lm installed:",
            "",
            "```bash",
            "rnn-lm generate --workdir=. --length=500",
            "rnn-lm evaluate --workdir=. --text=FILE",
            "rnn-lm import-weights . --workdir=runs/mine",
            "```",
            "",
            "```python",
            "import rnn_lm",
            "",
            'model, vocabulary = rnn_lm.load(".")',
            "```",
            "",
            "To train it further on another text: `rnn-lm --config=FILE --config.init_from=.`",
            "",
            "## Files",
            "",
            *(f"- `{name}`: {what}" for name, what in files.items()),
            "",
            "## The model",
            "",
            *(f"- {name}: {value}" for name, value in weights.model.items()),
            "",
        ]
    )


def headline(about: Json) -> str:
    """How good it is, in one line; "" without a summary."""
    for name, split in (("test", "test"), ("valid", "validation")):
        if name in about:
            return f"{about[name]['bits_per_char']:.2f} bits per character on unseen {split} text"
    return ""


def _figures(about: Json) -> list[str]:
    """How good it is, by the summary of its run."""
    if not about:
        return []
    name, split = ("test", "test") if "test" in about else ("valid", "validation")
    result, corpus, others = about[name], about["corpus"], about["baselines"]
    rows = {
        "uniform guessing": others["uniform"],
        "token frequencies": others["unigram"],
        "n-gram model": others.get("ngram"),
        "**this model**": result,
    }
    table = [f"| {who} | {row['perplexity']:.2f} | {row['bits_per_char']:.3f} |" for who, row in rows.items() if row]
    text = f"{corpus['source']} (SHA-256 {corpus['sha256'][:12]}…)"
    trained = f"Trained for {about['steps']:,} steps on {about['tokens']:,} tokens of {text}"
    return [
        "## How good is it?",
        "",
        f"{trained}. On {result['tokens']:,} tokens of unseen {split} text:",
        "",
        "| | perplexity | bits per character |",
        "|---|---|---|",
        *table,
        "",
    ]
