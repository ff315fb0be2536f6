"""A network and an n-gram model as one model, by interpolating their probabilities.

P(x) = λ P_network(x) + (1 − λ) P_ngram(x). λ depends on the length and the count of the n-gram's context: frequent
contexts have reliable counts (Jelinek, Mercer, Interpolated estimation of Markov source parameters, 1980).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rnn_lm.inference.reading import nats_of
from rnn_lm.ngram import ROOT, NGramLM
from rnn_lm.nn.arrays import Carry, Tree
from rnn_lm.nn.models import LanguageModel

EM_STEPS = 100
PRIOR = 1.0  # pseudo-count of each model in each bucket; keeps λ off 0 and 1
BUCKETS = 32  # per context length; a bucket is ⌊log2(count)⌋
WEIGHT_SCALE = 50.0  # makes λ learn faster than the other parameters in dynamic evaluation


class NGramTrie(nnx.Module):
    """An `NGramLM` as device arrays, for looking up many contexts in a compiled step.

    All n-grams are nodes of one list, starting with the empty n-gram. The children of a node have one token more and
    are the nodes first[node] to first[node + 1]. A context is the nodes of its last 0, 1, …, order − 1 tokens, or −1
    where the text has nothing after them.
    """

    def __init__(self, ngram: NGramLM):
        size, levels = ngram.vocab_size, ngram.levels
        if ngram.smoothing == "add_alpha":
            raise ValueError("an add-alpha model does not interpolate its orders; use Kneser-Ney")
        self.vocab_size, self.order = size, ngram.order
        sizes = [1, *(len(level.keys) for level in levels)]  # nodes of each order
        starts = np.cumsum([0, *sizes])
        first = [
            starts[k + 1] + np.searchsorted(level.keys, np.arange(sizes[k]) * size) for k, level in enumerate(levels)
        ]
        bounds = np.concatenate([*first, np.full(sizes[-1] + 1, starts[-1])])
        self.widths = tuple(int(np.diff(bounds[a : b + 1]).max()) for a, b in zip(starts, starts[1:-1], strict=False))
        self.first = nnx.Variable(jnp.asarray(bounds, jnp.int32))
        self.token = nnx.Variable(jnp.asarray(np.concatenate([[0], *(v.keys % size for v in levels)]), jnp.int32))
        self.weight = nnx.Variable(jnp.asarray(np.concatenate([[0], *(v.weights for v in levels)]), jnp.float32))
        self.backoff = nnx.Variable(jnp.asarray(np.concatenate([v.backoffs for v in levels]), jnp.float32))
        unigrams = np.full(size, levels[0].backoffs[0] / size)
        unigrams[levels[0].keys] += levels[0].weights
        self.unigrams = nnx.Variable(jnp.asarray(unigrams, jnp.float32))

    def empty(self, batch_size: int) -> Int[Array, "B n"]:
        """The context before the first token."""
        return jnp.full((batch_size, self.order), -1, jnp.int32).at[:, 0].set(ROOT)

    def read(self, context: Int[Array, "B n"], tokens: Int[Array, "T B"]) -> Int[Array, "T B n"]:
        """The context after each token."""
        nodes = [jnp.full_like(tokens, ROOT)]
        for k in range(self.order - 1):
            before = jnp.concatenate([context[None, :, k], nodes[k][:-1]])
            child = self._child(before, tokens, self.widths[k])
            is_context = (child >= 0) & (self.first[child] < self.first[child + 1])
            nodes.append(jnp.where(is_context, child, -1))
        return jnp.stack(nodes, axis=-1)

    def prob(self, context: Int[Array, "*batch n"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """P of a token after each context: an entry of `probs`, in time that does not depend on V."""
        probs = self.unigrams[labels]
        for k in range(1, self.order):
            node = context[..., k]
            child = self._child(node, labels, self.widths[k])
            probs = probs * jnp.where(node >= 0, self.backoff[node], 1) + jnp.where(child >= 0, self.weight[child], 0)
        return probs

    def probs(self, context: Int[Array, "*batch n"]) -> Float[Array, "*batch V"]:
        """P of every token after each context."""
        nodes = context.reshape(-1, self.order)
        rows = jnp.arange(len(nodes))[:, None]
        probs = jnp.broadcast_to(self.unigrams[...], (len(nodes), self.vocab_size))
        for k in range(1, self.order):
            node = jnp.maximum(nodes[:, k], 0)
            known = nodes[:, k] >= 0
            children = self.first[node][:, None] + jnp.arange(self.widths[k])
            real = known[:, None] & (children < self.first[node + 1][:, None])
            probs = probs * jnp.where(known, self.backoff[node], 1)[:, None]
            probs = probs.at[rows, self.token[children]].add(jnp.where(real, self.weight[children], 0))
        return probs.reshape(*context.shape[:-1], self.vocab_size)

    def _child(self, node: Int[Array, "*batch"], token: Int[Array, "*batch"], width: int) -> Int[Array, "*batch"]:
        """The child of a node by a token; −1 if the text lacks it. `width`: the most children that such a node has."""
        low, end = self.first[node], self.first[node + 1]

        # A loop: unrolled, the searches of all orders took a minute to compile.
        def halve(_: Int[Array, ""], bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = (low + high) // 2
            less = (low < high) & (self.token[middle] < token)
            return jnp.where(less, middle + 1, low), jnp.where(less, high, middle)

        low, _ = jax.lax.fori_loop(0, width.bit_length(), halve, (low, end))
        return jnp.where((node >= 0) & (low < end) & (self.token[low] == token), low, -1)


class Mixture(LanguageModel):
    """The mixture as a language model whose logits are ln P. Its carry is the network's carry and the n-gram's context.

    Args:
      model: the network.
      ngram: the n-gram model, Kneser-Ney or maximum likelihood.
      weights: λ [order · 32], by the context's length and ⌊log2(count)⌋.
    """

    def __init__(self, model: LanguageModel, ngram: NGramLM, weights: Float[np.ndarray, "n"]):
        self.model = model
        self.trie = NGramTrie(ngram)
        self.bucket = nnx.Variable(jnp.asarray(buckets(ngram), jnp.int32))  # of each node
        self.w_mix = nnx.Param(jnp.asarray(np.log(weights / (1 - weights)) / WEIGHT_SCALE, jnp.float32))

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    def initialize_carry(self, batch_size: int) -> tuple[Carry, Int[Array, "B n"]]:
        return self.model.initialize_carry(batch_size), self.trie.empty(batch_size)

    def states(self, carry: Carry) -> dict[str, list[Array]]:
        return self.model.states(carry[0])

    def hidden(
        self, carry: Carry, tokens: Int[Array, "T B"], *, key: Array | None = None, return_carries: bool = False
    ) -> tuple[Carry, Tree]:
        inner, h = self.model.hidden(carry[0], tokens, key=key, return_carries=return_carries)
        context = self.trie.read(carry[1], tokens)
        return (inner, context if return_carries else context[-1]), (h, context)

    def logits(self, h: Tree) -> Float[Array, "*batch V"]:
        network, context = h
        return self._mixed(context, jax.nn.log_softmax(self.model.logits(network)), self.trie.probs(context))

    def nll(self, h: Tree, labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        network, context = h
        log_probs = -self.model.nll(network, labels)[..., None]
        return -self._mixed(context, log_probs, self.trie.prob(context, labels)[..., None])[..., 0]

    def _mixed(
        self, context: Int[Array, "*batch n"], log_probs: Float[Array, "*batch N"], probs: Float[Array, "*batch N"]
    ) -> Float[Array, "*batch N"]:
        """The ln P of N tokens, from the network's ln P and the n-grams' P."""
        # λ is that of the longest context, whose node is the largest.
        odds = WEIGHT_SCALE * self.w_mix[self.bucket[context.max(axis=-1)]][..., None]
        # The mixture's loss trains λ only; the network would otherwise unlearn what the n-grams know.
        log_probs = jax.lax.stop_gradient(log_probs)
        return jnp.logaddexp(jax.nn.log_sigmoid(odds) + log_probs, jax.nn.log_sigmoid(-odds) + jnp.log(probs))

    def objective(self, h: Tree, labels: Int[Array, "*batch"], mask: Bool[Array, "*batch"]) -> Float[Array, ""]:
        return self.model.objective(h[0], labels, mask) + super().objective(h, labels, mask)


def fit_weights(model: LanguageModel, ngram: NGramLM, ids: Int[np.ndarray, "N"]) -> Float[np.ndarray, "n"]:
    """The weights λ that maximise the likelihood of a held-out text, ids [N], by EM."""
    network = np.exp(-nats_of(model, ids))
    counted = ngram.probs(ids)[1:]
    trie = NGramTrie(ngram)
    contexts = trie.read(trie.empty(1), jnp.asarray(ids[:-1, None], jnp.int32))[:, 0]
    bucket = buckets(ngram)[np.asarray(contexts).max(axis=-1)]
    size = ngram.order * BUCKETS
    tokens = np.bincount(bucket, minlength=size)
    weights = np.full(size, 0.5)
    for _ in range(EM_STEPS):
        share = weights[bucket] * network / (weights[bucket] * network + (1 - weights[bucket]) * counted)
        weights = (np.bincount(bucket, share, size) + PRIOR) / (tokens + 2 * PRIOR)
    return weights


def buckets(ngram: NGramLM) -> Int[np.ndarray, "N"]:
    """The bucket of each node that can be a context: length · 32 + ⌊log2(count)⌋."""
    counts = [np.bincount(level.keys // ngram.vocab_size, level.counts, len(level.backoffs)) for level in ngram.levels]
    return np.concatenate([k * BUCKETS + np.log2(np.maximum(count, 1)).astype(int) for k, count in enumerate(counts)])
