"""A simulated accelerator with a bus of a settable speed, where there is no real one.

It is the one that the tests use, ``tests/accelerator``. What it shows is whether reading and
copying overlap; how fast a real bus is it cannot tell.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from bench.mounts import tests_on_path

#: One of the names that safetensors takes for a device's.
NAME = "npu"


@functools.cache
def _accelerator() -> Any:
    with tests_on_path():
        return importlib.import_module("accelerator")


@functools.cache
def unavailable() -> str | None:
    """Why there can be no such device here; None if there can. Builds it."""
    reason: str | None = _accelerator().unavailable()
    if reason is None:
        try:
            _accelerator().build()
        except RuntimeError as failure:
            reason = str(failure)
    return reason


def load(bytes_per_second: int) -> None:
    """Make the device torch's, with a bus of this speed to it and a free one from it."""
    accelerator = _accelerator()
    accelerator.load(NAME)
    accelerator.set_bandwidth(bytes_per_second, 0)
    accelerator.set_random_delay(0)


def synchronize() -> None:
    """Wait for everything that was asked of the device."""
    _accelerator().synchronize()
