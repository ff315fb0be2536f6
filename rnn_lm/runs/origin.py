"""The weights that a run starts from if they are not random: those of `config.init_from`."""

from dataclasses import dataclass

import numpy as np

from rnn_lm.data.corpus import Corpus
from rnn_lm.data.vocabulary import Vocabulary, readable
from rnn_lm.runs.folder import Hashes

MAX_SHOWN = 8  # of the new tokens


@dataclass(frozen=True)
class Origin:
    """A model to start from. A text adds the tokens that it lacks at the end of its vocabulary."""

    path: str
    arrays: dict[str, np.ndarray]  # by name
    vocabulary: Vocabulary
    sha256: str  # of the arrays

    def line(self, corpus: Corpus) -> str:
        """Where the weights come from, and which tokens of the text are new to them."""
        new = [repr(readable(token)) for token in corpus.vocabulary.tokens[len(self.vocabulary) :]]
        shown = ", ".join(new[:MAX_SHOWN]) + (f" and {len(new) - MAX_SHOWN} more" if new[MAX_SHOWN:] else "")
        added = f"{len(new)} tokens are new to it and get random weights: {shown}" if new else "no token is new to it"
        return f"weights: from {self.path}; {added}"


def hashes_of(corpus: Corpus, origin: Origin | None) -> Hashes:
    """What identifies the text and the first weights of a run."""
    return Hashes(corpus.sha256, origin.sha256 if origin else "")
