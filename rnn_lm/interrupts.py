"""What SIGTERM and SIGINT (Ctrl-C) do: end the process at once, or, while training, after saving."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A command was stopped by a signal, and what it leaves is in order."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


@dataclass
class Pending:
    """The signal that has come, if any."""

    signum: int = 0


def exit_on_signals() -> None:
    """From now on a signal ends the process with exit code 128 + its number.

    At once, not by an exception: one that is raised inside a library's callback gets lost there.
    """
    for signum in SIGNALS:
        signal.signal(signum, lambda number, frame: os._exit(128 + number))


@contextmanager
def deferred_signals() -> Iterator[Pending]:
    """Inside, the first signal is only noted; a second one acts as it would outside.

    Only the main thread can do that; in another one signals act as always.
    """
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
