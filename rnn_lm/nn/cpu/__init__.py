"""Recurrence, output layer and sampling as machine code for CPUs.

Where it cannot be, JAX does it; the two differ by rounding.

`RNN_LM_NATIVE=0` in the environment, looked at each time a program is traced, turns it off.
"""

from rnn_lm.nn.choice import is_in
from rnn_lm.nn.cpu import output, sample
from rnn_lm.nn.cpu.library import build, is_available, is_wanted, version, why_not
from rnn_lm.nn.cpu.recurrence import Layer, accelerated, is_for

__all__ = [
    "Layer",
    "accelerated",
    "build",
    "is_available",
    "is_for",
    "is_in",
    "is_wanted",
    "output",
    "sample",
    "version",
    "why_not",
]
