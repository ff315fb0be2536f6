"""What the user's text has that a vocabulary lacks."""

import sys

from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import UserError


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
