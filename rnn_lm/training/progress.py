"""The progress of training on stderr: a bar on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Hashable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from rnn_lm.visible import visible

SECONDS_BETWEEN_LINES = 5.0
MAX_NAME = 16  # characters of a job's name beside the bar
WIDE = 100  # columns of a terminal from which the bar is a long one


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
        self._complete = False  # whether a line has said so
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            console, column = Console(stderr=True), TextColumn("{task.description}", markup=False)
            self._wide = 24 if console.width >= WIDE else 10
            self._bar = Progress(
                BarColumn(bar_width=self._wide), column, console=console, refresh_per_second=4, transient=True
            )
            self._task = self._bar.add_task(text, total=total, completed=done)
            self._bar.start()
        else:
            self.message(text)

    def _show(self, done: int, *parts: str) -> None:
        """Shows the parts of a text. On a narrow terminal the first and the last one stay longest."""
        if self._bar is not None:
            left = [*parts]
            while len(left) > 1 and len("  ".join(left)) > self._bar.console.width - self._wide - 2:
                left.pop(-2 if len(left) > 2 else -1)
            self._bar.update(self._task, total=self._total, completed=done, description="  ".join(left))
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES or (
            done == self._total and not self._complete
        ):
            self._last_line, self._complete = time.monotonic(), done == self._total
            self.message("  ".join(parts))

    def message(self, text: str) -> None:
        text = visible(text, keep="\n\t")
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
            f"step {step}/{self._total}",
            f"perplexity {train} (validation {valid})",
            f"{tokens_per_second:,.0f} tokens/s",
            f"{format_seconds(seconds_per_step * (self._total - step))} left",
        )


class SweepDisplay(_Bar):
    """A sweep's finished members, what it does besides training, its tokens, their speed and the remaining time."""

    def __init__(self, members: int, tokens: int, *, finished: int = 0, before: int = 0):
        """`tokens`: those of all members; `before`: of those `finished` that earlier processes trained."""
        self._members, self._finished = members, finished
        self._now, self._trained = before, 0  # tokens; the second without those of earlier processes
        self._first: tuple[float, int] | None = None  # the time and the trained tokens at the first update
        self._programs: set[Hashable] = set()  # those that have been compiled
        self._doing: dict[object, str] = {}  # by job
        self._lock = threading.Lock()
        ended = f"{finished} of {members} members finished, {members - finished} to train"
        super().__init__(before, tokens, ended if finished else f"{members} members to train")

    def of(self, name: str, program: Hashable) -> "JobDisplay":
        """The display of a job that starts now. It says so if the job's program is new, since it takes a while then."""
        job = JobDisplay(self, name)
        with self._lock:
            is_new = program not in self._programs
            self._programs.add(program)
            if is_new and self._bar is None:
                self.message(f"compiling {name} …")
        job.say("compiling" if is_new else "starting")
        return job

    def do(self, job: object, what: str) -> None:
        """Shows what a job does besides training; an empty text: nothing."""
        with self._lock:
            self._doing.pop(job, None)
            if what:
                self._doing[job] = what
            self._show_all()

    def expect(self, tokens: int) -> None:
        """Expects so many tokens more in all; fewer, if negative."""
        with self._lock:
            self._total += tokens

    def resume(self, tokens: int) -> None:
        """Counts tokens that take no time: an earlier process trained them, or nobody will."""
        with self._lock:
            self._now += tokens

    def add(self, job: object, tokens: int) -> None:
        """Counts tokens that a job, which trains now, was trained on."""
        with self._lock:
            self._doing.pop(job, None)
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
        parts = [f"{self._finished} of {self._members} finished", f"{now / tokens:.0%} of {tokens:,} tokens"]
        if self._trained:  # from the first update on: it compiled, so the time before says nothing
            seconds, before = self._first = self._first or (time.monotonic(), self._trained)
            if (elapsed := time.monotonic() - seconds) and self._trained > before:
                speed = (self._trained - before) / elapsed
                parts += [f"{speed:,.0f} tokens/s", f"{format_seconds((tokens - now) / speed)} left"]
        self._show(now, *parts, *list(self._doing.values())[-1:])


class JobDisplay(Display):
    """Reports the tokens of one job to the sweep's display."""

    def __init__(self, whole: SweepDisplay, name: str):
        self._whole, self._name = whole, name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"

    def start(self, step: int, steps: int, tokens_per_step: int) -> None:
        """Called before the first dispatch of `steps` steps; `tokens_per_step` sums over the members."""
        self._step, self._steps, self._tokens_per_step = step, steps, tokens_per_step
        self._whole.resume(step * tokens_per_step)

    def update(self, step: int, tokens_per_second: float, seconds_per_step: float) -> None:
        self._whole.add(self, (step - self._step) * self._tokens_per_step)
        self._step = step

    def close(self) -> None:
        """Called after the last step."""
        self.say("scoring")

    def say(self, what: str) -> None:
        self._whole.do(self, f"{what} {self._name} …")

    def end(self) -> None:
        """Called once its members are scored. What is left, if they stopped early or diverged, needs no time."""
        self._whole.resume((self._steps - self._step) * self._tokens_per_step)
        self._whole.do(self, "")


def format_seconds(seconds: float) -> str:
    """`75` → `1m 15s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {seconds:02}s" if minutes else f"{seconds}s"
