"""What loads depend on, and what they may leave behind: the cache, the disk, threads, maps."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from probe import maps_of, open_files, read_from_disk

WAYS = ("map", "read", "direct", "uring")

every_way = pytest.mark.parametrize("way", WAYS)

#: Seconds after which a thread counts as left behind, or a load as not to be stopped.
PATIENCE = 20


def forget(path: Path) -> None:
    """Has the page cache drop what it holds of a file, as far as that is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def needs_disk(path: Path) -> None:
    """Skips the test where a file that was forgotten is not read from a disk again."""
    forget(path)
    if read_from_disk(path.read_bytes) == 0:
        pytest.skip("the page cache cannot be emptied, or there is no disk under it")
    forget(path)


def tasks() -> set[str]:
    """The threads of this process, as the kernel numbers them."""
    return {task.name for task in Path("/proc/self/task").iterdir()}


@contextlib.contextmanager
def nothing_left(path: Path) -> Iterator[None]:
    """Asserts that the block leaves no thread, no descriptor and no map of the file."""
    before, files = tasks(), open_files()
    yield
    deadline = time.monotonic() + PATIENCE
    # One that has ended may stay in the kernel's list for a moment.
    while tasks() - before:
        assert time.monotonic() < deadline, "a thread was left behind"
        time.sleep(0.001)
    assert maps_of(path) == []
    assert open_files() == files
