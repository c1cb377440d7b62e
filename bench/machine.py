"""Describes the machine, so that a stored figure says where it was measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe(folder: Path) -> dict[str, object]:
    """What decides the figures: processor, memory, kernel, and where the files lie."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "filesystem": filesystem(folder),
        "read_ahead_kib": _read_ahead(folder),
        "transparent_huge_pages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load_average": round(os.getloadavg()[0], 2),
    }


def filesystem(folder: Path) -> str:
    """The type of the file system that holds ``folder``, as mountinfo names it."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    found = "unknown"
    for line in _text("/proc/self/mountinfo").splitlines():
        mount, _dash, source = line.partition(" - ")
        if mount.split()[2] == wanted:
            found = source.split()[0]
    return found


def _read_ahead(folder: Path) -> int | None:
    """How far the kernel reads ahead on this disk: it bounds the size of the folios."""
    device = folder.stat().st_dev
    name = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    text = _text(name)
    return int(text) if text else None


def _field(path: str, name: str) -> str | None:
    for line in _text(path).splitlines():
        key, _colon, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _chosen(path: str) -> str | None:
    """The word in brackets of a file such as ``always [madvise] never``."""
    text = _text(path)
    return text[text.find("[") + 1 : text.find("]")] if "[" in text else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
