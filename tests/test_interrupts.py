import os
import signal

import pytest

from rnn_lm.interrupts import deferred_signals, exit_on_signals


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_exits_and_inside_the_block_only_the_second_does(signum, code):
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
