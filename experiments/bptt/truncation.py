"""Full, segment, window and randomized truncation with the same budget, on the whole of The Time Machine.

    python run.py --config=experiments/bptt/truncation.py                                               full
    python run.py --config=experiments/bptt/truncation.py --workdir=runs/segment \
        --config.truncation.kind=segment --config.truncation.steps=4
    python run.py --config=experiments/bptt/truncation.py --workdir=runs/window \
        --config.truncation.kind=window --config.truncation.steps=4
    python run.py --config=experiments/bptt/truncation.py --workdir=runs/randomized \
        --config.truncation.kind=randomized --config.truncation.keep_probability=0.75

Results: docs/bptt.md. Without a network, give the text: --config.corpus.path=timemachine.txt
"""

from rnn_lm import default_config


def get_config():
    config = default_config()
    config.corpus.source = "time_machine"  # the book's text
    config.corpus.normalize = "letters"  # as in the book: 28 entries
    config.corpus.valid_fraction = 0.1  # 17 000 characters
    config.corpus.test_fraction = 0.1  # the same
    config.model.cell = "gru"  # remembers longer than an Elman cell, so truncation costs it more
    config.model.num_hiddens = 128  # units; more would memorise this short text
    config.model.dropout = 0.2  # against memorising, too
    config.segment_length = 32  # tokens: "full" looks back this far
    config.steps = 3000  # updates: 3 million characters, 22 passes, the same for each kind of truncation
    config.optimizer.learning_rate = 4e-3  # for Adam
    config.optimizer.schedule = "cosine"  # decays to zero at the last step
    config.optimizer.warmup_steps = 100  # updates
    config.eval_every = 500  # updates
    return config
