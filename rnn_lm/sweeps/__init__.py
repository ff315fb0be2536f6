"""Many runs from one file. What a config file's `sweep()` is made of stands here: `sweeps.choice`, `sweeps.seeds`, …"""

from rnn_lm.sweeps.lists import Sweep, chain, choice, log_uniform, product, seeds, zip

__all__ = ["Sweep", "chain", "choice", "log_uniform", "product", "seeds", "zip"]
