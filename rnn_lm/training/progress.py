"""What one sees of a run while it goes on: a bar on a terminal, plain lines elsewhere. All of it on stderr."""

import sys
import threading
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 5.0


class Display(Protocol):
    """What the training loop tells of itself."""

    train_perplexity: float | None
    valid_perplexity: float | None

    def update(self, step: int, tokens_per_second: float, seconds_per_step: float) -> None:
        """Called after every dispatch."""

    def message(self, text: str) -> None:
        """Lines that stay."""

    def close(self) -> None: ...


class ProgressDisplay:
    """Shows a run's steps, tokens/s, train and validation perplexity and the time left."""

    def __init__(self, step: int, steps: int):
        self.train_perplexity: float | None = None
        self.valid_perplexity: float | None = None
        self._steps = steps
        self._bar = _Bar(step, steps, f"step {step}/{steps}: compiling …")

    def update(self, step: int, tokens_per_second: float, seconds_per_step: float) -> None:
        train, valid = (f"{p:.2f}" if p else "…" for p in (self.train_perplexity, self.valid_perplexity))
        self._bar.show(
            step,
            f"step {step}/{self._steps}  perplexity {train} (validation {valid})  {tokens_per_second:,.0f} tokens/s  "
            f"{format_seconds(seconds_per_step * (self._steps - step))} left",
        )

    def message(self, text: str) -> None:
        self._bar.message(text)

    def close(self) -> None:
        self._bar.close()


class SweepDisplay:
    """Shows how many members of a sweep are over, tokens/s of all that are trained, and the time left."""

    def __init__(self, members: int, tokens: int):
        """Of those that are not over yet: how many, and the tokens that they are trained on."""
        self._members, self._tokens = members, tokens
        self._over = 0
        self._at: dict[int, tuple[int, int]] = {}  # of each job: tokens at its start and now
        self._first: tuple[float, int] | None = None  # when the first dispatch was told of, and the tokens until then
        self._lock = threading.Lock()
        self._bar = _Bar(0, tokens, f"{members} members to train: compiling …")

    def of(self, first_step: int, tokens_per_step: int) -> Display:
        """What one job tells; `tokens_per_step` are those of all its members."""
        with self._lock:
            job = len(self._at)
            self._at[job] = 2 * (first_step * tokens_per_step,)
        return _JobDisplay(self, job, tokens_per_step)

    def update(self, job: int, now: int) -> None:
        with self._lock:
            self._at[job] = self._at[job][0], now
            self._show()

    def end(self, text: str) -> None:
        """One member more is over; `text` is what came of it."""
        with self._lock:
            self._over += 1
            self._bar.message(text)
            self._show()

    def message(self, text: str) -> None:
        self._bar.message(text)

    def close(self) -> None:
        self._bar.close()

    def _show(self) -> None:
        now = sum(now for _, now in self._at.values())
        trained = now - sum(start for start, _ in self._at.values())
        seconds, before = self._first = self._first or (time.monotonic(), trained)
        text = f"{self._over}/{self._members} members over  {now / self._tokens:.0%} of {self._tokens:,} tokens"
        if (elapsed := time.monotonic() - seconds) and trained > before:
            speed = (trained - before) / elapsed
            text += f"  {speed:,.0f} tokens/s  {format_seconds((self._tokens - now) / speed)} left"
        self._bar.show(now, text)


class _JobDisplay:
    """Tells the display of the whole sweep what one job has done; samples stay in the runs' folders."""

    train_perplexity: float | None = None
    valid_perplexity: float | None = None

    def __init__(self, whole: SweepDisplay, job: int, tokens_per_step: int):
        self._whole, self._job, self._tokens_per_step = whole, job, tokens_per_step

    def update(self, step: int, tokens_per_second: float, seconds_per_step: float) -> None:
        self._whole.update(self._job, step * self._tokens_per_step)

    def message(self, text: str) -> None: ...

    def close(self) -> None: ...


class _Bar:
    """A bar on a terminal; elsewhere plain lines, at most one every few seconds."""

    def __init__(self, done: int, total: int, text: str):
        self._total = total
        self._last_line = -SECONDS_BETWEEN_LINES
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            column = TextColumn("{task.description}", markup=False)
            self._bar = Progress(
                BarColumn(bar_width=24), column, console=Console(stderr=True), refresh_per_second=4, transient=True
            )
            self._task = self._bar.add_task(text.rpartition(": ")[2], total=total, completed=done)
            self._bar.start()
        else:
            self.message(text)

    def show(self, done: int, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES or done == self._total:
            self._last_line = time.monotonic()
            self.message(text)

    def message(self, text: str) -> None:
        """Lines that stay, above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def format_seconds(seconds: float) -> str:
    """`75` → `1m 15s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {seconds:02}s" if minutes else f"{seconds}s"
