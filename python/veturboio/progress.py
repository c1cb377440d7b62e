"""What a user sees of bytes that move: a callback, or a bar."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import torch

_WIDTH = 30
_LOOK_SECONDS = 0.1

#: Called with the bytes that are moved and the bytes in all; or True, for a bar.
Progress = Callable[[int, int], Any] | bool


@contextmanager
def watched(progress: Progress | None) -> Iterator[torch.Tensor | None]:
    """Give the core two counters, and tell of them until the work is done.

    Args:
        progress: called on a thread of its own, ten times a second and once at the end, also
            where the work fails. True draws a bar on standard error: tqdm's where it is installed.
            None and False tell nobody.

    Yields:
        int64[2] CPU tensor for the core to write to: bytes done, bytes in all.

    Raises:
        Exception: whatever the callback raised, once the work is done.
    """
    if progress is None or progress is False:
        yield None
        return
    with torch._C.DisableTorchFunction():  # whatever modes the caller has, this is host memory
        counters = torch.zeros(2, dtype=torch.int64, device="cpu")
    told = _bar() if progress is True else progress
    done = threading.Event()
    teller = _Teller(told, counters, done)
    teller.start()
    try:
        yield counters
    finally:
        done.set()
        teller.join()
    if teller.raised is not None:
        raise teller.take()


class _Teller(threading.Thread):
    def __init__(
        self, told: Callable[[int, int], Any], counters: torch.Tensor, done: threading.Event
    ) -> None:
        super().__init__(name="veturboio-progress", daemon=True)
        self._told = told
        self._counters = counters
        self._done = done
        self.raised: BaseException | None = None

    def take(self) -> BaseException:
        """Return what was raised, and keep it no longer: it reaches the frames that hold this."""
        raised, self.raised = self.raised, None
        assert raised is not None
        return raised

    def run(self) -> None:
        try:
            while not self._done.wait(_LOOK_SECONDS):
                self._told(*self._counters.tolist())
            self._told(*self._counters.tolist())
            if isinstance(self._told, (_TqdmBar, Bar)):
                self._told.close()
        except BaseException as raised:  # raised again by the thread that waits for this one
            self.raised = raised


def _bar() -> Callable[[int, int], Any]:
    try:
        tqdm = importlib.import_module("tqdm.auto")
    except ImportError:
        return Bar(sys.stderr)
    return _TqdmBar(tqdm.tqdm(unit="B", unit_scale=True, unit_divisor=1000))


class _TqdmBar:
    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def __call__(self, moved: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(moved - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class Bar:
    """Draws a bar with bytes and rate.

    Args:
        stream: the terminal to draw on.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._started = time.monotonic()

    def __call__(self, moved: int, total: int) -> None:
        """Draw it anew."""
        self._stream.write("\r" + self.line(moved, total, time.monotonic() - self._started))
        self._stream.flush()

    def close(self) -> None:
        """End the line."""
        self._stream.write("\n")
        self._stream.flush()

    def line(self, moved: int, total: int, seconds: float) -> str:
        """Return the bar, the bytes and the rate after so many seconds."""
        share = moved / total if total else 0
        filled = int(_WIDTH * share)
        bar = "#" * filled + "-" * (_WIDTH - filled)
        rate = moved / max(seconds, 1e-9) / 1e9
        return f"[{bar}] {share:4.0%}, {moved / 1e9:.2f} of {total / 1e9:.2f} GB, {rate:.2f} GB/s"
