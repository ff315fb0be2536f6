"""The weights that a run starts from if they are not random: those of `config.init_from`."""

import hashlib
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx

from rnn_lm.data.corpus import Corpus
from rnn_lm.data.vocabulary import NEVER, Vocabulary, readable
from rnn_lm.nn.arrays import named_leaves
from rnn_lm.program import Program
from rnn_lm.runs.folder import Hashes

MAX_SHOWN = 8  # of the new tokens


@dataclass(frozen=True)
class Origin:
    """A model to start from. A text adds the tokens that it lacks at the end of its vocabulary."""

    path: str
    arrays: dict[str, np.ndarray]  # by name
    vocabulary: Vocabulary
    sha256: str  # of arrays and vocabulary

    @classmethod
    def of(cls, path: str, fingerprint: str, arrays: dict[str, np.ndarray], vocabulary: Vocabulary) -> "Origin":
        """A model with that fingerprint. An `<unk>` that could never be drawn gets the bias of the rarest token.

        Imported models may have such a one: it would cost so much in a text with unknown tokens that nothing else
        would be learned.
        """
        sha256 = hashlib.sha256(f"{fingerprint} {vocabulary.to_json()}".encode()).hexdigest()
        b_q = arrays["b_q"]
        if b_q[0] <= NEVER:
            arrays = arrays | {"b_q": np.concatenate([b_q[1:].min(keepdims=True), b_q[1:]])}
        return cls(path, arrays, vocabulary, sha256)

    def put_into(self, params: nnx.State, program: Program) -> nnx.State:
        """The parameters of a program, with these weights for the tokens that they know."""
        leaves = []
        for name, new in named_leaves(params).items():
            # An MLP's w_xh has the tokens of each place in the context one below the other.
            by_place = program.cell is None and name == "w_xh" and not program.model_embed_dim
            places = program.model_context if by_place else 1
            old, whole = self.arrays[name], new.reshape(places, -1, *new.shape[1:])
            old = old.reshape(places, -1, *old.shape[1:])
            leaves.append(whole.at[tuple(map(slice, old.shape))].set(old).reshape(new.shape))
        return jax.tree.unflatten(jax.tree.structure(params), leaves)

    def line(self, corpus: Corpus) -> str:
        """Where the weights come from, and which tokens of the text are new to them."""
        new = [repr(readable(token)) for token in corpus.vocabulary.tokens[len(self.vocabulary) :]]
        shown = ", ".join(new[:MAX_SHOWN]) + (f" and {len(new) - MAX_SHOWN} more" if new[MAX_SHOWN:] else "")
        are = "token is" if len(new) == 1 else "tokens are"
        added = f"{len(new)} {are} new to it, with random weights: {shown}" if new else "no token is new to it"
        return f"weights: from {self.path}; {added}"


def hashes_of(corpus: Corpus, origin: Origin | None) -> Hashes:
    """What identifies the text and the first weights of a run."""
    return Hashes(corpus.sha256, origin.sha256 if origin else "")
