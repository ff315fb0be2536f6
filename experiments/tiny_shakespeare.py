"""char-rnn's sample text, to compare with published results.

    python run.py --config=experiments/tiny_shakespeare.py

Without a network, give the text: --config.corpus.path=tinyshakespeare.txt
"""

from rnn_lm import default_config


def get_config():
    config = default_config()
    config.corpus.source = "tiny_shakespeare"  # 1.1 million characters, used by char-rnn and nanoGPT
    config.corpus.valid_fraction = 0.1  # the last 10 %, as in nanoGPT
    config.corpus.test_fraction = 0.0  # nanoGPT has no test split
    config.model.cell = "lstm"  # as in char-rnn
    config.model.num_layers = 2  # as in char-rnn
    config.model.num_hiddens = 128  # units; as in char-rnn
    config.batch_size = 50  # as in char-rnn
    config.segment_length = 50  # char-rnn's seq_length
    config.steps = 8000  # updates: 20 million characters, 20 passes, three to five minutes on two cores
    config.optimizer.learning_rate = 6e-3  # for Adam; the largest that the cosine decay can still settle
    config.optimizer.schedule = "cosine"  # decays to zero at the last step
    config.optimizer.warmup_steps = 100  # updates; makes such a large rate safe at the start
    config.eval_every = 500  # updates: an evaluation and a sample every ten to twenty seconds
    return config
