"""The d2l chapter's model: characters of The Time Machine, trained from scratch.

    python run.py --config=experiments/time_machine.py
    python run.py --config=experiments/time_machine.py --config.partition=random --workdir=runs/time_machine-random

Without a network, give the text: --config.corpus.path=timemachine.txt
"""

from rnn_lm import default_config


def get_config():
    config = default_config()
    config.corpus.source = "time_machine"  # the book's text, H. G. Wells 1895
    config.corpus.normalize = "letters"  # as in the book: letters and single spaces, 28 entries with <unk>
    config.corpus.max_tokens = 10_000  # the book trains on the first 10 000 characters only
    config.batch_size = 32  # as in the book
    config.segment_length = 35  # the book's num_steps
    config.partition = "sequential"  # the better of the book's two results; "random" gives the other
    config.steps = 4000  # 500 epochs, as in the book: 8 minibatches each
    config.model.num_hiddens = 512  # units; as in the book
    # The book starts from weights near 0: the same result, but it learns later. With 1.0 and a learning rate of 1 the
    # weights never settle: training perplexity stays at 1.2 instead of 1.03.
    config.model.initial_radius = 0.5  # of W_hh
    config.optimizer.name = "sgd"  # as in the book, without momentum
    config.optimizer.learning_rate = 1.0  # as in the book; works because the gradient is clipped
    config.optimizer.clip_norm = 1.0  # as in the book
    config.log_every = 80  # updates: every 10 epochs, as often as the book plots
    config.eval_every = 400  # updates: ten samples per run
    config.save_every = 1000  # updates: four times per run
    return config
