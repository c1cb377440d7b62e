"""A progress bar over the counters that the core writes while bytes move."""

from __future__ import annotations

import threading
import time
from typing import TextIO

import torch

_WIDTH = 30
_REDRAW_SECONDS = 0.1


class Bar:
    """Draws the progress of one load or save.

    Args:
        progress: int64[2] CPU tensor, bytes done and bytes in all, written by the core.
        stream: the terminal to draw on.
    """

    def __init__(self, progress: torch.Tensor, stream: TextIO) -> None:
        self._progress = progress
        self._stream = stream
        self._started = time.monotonic()

    def draw_until(self, done: threading.Event) -> None:
        """Redraw until ``done`` is set, then once more, and end the line."""
        while not done.wait(_REDRAW_SECONDS):
            self._draw()
        self._draw()
        self._stream.write("\n")
        self._stream.flush()

    def _draw(self) -> None:
        self._stream.write("\r" + self.line(time.monotonic() - self._started))
        self._stream.flush()

    def line(self, seconds: float) -> str:
        """Return the bar, the bytes and the rate after so many seconds."""
        moved, total = (int(count) for count in self._progress)
        share = moved / total if total else 0
        filled = int(_WIDTH * share)
        bar = "#" * filled + "-" * (_WIDTH - filled)
        rate = moved / max(seconds, 1e-9) / 1e9
        return f"[{bar}] {share:4.0%}, {moved / 1e9:.2f} of {total / 1e9:.2f} GB, {rate:.2f} GB/s"
