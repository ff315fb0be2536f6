"""Many runs from one config file, with the functions for its `sweep()`: `sweeps.choice`, `sweeps.seeds`, …"""

from rnn_lm.sweeps.lists import Sweep, chain, choice, log_uniform, product, seeds, zip

__all__ = ["Sweep", "chain", "choice", "log_uniform", "product", "seeds", "zip"]
