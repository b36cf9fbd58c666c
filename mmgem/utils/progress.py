"""Progress on stderr for anything over a second, with rate and time left.

Only where the logger ``mmgem`` lets INFO through, as it does for the commands: a program that uses the
library sees nothing unless it asks (``logging.basicConfig(level="INFO")``). Where stderr is no terminal, what
lasts is a line of the logger ``mmgem.progress``.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

_log = logging.getLogger("mmgem.progress")

T = TypeVar("T")

_LONG = 10.0  # seconds
_EVERY = 30.0  # seconds between two lines where stderr is no terminal


def track(items: Iterable[T], label: str, sizes: Sequence[int] | None = None, unit: str = "") -> Iterator[T]:
    """Yield ``items``, showing a bar; ``sizes`` gives each item's weight (e.g. images in a batch). A line
    every half minute where stderr is not a terminal."""
    from rich.console import Console

    rows, console = list(items), Console(stderr=True)
    if not rows or not _log.isEnabledFor(logging.INFO):
        yield from rows
        return
    weights = sizes if sizes is not None else [1] * len(rows)
    if not console.is_terminal:
        yield from _with_lines(rows, label, weights, unit)
        return
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_rate(task.speed, unit), style="progress.data.speed")

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
    ]
    with Progress(*columns, Rate(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(label, total=sum(weights))
        for row, weight in zip(rows, weights, strict=True):
            yield row
            bar.advance(task, weight)


def _with_lines(rows: Sequence[T], label: str, weights: Sequence[int], unit: str) -> Iterator[T]:
    """Yield ``rows``; logs how far it is every half minute."""
    started = printed = time.monotonic()
    total, done = sum(weights), 0
    for row, weight in zip(rows, weights, strict=True):
        yield row
        done += weight
        if (now := time.monotonic()) - printed > _EVERY:
            printed, rate = now, done / (now - started)
            left = _clock((total - done) / rate) if rate else "-"
            _log.info("%s %d/%d | %s | left %s", label, done, total, _rate(rate, unit), left)


def _rate(speed: float | None, unit: str) -> str:
    """Units a second; a dash while that is not known."""
    return f"{speed:.1f}{unit}/s" if speed else f"-{unit}/s"


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Show on stderr that ``what`` is under way, for work that cannot be counted; where stderr is not a
    terminal, a line at its end if it took over 10 s."""
    if not _log.isEnabledFor(logging.INFO):
        yield
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with console.status(Text(what)):
            yield
        return
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    if took > _LONG:
        _log.info("%s: %.0f s", what, took)


class Meter:
    """A training bar on stderr: step, pairs a second, time left and the newest values; a plain line every
    half minute where stderr is not a terminal."""

    def __init__(self, label: str, total: int, done: int, unit: str, shown: bool = True):
        """``shown``: false for all but one of several processes that do the same."""
        from rich.console import Console

        self.label, self.total, self.done, self.unit = label, total, done, unit
        self.shown = shown and _log.isEnabledFor(logging.INFO)
        self.console = Console(stderr=True, highlight=False)
        self.recent: deque[tuple[float, int]] = deque(maxlen=50)
        self.printed = time.monotonic()
        self.count = 0
        self.status: Any = None

    def __enter__(self) -> Meter:
        if self.shown and self.console.is_terminal:
            self.status = self.console.status(self.label)
            self.status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.status is not None:
            self.status.stop()

    @property
    def rate(self) -> float:
        """Units a second over the last 50 steps, 0 until there are two: the first one loads and compiles."""
        if len(self.recent) < 2:
            return 0.0
        (start, first), (end, last) = self.recent[0], self.recent[-1]
        return (last - first) / (end - start) if end > start else 0.0

    def advance(self, steps: int, units: int, values: dict[str, float]) -> None:
        """Count ``steps`` done with ``units`` in them and show ``values``."""
        now = time.monotonic()
        self.done += steps
        self.count += units
        self.recent.append((now, self.count))
        per_step = (now - self.recent[0][0]) / max(1, len(self.recent) - 1)
        left = _clock(per_step * (self.total - self.done)) if len(self.recent) > 1 else "-"
        rate = _rate(self.rate, self.unit)
        line = f"{self.label} {self.done}/{self.total} | {rate} | left {left} | {_figures(values)}"
        if self.status is not None:
            self.status.update(line)
        elif now - self.printed > _EVERY or self.done == self.total:
            self.printed = now
            self.note(line)

    def note(self, text: str) -> None:
        """Print a line above the bar, or log it where there is none."""
        if self.status is not None:
            self.console.print(text, soft_wrap=True, markup=False)
        elif self.shown:
            _log.info("%s", text)

    def say(self, step: int, values: dict[str, Any]) -> None:
        """Print the results of an evaluation above the bar; it does not count into the rate."""
        self.note(f"step {step}: {_figures(values)}")
        self.recent = deque([(time.monotonic(), self.count)], maxlen=50)


def _figures(values: dict[str, Any]) -> str:
    """Names and values, numbers to four places: ``loss 1.234 score 56.7``."""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in values.items()}
    return " ".join(f"{name} {value}" for name, value in shown.items())
