"""The d2l chapter's model: characters of The Time Machine, trained from scratch.

    python run.py --config=experiments/time_machine.py
    python run.py --config=experiments/time_machine.py --config.partition=random --workdir=runs/time_machine-random

Without a network, give the text: --config.corpus.path=timemachine.txt
"""

from rnn_lm import default_config


def get_config():
    config = default_config()
    config.corpus.source = "time_machine"  # the book's text, H. G. Wells 1895
    config.corpus.normalize = "letters"  # the book's: letters and single spaces, 28 entries with <unk>
    config.corpus.max_tokens = 10_000  # the book trains on the first 10 000 characters only
    config.batch_size = 32  # the book's
    config.segment_length = 35  # the book's num_steps
    config.partition = "sequential"  # the book's better figure; "random" gives the other one
    config.steps = 4000  # 500 epochs, as in the book: 8 minibatches each
    config.model.num_hiddens = 512  # the book's
    # The book starts from weights near 0, which ends the same but learns later. From 1.0, a learning rate of 1 shakes
    # the weights for ever: training perplexity stays at 1.2 instead of 1.03.
    config.model.initial_radius = 0.5  # of W_hh
    config.optimizer.name = "sgd"  # the book's, without momentum
    config.optimizer.learning_rate = 1.0  # the book's; it works because the gradient is clipped
    config.optimizer.clip_norm = 1.0  # the book's
    config.log_every = 80  # steps: every 10 epochs, as often as the book plots
    config.eval_every = 400  # steps: ten samples in a run
    config.save_every = 1000  # steps: about once a minute on two cores
    return config
