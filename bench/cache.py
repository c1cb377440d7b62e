"""The page cache: bring a file's pages into a stated condition, and look at what is there.

How fast a cached file can be mapped depends on the folios (runs of pages that the kernel
manages as one) that hold it, dozens of times. Which folios a file gets depends on who
read or wrote it, in which portions. A figure for "load from the page cache" therefore means
nothing unless the condition was the same for everyone; this module makes it so and checks it.

Looking at folios needs root (``/proc/self/pagemap``, ``/proc/kpageflags``). Without it the
condition is still made, and the report says that it could not be checked.
"""

from __future__ import annotations

import array
import ctypes
import itertools
import mmap
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

PAGE = mmap.PAGESIZE
LARGE_FOLIO = 2 << 20  # what one entry of the second-lowest page table maps
READ_PORTION = 1 << 20
RAMP = 64 << 20  # bytes until read-ahead has come to large folios, and some
MADV_POPULATE_READ = 22
PAGE_PRESENT = 1 << 63
FRAME_MASK = (1 << 55) - 1
COMPOUND_TAIL = 1 << 16
MAP_FAILED = ctypes.c_void_p(-1).value

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.pread.restype = ctypes.c_ssize_t
libc.pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class State(str, Enum):
    """What the page cache holds of a file when the timer starts."""

    LARGE = "large folios"  # read in order, with read-ahead: mostly 2 MiB folios
    SMALL = "4 KiB pages"  # read with read-ahead off: one page to a folio
    COLD = "cold"  # nothing
    AS_IS = "as it is"  # tmpfs, and files that the case itself writes


@dataclass(frozen=True)
class Condition:
    """What was found: shares are of the file's bytes, None where it could not be learnt."""

    size: int
    resident: float
    large: float | None = None  # share held in folios of 2 MiB and more
    single: float | None = None  # share held in single 4 KiB pages
    typical: int | None = None  # the size of the folio that holds the middle byte, by size

    def reached(self, state: State) -> bool:
        """Tell whether this is the wanted state, as far as could be seen."""
        if state is State.COLD:
            return self.resident == 0.0
        if state is State.LARGE:
            # Read-ahead works its way up to large folios: a small file never gets there. What the
            # kernel takes back for a moment comes back in small ones.
            if self.size < RAMP or self.large is None:
                return self.resident == 1.0
            small = self.size * (1 - self.large)
            return self.resident == 1.0 and self.large >= 0.85 and small <= RAMP
        if state is State.SMALL:
            return self.resident == 1.0 and (self.single is None or self.single >= 0.95)
        return True

    def certain(self, state: State) -> bool:
        """Tell whether this is the wanted state, and the folios of a file of some size prove it."""
        return self.large is not None and self.size >= RAMP and self.reached(state)


def bring(path: Path, state: State) -> Condition:
    """Bring the cached pages of ``path`` into ``state`` and tell what was really reached."""
    if state is not State.COLD:
        condition = inspect(path)
        if state is State.AS_IS or condition.certain(state):
            return condition
    for _attempt in range(3):
        evict(path)
        if state is not State.COLD:
            _read_through(path, state)
        condition = inspect(path)
        if condition.reached(state):
            break
    return condition


def evict(path: Path) -> None:
    """Drop the file from the page cache; fall back to dropping all clean pages (root)."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if _resident_share(path) > 0:
        with suppress(OSError):  # inspect() reports what remained
            Path("/proc/sys/vm/drop_caches").write_text("1")


def _read_through(path: Path, state: State) -> None:
    """Fill the cache: read-ahead makes large folios, and random access never does."""
    advice = os.POSIX_FADV_RANDOM if state is State.SMALL else os.POSIX_FADV_SEQUENTIAL
    buffer = bytearray(READ_PORTION)
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, advice)
        while file.readinto(buffer):
            pass


def inspect(path: Path) -> Condition:
    """Look at the cached pages of ``path`` without bringing in any that are not there."""
    size = path.stat().st_size
    resident = _resident_share(path)
    sizes = _folio_sizes(path) if resident == 1.0 else None
    if not sizes:
        return Condition(size, resident)
    total = sum(size * count for size, count in sizes.items())
    large = sum(size * count for size, count in sizes.items() if size >= LARGE_FOLIO)
    single = sizes[PAGE] * PAGE
    return Condition(size, resident, large / total, single / total, _typical(sizes, total))


def _typical(sizes: Counter[int], total: int) -> int:
    """The folio size that half of the bytes reach."""
    held = 0
    for size in sorted(sizes, reverse=True):
        held += size * sizes[size]
        if 2 * held >= total:
            break
    return size


@contextmanager
def mapped(path: Path) -> Iterator[tuple[int, int]]:
    """Map the whole file for reading; yields address and length."""
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        flags, protection = mmap.MAP_SHARED, mmap.PROT_READ
        address = libc.mmap(None, length, protection, flags, file.fileno(), 0)
    if address == MAP_FAILED:
        raise OSError(ctypes.get_errno(), f"map {path}")
    try:
        yield address, length
    finally:
        libc.munmap(address, length)


def _resident_share(path: Path) -> float:
    if path.stat().st_size == 0:
        return 1.0
    with mapped(path) as (address, length):
        pages = -(-length // PAGE)
        vector = ctypes.create_string_buffer(pages)
        if libc.mincore(address, length, vector) != 0:
            raise OSError(ctypes.get_errno(), f"look at the cached pages of {path}")
        # The lowest bit says "resident"; the others are undefined, and zero on Linux.
        return vector.raw.count(b"\x01") / pages


def _folio_sizes(path: Path) -> Counter[int] | None:
    """Count the folios that hold a resident file, by size in bytes."""
    try:
        with (
            mapped(path) as (address, length),
            Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap,
            Path("/proc/kpageflags").open("rb", buffering=0) as flags,
        ):
            if libc.madvise(address, length, MADV_POPULATE_READ) != 0:
                return None
            pages = -(-length // PAGE)
            entries = array.array("Q", os.pread(pagemap.fileno(), 8 * pages, 8 * (address // PAGE)))
            if not all(entry & PAGE_PRESENT and entry & FRAME_MASK for entry in entries):
                return None  # an unprivileged reader sees frame 0 everywhere
            return _measure_folios([entry & FRAME_MASK for entry in entries], flags.fileno())
    except OSError:
        return None


def _measure_folios(frames: list[int], flags: int) -> Counter[int]:
    """Walk the frames in file order: a page without the tail flag begins a new folio."""
    sizes: Counter[int] = Counter()
    pages = 0
    for first, count in _runs(frames):
        for flag in array.array("Q", os.pread(flags, 8 * count, 8 * first)):
            if not flag & COMPOUND_TAIL and pages:
                sizes[pages * PAGE] += 1
                pages = 0
            pages += 1
    sizes[pages * PAGE] += 1
    return sizes


def _runs(frames: list[int]) -> Iterator[tuple[int, int]]:
    """Group frames that lie side by side, so that their flags come in one read."""
    for _key, group in itertools.groupby(enumerate(frames), lambda pair: pair[1] - pair[0]):
        members = list(group)
        yield members[0][1], len(members)
