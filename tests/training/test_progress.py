import sys

from rnn_lm.training import progress as module
from rnn_lm.training.progress import ProgressDisplay, SweepDisplay, format_seconds


def test_without_a_terminal_lines_come_now_and_then_and_at_the_end(capsys, monkeypatch):
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    now = 100.0
    display = ProgressDisplay(0, 300)
    display.train_perplexity = 7.5
    for now, step in [(100.0, 50), (102.0, 100), (106.0, 200), (107.0, 300)]:  # noqa: B007
        display.update(step, tokens_per_second=12345.6, seconds_per_step=0.25)
    display.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1].rstrip(":") for line in lines] == ["0/300", "50/300", "200/300", "300/300"]
    assert lines[1] == "step 50/300  perplexity 7.50 (validation …)  12,346 tokens/s  1m 02s left"


def test_on_a_terminal_it_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    display = ProgressDisplay(0, 300)
    display.update(150, tokens_per_second=1e4, seconds_per_step=0.1)
    display.message("[bold] a sample, not markup")
    display.close()
    assert "[bold] a sample, not markup" in capsys.readouterr().err


def test_a_sweep_shows_all_its_members_and_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    now = 100.0
    display = SweepDisplay(members=3, tokens=3000)
    first, second = display.of(0, tokens_per_step=10), display.of(50, tokens_per_step=10)  # which goes on
    for now, job, step in [(110.0, first, 10), (115.0, first, 60), (120.0, second, 100)]:  # noqa: B007
        job.update(step, tokens_per_second=1.0, seconds_per_step=1.0)
    display.end("one: diverged")
    first.message("a sample")
    display.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "3 members to train: compiling …",
        "0 of 3 finished  20% of 3,000 tokens",  # the first dispatch compiled, so its time says nothing
        "0 of 3 finished  37% of 3,000 tokens  100 tokens/s  19s left",
        "0 of 3 finished  53% of 3,000 tokens  100 tokens/s  14s left",
        "one: diverged",
    ]


def test_format_seconds():
    assert [format_seconds(s) for s in (0.4, 59.6, 75, 3600, 7325)] == ["0s", "1m 00s", "1m 15s", "1h 00m", "2h 02m"]
