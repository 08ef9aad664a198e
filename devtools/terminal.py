"""A progress bar for the terminal; in a log file it is one line per tenth."""

import sys
import time
from typing import Protocol, TextIO

WIDTH = 30


class Step(Protocol):
    """How far something is: host_client.Progress, for example."""

    node: str
    value: float
    maximum: float
    done: float


class ProgressBar:
    """Shows steps as they come; ends its line when the `with` block ends."""

    def __init__(self, title: str, stream: TextIO = sys.stdout):
        self.title = title
        self.stream = stream
        self._live = stream.isatty()
        self._start = time.monotonic()
        self._tenth = -1
        self._length = 0

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._live and self._length:
            self.stream.write("\n")

    def show(self, step: Step) -> None:
        """Draw the bar for a step."""
        tenth = int(step.done * 10)
        if self._live:
            line = self._line(step)
            self.stream.write("\r" + line.ljust(self._length))
            self._length = len(line)
        elif tenth > self._tenth:
            self._tenth = tenth
            self.stream.write(self._line(step) + "\n")
        self.stream.flush()

    def _line(self, step: Step) -> str:
        bar = "#" * round(step.done * WIDTH)
        steps = f" {step.value:.0f}/{step.maximum:.0f}" if step.maximum > 1 else ""
        seconds = time.monotonic() - self._start
        return f"{self.title} [{bar:.<{WIDTH}}] {step.done:4.0%} {seconds:5.1f} s  {step.node}{steps}"
