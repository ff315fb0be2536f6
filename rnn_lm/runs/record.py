"""The record of a run: metrics.jsonl, TensorBoard events and samples.txt."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from rnn_lm.files import Json, dumps, write_bytes, write_text
from rnn_lm.runs.folder import METRICS, SAMPLES

OnLine: TypeAlias = Callable[[Json], object]  # gets each line of metrics.jsonl

_SAMPLE = "=== step {step}, validation perplexity {perplexity:.2f} ==="
_SAMPLE_STEP = re.compile(rb"^=== step (\d+), ", re.MULTILINE)


class Record:
    """Appends to the files of a run. Opening it at a step removes the lines of later steps."""

    def __init__(self, workdir: Path, step: int, on_line: OnLine | None = None):
        self._on_line = on_line
        self._metrics = workdir / METRICS
        self._samples = workdir / SAMPLES
        kept = [line for line in read_metrics(workdir) if line["step"] <= step]
        write_text(self._metrics, "".join(dumps(line) + "\n" for line in kept))
        write_bytes(self._samples, _samples_until(self._samples, step))
        self._events = _event_writer(workdir, purge_step=step + 1)

    def write(self, line: Json) -> None:
        """Appends a line to metrics.jsonl and its numbers to the TensorBoard events, and hands it to `on_line`."""
        text = dumps(line)
        _append(self._metrics, text + "\n")
        if self._events is not None:
            for name, value in line.items():
                if name not in ("step", "split") and value is not None and math.isfinite(value):
                    self._events.add_scalar(f"{line['split']}/{name}", value, line["step"])
        if self._on_line is not None:
            self._on_line(json.loads(text))

    def write_sample(self, step: int, perplexity: float, text: str) -> None:
        """Appends a sample to samples.txt."""
        _append(self._samples, f"{_SAMPLE.format(step=step, perplexity=perplexity)}\n{text}\n\n")

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def read_metrics(workdir: Path) -> list[Json]:
    """The lines of a run's metrics.jsonl, without a line that a crash cut short."""
    path = workdir / METRICS
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def _samples_until(path: Path, step: int) -> bytes:
    """The samples up to `step`, as bytes because a crash may have cut a character."""
    text = path.read_bytes() if path.exists() else b""
    later = (match.start() for match in _SAMPLE_STEP.finditer(text) if int(match[1]) > step)
    return text[: next(later, len(text))]


def _append(path: Path, text: str) -> None:
    with path.open("ab") as file:
        file.write(text.encode())


def _event_writer(workdir: Path, purge_step: int) -> Any:
    """TensorBoard's writer, or None if tensorboardX is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(workdir), purge_step=purge_step)
