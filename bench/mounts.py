"""A FUSE mount that answers every read late, as the mounts of cloud storage do.

The file system is the one that the tests use, ``tests/slowfs``.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests" / "python"


@contextmanager
def tests_on_path() -> Iterator[None]:
    """Have the modules that the tests use importable."""
    sys.path.append(str(TESTS))
    try:
        yield
    finally:
        sys.path.remove(str(TESTS))


@functools.cache
def _slowfs() -> Any:
    with tests_on_path():
        return importlib.import_module("slowfs")


@functools.cache
def unavailable() -> str | None:
    """Why there can be no such mount here; None if there can. Builds the file system."""
    reason: str | None = _slowfs().unavailable()
    if reason is None:
        try:
            _slowfs().build()
        except RuntimeError as failure:
            reason = str(failure)
    return reason


@contextmanager
def mounted(
    source: Path, mount_point: Path, delay_ms: int, bytes_per_second: int | None = None
) -> Iterator[Any]:
    """Mirror ``source``; a new mount has nothing of its files in the page cache.

    Each read takes ``delay_ms``, and all of them together get ``bytes_per_second``.
    """
    options = {} if bytes_per_second is None else {"total_bytes_per_second": bytes_per_second}
    mount_point.mkdir(parents=True, exist_ok=True)
    with _slowfs().mounted(source, mount_point, delay_ms=delay_ms, **options) as mount:
        yield mount
