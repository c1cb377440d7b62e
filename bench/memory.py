"""Brings memory into one condition before the clock starts.

In a virtual machine, free memory may have been handed back to the host. Touching it then
costs a trip through the hypervisor: filling 2 GiB took 4 s instead of 0.2 s where these
figures were first taken. Whoever allocates memory inside the timed section (a copying load,
a save through the page cache) would be charged for what happened before his turn. So each
run first makes the kernel hold enough memory that the host has backed, and frees it again.

After that, the first look at 2 GiB of a cached file took 60 ms or more instead of 11, in some
runs and not in others; the likely cause is that the host dropped its entries for them. So a
file that is to be found in the page cache is looked through once more, by a process that then
ends.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

MARGIN = 64 << 20

# In a process of its own, so that the worker's own peak memory stays what the library makes it.
_TOUCH = """
import mmap, sys
size = int(sys.argv[1])
area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_HUGEPAGE)
area[::4096] = bytes(-(-size // 4096))
"""
_LOOK = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[::4096]
"""


def provide(size: int) -> float:
    """Let the host back ``size`` bytes and a margin; returns how long that took."""
    start = time.perf_counter()
    amount = min(size + size // 4 + MARGIN, _available() // 2)
    _run(_TOUCH, str(amount))
    return time.perf_counter() - start


def revisit(path: Path) -> None:
    """Look at every page of a cached file, so that the host has it at hand."""
    _run(_LOOK, str(path))


def _run(script: str, argument: str) -> None:
    command = [sys.executable, "-S", "-c", script, argument]
    subprocess.run(command, check=True, capture_output=True)


def _available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) << 10
