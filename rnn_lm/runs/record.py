"""The record of a run: metrics.jsonl, TensorBoard events and samples.txt.

Files are opened, appended to and closed for each line, so that a group of runs takes no more descriptors than one run.
"""

import json
import math
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, TypeAlias

from rnn_lm.files import Json, dumps
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
        _cut(self._metrics, _end_of_lines, step)
        _cut(self._samples, _end_of_samples, step)
        try:
            self._events: _Events | None = _Events(workdir, purge_step=step + 1)
        except ImportError:  # tensorboardX is optional
            self._events = None

    def write(self, line: Json) -> None:
        """Appends a line to metrics.jsonl and its numbers to the TensorBoard events, and hands it to `on_line`."""
        text = dumps(line)
        _append(self._metrics, f"{text}\n".encode())
        if self._events is not None:
            self._events.write(line)
        if self._on_line is not None:
            self._on_line(json.loads(text))

    def write_sample(self, step: int, perplexity: float, text: str) -> None:
        """Appends a sample to samples.txt."""
        _append(self._samples, f"{_SAMPLE.format(step=step, perplexity=perplexity)}\n{text}\n\n".encode())


class _Events:
    """A new TensorBoard event file. It says that earlier files' values from `purge_step` on are void."""

    def __init__(self, workdir: Path, purge_step: int):
        from tensorboardX.proto.event_pb2 import SessionLog

        self._path = workdir / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._append(file_version="brain.Event:2")
        self._append(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, line: Json) -> None:
        """Appends one event with all finite numbers of a line."""
        from tensorboardX.proto.summary_pb2 import Summary

        numbers = {name: x for name, x in line.items() if name not in ("step", "split") and x is not None}
        values = [
            Summary.Value(tag=f"{line['split']}/{name}", simple_value=x)
            for name, x in numbers.items()
            if math.isfinite(x)
        ]
        self._append(step=line["step"], summary=Summary(value=values))

    def _append(self, **event: Any) -> None:
        """Appends an event as a TFRecord: length, checksum, data, checksum."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        data = Event(wall_time=time.time(), **event).SerializeToString()
        parts = (struct.pack("<Q", len(data)), data)
        _append(self._path, b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in parts))


def read_metrics(workdir: Path, split: str = "") -> list[Json]:
    """The lines of a run's metrics.jsonl, of one split or of all, without a line that a crash cut short."""
    return [*metric_lines(workdir, split)]


def metric_lines(workdir: Path, split: str = "") -> Iterator[Json]:
    """The same one after the other: all lines of a long run would take much memory."""
    path, mark = workdir / METRICS, f'"split": "{split}"'.encode() if split else b""  # as `dumps` writes it
    if not path.exists():
        return
    with path.open("rb") as file:
        for text in file:
            if mark in text and (line := _parsed(text)):
                yield line


def _parsed(text: bytes) -> Json | None:
    """A line of metrics.jsonl; None if a crash cut it short."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _cut(path: Path, end_of: Callable[[mmap, int], int], step: int) -> None:
    """Makes a file shorter in place, so that a crash loses nothing that is kept. Makes it if there is none."""
    path.touch()
    if not path.stat().st_size:
        return
    with path.open("r+b") as file:
        with mmap(file.fileno(), 0, access=ACCESS_READ) as text:
            end = end_of(text, step)
            whole = not end or text[end - 1 : end] == b"\n"
        file.truncate(end)
        if not whole:
            file.seek(end)
            file.write(b"\n")


def _end_of_lines(text: mmap, step: int) -> int:
    """Where the last whole line of metrics.jsonl up to `step` ends. Steps never fall, so only what is cut is read."""
    end = len(text)
    while end:
        start = text.rfind(b"\n", 0, end - 1) + 1
        line = _parsed(text[start:end])
        if line and line["step"] <= step:
            break
        end = start
    return end


def _end_of_samples(text: mmap, step: int) -> int:
    """Where the last sample up to `step` ends. A crash may have cut it, even inside a character."""
    end = at = len(text)
    while (at := text.rfind(b"=== step ", 0, at)) >= 0:
        if found := _SAMPLE_STEP.match(text, at):
            if int(found[1]) <= step:
                break
            end = at
    return end


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)
