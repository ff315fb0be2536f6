"""Full, regular, windowed and randomized truncation with one budget, on the whole of The Time Machine.

    python run.py --config=experiments/bptt/truncation.py                                               full
    python run.py --config=experiments/bptt/truncation.py --workdir=runs/segment \
        --config.truncation.kind=segment --config.truncation.steps=4
    python run.py --config=experiments/bptt/truncation.py --workdir=runs/window \
        --config.truncation.kind=window --config.truncation.steps=4
    python run.py --config=experiments/bptt/truncation.py --workdir=runs/randomized \
        --config.truncation.kind=randomized --config.truncation.keep_probability=0.75

docs/bptt.md has the results. Without a network, give the text: --config.corpus.path=timemachine.txt
"""

from rnn_lm import default_config


def get_config():
    config = default_config()
    config.corpus.source = "time_machine"  # the book's text
    config.corpus.normalize = "letters"  # the book's: 28 entries
    config.corpus.valid_fraction = 0.1  # 17 000 characters
    config.corpus.test_fraction = 0.1  # the same
    config.model.cell = "gru"  # remembers further than an Elman cell, so truncation costs it more
    config.model.num_hiddens = 128  # units; more learn this short text by heart
    config.model.dropout = 0.2  # for the same reason
    config.segment_length = 32  # tokens: what "full" means here
    config.steps = 3000  # updates: 3 million characters, 22 passes, the same for every strategy
    config.optimizer.learning_rate = 4e-3  # of adam
    config.optimizer.schedule = "cosine"  # falls to zero at the last step
    config.optimizer.warmup_steps = 100  # updates
    config.eval_every = 500  # updates
    return config
