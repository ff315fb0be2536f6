import os
import signal
import threading

import pytest

from rnn_lm.interrupts import deferred_signals, exit_on_signals


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_exits_and_inside_the_block_only_the_second_does(signum, code, monkeypatch):
    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    exit_on_signals()
    with pytest.raises(SystemExit) as outside:
        os.kill(os.getpid(), signum)
    with deferred_signals() as pending:
        assert pending.signum == 0
        os.kill(os.getpid(), signum)
        assert pending.signum == signum
        with pytest.raises(SystemExit) as second:
            os.kill(os.getpid(), signum)
    assert outside.value.code == second.value.code == code


def test_another_thread_than_the_main_one_changes_nothing():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def inside():
        with deferred_signals() as pending:
            seen.append((pending.signum, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [(0, before)]
