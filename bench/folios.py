"""A study of the page cache, no comparison: ``python -m bench.folios``.

Brings one file into the page cache in several ways, looks at the folios that come of it, and
times the bare ways of getting at those bytes: mapping and populating, or copying. What a
library can reach at best, in each condition, is read from its table.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import cache, machine, memory, report
from bench.cache import MADV_POPULATE_READ, State, libc
from bench.figures import duration
from bench.runner import ROOT

STORED = ROOT / "bench" / "results" / "page-cache.json"
MARKER = "folios"
READ_PORTION = 4 << 20
WRITE_PORTIONS = {"written in 1 MiB portions": 1 << 20, "written in 4 KiB portions": 4096}


@contextmanager
def anonymous(size: int, advice: int) -> Iterator[int]:
    """Fresh memory, none of it touched yet; yields its address."""
    address = libc.mmap(None, size, mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address == cache.MAP_FAILED:
        raise OSError(ctypes.get_errno(), f"get {size} bytes of memory")
    libc.madvise(address, size, advice)
    try:
        yield address
    finally:
        libc.munmap(address, size)


def in_parts(size: int, threads: int, work: Callable[[int, int], None]) -> float:
    """Call ``work(offset, length)`` for equal parts in as many threads; returns seconds."""
    part = -(-size // threads // cache.LARGE_FOLIO) * cache.LARGE_FOLIO
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        parts = range(0, size, part)
        list(pool.map(lambda offset: work(offset, min(part, size - offset)), parts))
        return time.perf_counter() - start


def populate(path: Path, threads: int) -> float:
    """Map the file and enter all its pages into the page table."""
    with cache.mapped(path) as (address, size):

        def part(offset: int, length: int) -> None:
            if libc.madvise(address + offset, length, MADV_POPULATE_READ) != 0:
                raise OSError(ctypes.get_errno(), f"populate the map of {path}")

        return in_parts(size, threads, part)


def copy(path: Path, threads: int, advice: int) -> float:
    """Copy the file with pread into fresh memory."""
    size = path.stat().st_size
    memory.provide(size)
    with path.open("rb") as file, anonymous(size, advice) as address:

        def part(offset: int, length: int) -> None:
            for start in range(offset, offset + length, READ_PORTION):
                count = min(READ_PORTION, offset + length - start)
                if libc.pread(file.fileno(), address + start, count, start) != count:
                    raise OSError(ctypes.get_errno(), f"read {path}")

        return in_parts(size, threads, part)


WAYS: dict[str, Callable[[Path], float]] = {
    "map, 1 thread": lambda path: populate(path, 1),
    "map, 2 threads": lambda path: populate(path, 2),
    "copy to 4 KiB pages, 2 threads": lambda path: copy(path, 2, mmap.MADV_NOHUGEPAGE),
    "copy to huge pages, 2 threads": lambda path: copy(path, 2, mmap.MADV_HUGEPAGE),
}


def conditions(folder: Path, size: int) -> Iterator[tuple[str, Path]]:
    """Yield a name and the file in that condition, one after the other."""
    path = folder / "folios.bin"
    for name, portion in WRITE_PORTIONS.items():
        write(path, size, portion)
        yield f"ext4, {name}" if machine.filesystem(folder) == "ext4" else name, path
    for state in (State.LARGE, State.SMALL):
        cache.bring(path, state)
        yield f"read back, {state.value}", path
    path.unlink()
    path = Path("/dev/shm/veturboio-folios.bin")
    write(path, size, 1 << 20)
    yield "tmpfs", path
    path.unlink()


def write(path: Path, size: int, portion: int) -> None:
    """Write a new file in portions of one size; they bound the folios that hold it."""
    path.unlink(missing_ok=True)
    block = os.urandom(portion)
    with path.open("wb", buffering=0) as file:
        for _ in range(size // portion):
            file.write(block)
        os.fsync(file.fileno())


def study(folder: Path, size: int, runs: int) -> dict[str, Any]:
    """Time every way in every condition."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, path in conditions(folder, size):
        found = cache.inspect(path)
        times = {way: [measure(path) for _ in range(runs)] for way, measure in WAYS.items()}
        rows.append({"condition": name, "typical": found.typical, "seconds": times})
        print(f"  {name}: {found}")
    return {"size": size, "machine": machine.describe(folder), "rows": rows}


def table(result: dict[str, Any]) -> str:
    """Medians, one row for each condition."""
    lines = ["| How the file came into the cache | Typical folio | " + " | ".join(WAYS) + " |"]
    lines.append("|---|---:|" + "---:|" * len(WAYS))
    for row in result["rows"]:
        medians = [duration(statistics.median(row["seconds"][way])) for way in WAYS]
        folio = "unknown" if row["typical"] is None else f"{row['typical'] >> 10} KiB"
        lines.append(f"| {row['condition']} | {folio} | " + " | ".join(medians) + " |")
    size = f"Medians for a file of {result['size'] >> 20} MiB"
    return "\n".join(lines) + f"\n\n{size}{report.disturbance(result['machine'])}."


def main() -> None:
    """Run the study, or show the stored one."""
    parser = argparse.ArgumentParser(prog="python -m bench.folios", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=5)
    report.add_study_options(parser)
    arguments = parser.parse_args()
    size = arguments.mib << 20
    report.tell(
        arguments, lambda: study(arguments.folder, size, arguments.runs), table, STORED, MARKER
    )


if __name__ == "__main__":
    main()
