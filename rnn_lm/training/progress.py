"""The progress of training on stderr: a bar on a terminal, plain lines elsewhere."""

import sys
import threading
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 5.0


class Display:
    """A display of the training loop's reports. This one shows nothing."""

    train_perplexity: float | None = None
    valid_perplexity: float | None = None

    def update(self, step: int, tokens_per_second: float, seconds_per_step: float) -> None:
        """Called after every dispatch."""

    def message(self, text: str) -> None:
        """Shows lines that stay, above the bar."""

    def close(self) -> None:
        """Called at the end."""


class _Bar(Display):
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

    def _show(self, done: int, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES or done == self._total:
            self._last_line = time.monotonic()
            self.message(text)

    def message(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


class ProgressDisplay(_Bar):
    """A run's steps, perplexities, tokens per second and remaining time."""

    def __init__(self, step: int, steps: int):
        super().__init__(step, steps, f"step {step}/{steps}: compiling …")

    def update(self, step: int, tokens_per_second: float, seconds_per_step: float) -> None:
        train, valid = (f"{p:.2f}" if p else "…" for p in (self.train_perplexity, self.valid_perplexity))
        self._show(
            step,
            f"step {step}/{self._total}  perplexity {train} (validation {valid})  {tokens_per_second:,.0f} tokens/s  "
            f"{format_seconds(seconds_per_step * (self._total - step))} left",
        )


class SweepDisplay(_Bar):
    """A sweep's finished members, its tokens, tokens per second and remaining time."""

    def __init__(self, members: int, tokens: int):
        """`tokens`: those of all these members, including what earlier processes trained."""
        self._members, self._finished = members, 0
        self._now = self._trained = 0  # tokens; the second without those of earlier processes
        self._first: tuple[float, int] | None = None  # the time and the trained tokens at the first update
        self._lock = threading.Lock()
        super().__init__(0, tokens, f"{members} members to train: compiling …")

    def of(self, first_step: int, tokens_per_step: int) -> Display:
        """The display of one job; `tokens_per_step` sums over its members."""
        with self._lock:
            self._now += first_step * tokens_per_step
        return _JobDisplay(self, first_step, tokens_per_step)

    def add(self, tokens: int) -> None:
        """Counts tokens that a job was trained on."""
        with self._lock:
            self._now += tokens
            self._trained += tokens
            self._show_all()

    def end(self, text: str) -> None:
        """Counts one more finished member and shows its result."""
        with self._lock:
            self._finished += 1
            self.message(text)
            self._show_all()

    def _show_all(self) -> None:
        now, tokens = self._now, self._total
        seconds, before = self._first = self._first or (time.monotonic(), self._trained)
        text = f"{self._finished} of {self._members} finished  {now / tokens:.0%} of {tokens:,} tokens"
        if (elapsed := time.monotonic() - seconds) and self._trained > before:
            speed = (self._trained - before) / elapsed
            text += f"  {speed:,.0f} tokens/s  {format_seconds((tokens - now) / speed)} left"
        self._show(now, text)


class _JobDisplay(Display):
    """Reports the tokens of one job to the sweep's display."""

    def __init__(self, whole: SweepDisplay, step: int, tokens_per_step: int):
        self._whole, self._step, self._tokens_per_step = whole, step, tokens_per_step

    def update(self, step: int, tokens_per_second: float, seconds_per_step: float) -> None:
        self._whole.add((step - self._step) * self._tokens_per_step)
        self._step = step


def format_seconds(seconds: float) -> str:
    """`75` → `1m 15s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {seconds:02}s" if minutes else f"{seconds}s"
