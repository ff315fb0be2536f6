"""A user's script with ten mistakes: type checkers find each of them, and nothing else."""

import jax.numpy as jnp
from flax import nnx

import rnn_lm


def main() -> None:
    rngs = nnx.Rngs(0)
    x = jnp.ones((5, 2, 3))
    gru = rnn_lm.GRUCell(in_featurs=3, hidden_features=4, rngs=rngs)  # error
    lstm = rnn_lm.LSTMCell(4, 5, rngs=rngs, forget_bais=1.0)  # error
    elman = rnn_lm.ElmanCell(3, 4)  # error
    other = rnn_lm.PeepholeCell(3, 4, rngs=rngs)  # error
    h, outputs = rnn_lm.unroll(elman, elman.initialize_carry((2, 3)), x, lenghts=[5, 3])  # error
    stack = rnn_lm.Stack([gru, lstm, other], dropout=0.1)
    carry, outputs = rnn_lm.unroll(stack, stack.initialize_carry((2, 3)), x, backward="auto")  # error
    carry, outputs, carries = rnn_lm.unroll(stack, carry, x, return_carries=True)  # error
    model = rnn_lm.RNNLM(65, 128, rngs=rngs, cell="lstm", num_layer=2)  # error
    trained, vocabulary = rnn_lm.load("runs/char", mix=3)  # error
    print(rnn_lm.evaluate(trained, vocabulary.encode(65)).nll)  # error
    print(h, outputs, carries, model)


if __name__ == "__main__":
    main()
