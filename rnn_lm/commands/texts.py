"""Which text a verb reads, and what it has that a vocabulary lacks."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rnn_lm.data.corpus import Split, load_corpus, read_files, text_split
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import UserError
from rnn_lm.training.run_folder import read_config


def text_of(
    workdir: Path, vocabulary: Vocabulary, paths: Sequence[str], *, strict: bool, or_valid: bool = False
) -> tuple[Split, str]:
    """The text that `--text` names, or the run's test split (`or_valid`: validation, if it has none); and its name."""
    if paths:
        text = read_files(*paths)
        check_known(vocabulary, text, "the text", strict=strict)
        return text_split(vocabulary, text), " ".join(paths)
    config, sha256 = read_config(workdir)
    corpus = load_corpus(**config.corpus)
    if corpus.sha256 != sha256:
        raise UserError(f"{corpus.name} is no longer the text that the run was trained on; name one with --text=FILE")
    if or_valid and not corpus.test.tokens:
        return corpus.valid, f"{corpus.name}, validation split"
    return corpus.test, f"{corpus.name}, test split"


def check_known(vocabulary: Vocabulary, text: str, name: str, *, strict: bool) -> None:
    """Warns, or refuses if `strict`, where tokens of the text will be read as `<unk>`."""
    unknown = vocabulary.unknown_in(text)
    if not unknown:
        return
    shown = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
    message = f"{name} has tokens that the vocabulary lacks: {shown}"
    if strict:
        raise UserError(f"{message}; without --strict they are read as <unk>")
    print(f"warning: {message}; they are read as <unk>", file=sys.stderr)
