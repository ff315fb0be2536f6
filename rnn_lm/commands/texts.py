"""The text that a verb reads, and its tokens that the vocabulary lacks."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rnn_lm.data.corpus import Split, text_split
from rnn_lm.data.texts import read_files
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import UserError
from rnn_lm.runs.load import corpus_of


@dataclass(frozen=True)
class Text:
    """Token ids and where they come from."""

    split: Split
    name: str
    part: str  # "test" or "valid" of the run's corpus; "text": another text
    sha256: str  # of the whole corpus or text


def text_of(
    workdir: Path, vocabulary: Vocabulary, paths: Sequence[str], *, strict: bool, or_valid: bool = False
) -> Text:
    """The text given by `--text`, or the run's test split (`or_valid`: if it is empty, the validation split)."""
    if paths:
        text = read_files(*paths)
        check_known(vocabulary, text, name="the text", strict=strict)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        return Text(text_split(vocabulary, text), " ".join(paths), "text", sha256)
    try:
        corpus = corpus_of(workdir)
    except UserError as error:
        raise UserError(f"{error}; to read another text, give --text=FILE") from error
    if or_valid and not corpus.test.tokens:
        return Text(corpus.valid, f"{corpus.name}, validation split", "valid", corpus.sha256)
    return Text(corpus.test, f"{corpus.name}, test split", "test", corpus.sha256)


def check_known(vocabulary: Vocabulary, *texts: str, name: str, strict: bool) -> None:
    """Warns (`strict`: raises UserError) if tokens of the texts are not in the vocabulary."""
    unknown = vocabulary.unknown_in(*texts)
    if not unknown:
        return
    shown = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
    message = f"{name} has tokens that the vocabulary lacks: {shown}"
    if strict:
        raise UserError(f"{message}; without --strict they are read as <unk>")
    warn(f"{message}; they are read as <unk>")


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
