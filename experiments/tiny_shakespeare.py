"""char-rnn's sample text, to compare with what others report on it.

    python run.py --config=experiments/tiny_shakespeare.py

Without a network, give the text: --config.corpus.path=tinyshakespeare.txt
"""

from rnn_lm import default_config


def get_config():
    config = default_config()
    config.corpus.source = "tiny_shakespeare"  # 1.1 million characters, used by char-rnn and nanoGPT
    config.corpus.valid_fraction = 0.1  # the last 10 %, as in nanoGPT
    config.corpus.test_fraction = 0.0  # theirs has no test split
    config.model.cell = "lstm"  # char-rnn's
    config.model.num_layers = 2  # char-rnn's
    config.model.num_hiddens = 128  # units; char-rnn's
    config.batch_size = 50  # char-rnn's
    config.segment_length = 50  # char-rnn's seq_length
    config.steps = 8000  # updates: 20 million characters, 20 passes over the text, five minutes on two cores
    config.optimizer.learning_rate = 6e-3  # of adam, as large as the cosine's end can settle
    config.optimizer.schedule = "cosine"  # falls to zero at the last step
    config.optimizer.warmup_steps = 100  # updates; lets so large a rate start safely
    config.eval_every = 500  # updates: a sample every fifteen seconds
    return config
