"""SIGTERM and SIGINT (Ctrl-C): exit at once, or defer the first one, for example to save."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A command was stopped by a signal and has cleaned up."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


@dataclass
class Pending:
    signum: int = 0  # of the signal received, if any


def exit_on_signals() -> None:
    """From now on a signal ends the process at once with exit code 128 + its number.

    An exception instead could get lost in a library's callback.
    """
    for signum in SIGNALS:
        signal.signal(signum, lambda number, frame: os._exit(128 + number))


@contextmanager
def deferred_signals() -> Iterator[Pending]:
    """Inside, the first signal is only recorded; a second one acts as usual. No effect outside the main thread."""
    pending = Pending()
    if threading.current_thread() is not threading.main_thread():
        yield pending
        return
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def restore():
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def note(signum, frame):
        pending.signum = signum
        restore()

    for signum in SIGNALS:
        signal.signal(signum, note)
    try:
        yield pending
    finally:
        restore()
