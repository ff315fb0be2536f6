import sys

import pytest

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


def sweep_of_three(monkeypatch, clock, **earlier):
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    display = SweepDisplay(members=3, tokens=3000, **earlier)
    first, second = display.of("one", program=1), display.of("two", program=1)
    first.start(0, 100, tokens_per_step=10)
    second.start(50, 100, tokens_per_step=10)  # which goes on
    return display, first, second


def test_a_sweep_shows_all_its_members_what_it_does_and_the_time_left(capsys, monkeypatch):
    clock = [100.0]
    display, first, second = sweep_of_three(monkeypatch, clock)
    for now, job, step in [(110.0, first, 10), (115.0, first, 60), (120.0, second, 100)]:
        clock[0] = now
        job.update(step, tokens_per_second=1.0, seconds_per_step=1.0)
    clock[0] = 130.0
    first.close()
    display.end("one: diverged\x1b[31m")
    first.end()
    display.of("three", program=2)
    clock[0] = 140.0
    second.close()
    first.message("a sample")
    display.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "3 members to train",
        "compiling one …",
        "0 of 3 finished  0% of 3,000 tokens  compiling one …",
        "0 of 3 finished  20% of 3,000 tokens  starting two …",  # the first dispatch compiled, so its time says nothing
        "0 of 3 finished  37% of 3,000 tokens  100 tokens/s  19s left  starting two …",
        "0 of 3 finished  53% of 3,000 tokens  100 tokens/s  14s left",
        "0 of 3 finished  53% of 3,000 tokens  50 tokens/s  28s left  scoring one …",
        "one: diverged␛[31m",
        "compiling three …",
        "1 of 3 finished  67% of 3,000 tokens  33 tokens/s  30s left  scoring two …",  # what diverged needs no time
    ]


def test_the_end_of_a_sweep_is_shown_once(capsys, monkeypatch):
    clock = [100.0]
    display, first, _ = sweep_of_three(monkeypatch, clock, before=1500)
    first.update(100, tokens_per_second=1.0, seconds_per_step=1.0)
    for _ in range(3):
        display.do(first, "scoring one …")
    display.close()
    assert capsys.readouterr().err.count("100%") == 1


def test_a_resumed_sweep_counts_what_was_done_before(capsys, monkeypatch):
    clock = [100.0]
    display, first, _ = sweep_of_three(monkeypatch, clock, finished=1, before=1000)
    clock[0] = 110.0
    first.update(10, tokens_per_second=1.0, seconds_per_step=1.0)
    display.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "1 of 3 members finished, 2 to train"
    assert lines[-1] == "1 of 3 finished  53% of 3,000 tokens  starting two …"


def test_a_job_may_have_other_tokens_than_were_expected(capsys, monkeypatch):
    clock = [100.0]
    display, first, _ = sweep_of_three(monkeypatch, clock)
    display.expect(1000)
    clock[0] = 110.0
    first.update(100, tokens_per_second=1.0, seconds_per_step=1.0)
    display.close()
    assert " 38% of 4,000 tokens" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_text_beside_the_bar_fits(monkeypatch, columns):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    run, shown = ProgressDisplay(0, 10_000), []
    run.valid_perplexity = 4.5
    sweep, _, _ = sweep_of_three(monkeypatch, [100.0])
    for display, act in [
        (run, lambda: run.update(5000, tokens_per_second=123456.7, seconds_per_step=0.1)),
        (sweep, lambda: sweep.of("learning_rate=0.001,num_hiddens=128," * 3, program=2)),
    ]:
        act()
        shown.append(display._bar.tasks[0].description)
        assert len(shown[-1]) + 1 + display._wide < columns
        display.close()
    assert shown[0].startswith("step 5000/10000  ") and shown[0].endswith("8m 20s left")
    assert ("validation 4.50" in shown[0], "tokens/s" in shown[0]) == {60: (False, False), 80: (True, False)}.get(
        columns, (True, True)
    )
    assert shown[1].startswith("0 of 3 finished") and shown[1].endswith("compiling learning_rate=0… …")


def test_format_seconds():
    assert [format_seconds(s) for s in (0.4, 59.6, 75, 3600, 7325)] == ["0s", "1m 00s", "1m 15s", "1h 00m", "2h 02m"]
