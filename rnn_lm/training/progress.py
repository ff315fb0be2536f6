"""What one sees of a run while it goes on: a bar on a terminal, plain lines elsewhere. All of it on stderr."""

import sys
import time
from types import ModuleType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 5.0


class ProgressDisplay:
    """Shows steps, tokens/s, train and validation perplexity and the time left."""

    def __init__(self, step: int, steps: int):
        self.train_perplexity: float | None = None
        self.valid_perplexity: float | None = None
        self._steps = steps
        self._last_line = -SECONDS_BETWEEN_LINES
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            text = TextColumn("{task.description}", markup=False)
            self._bar = Progress(
                BarColumn(bar_width=24), text, console=Console(stderr=True), refresh_per_second=4, transient=True
            )
            self._task = self._bar.add_task("compiling …", total=steps, completed=step)
            self._bar.start()
        else:
            self.message(f"step {step}/{steps}: compiling …")

    def update(self, step: int, tokens_per_second: float, seconds_per_step: float) -> None:
        """Called after every dispatch; plain lines come at most every few seconds."""
        train, valid = (f"{p:.2f}" if p else "…" for p in (self.train_perplexity, self.valid_perplexity))
        text = (
            f"step {step}/{self._steps}  perplexity {train} (validation {valid})  {tokens_per_second:,.0f} tokens/s  "
            f"{format_seconds(seconds_per_step * (self._steps - step))} left"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES or step == self._steps:
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


def load_plots() -> ModuleType | None:
    """The module that draws; where matplotlib is missing None, and a line that says so."""
    try:
        from rnn_lm import plots
    except ImportError:
        print("no plots: pip install 'rnn_lm[plots]' draws them", file=sys.stderr)
        return None
    return plots


def format_seconds(seconds: float) -> str:
    """`75` → `1m 15s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {seconds:02}s" if minutes else f"{seconds}s"
