"""What is read from a stored case, and how figures are written."""

from __future__ import annotations

import statistics
from typing import Any

from bench.libraries import (
    LIBRARIES,
    OURS,
    OURS_DEVICE,
    OURS_DEVICE_PAGEABLE,
    OURS_PT,
    OURS_THEN_COPY,
)

Result = dict[str, Any]  # one stored case, as runner.run_case makes it

# How users know a library: what they call to load, and to save.
NAMES = {
    OURS_PT: ("veturboio (.pt)", OURS),
    OURS_DEVICE: ("veturboio (use_pinmem)", OURS),
    OURS_DEVICE_PAGEABLE: ("veturboio", OURS),
    OURS_THEN_COPY: ("veturboio to the CPU, then .to()", OURS),
    "safetensors device": ("safetensors load_file(device=)", "safetensors save_file"),
    "safetensors": ("safetensors load_file", "safetensors save_file"),
    "torch": ("torch.load", "torch.save"),
    "torch mmap": ("torch.load(mmap=True)", "torch.save"),
    "fastsafetensors buffered": ("fastsafetensors (buffered)", "fastsafetensors"),
    "fastsafetensors large": ("fastsafetensors (large buffer)", "fastsafetensors"),
    "runai": ("runai-model-streamer", "runai-model-streamer"),
    "runai buffered": ("runai-model-streamer (buffered)", "runai-model-streamer"),
}


def ours(result: Result) -> str:
    """The row that all others are compared with."""
    return str(result.get("ours", OURS))


def label(result: Result, library: str) -> str:
    """The function that was called, as its users know it."""
    program = LIBRARIES[library].program if library in LIBRARIES else None
    if program is not None:
        return f"{library}, {program.threads} threads (C)"
    if library == OURS and ours(result) == OURS_PT:
        return "veturboio (.safetensors)"
    if library == OURS and ours(result) == OURS_DEVICE:
        return "veturboio to the CPU"
    if result.get("shard") and library == "safetensors":
        return "safetensors get_slice"
    load, save = NAMES.get(library, (library, library))
    return load if result["operation"] == "load" else save


def median(result: Result, library: str, key: str = "seconds") -> float | None:
    """The middle one of a library's counted runs; None where there is none, or no such figure."""
    found = [run.get(key) for run in result["runs"].get(library, ())]
    values = [value for value in found if value is not None]
    return float(statistics.median(values)) if values else None


def ratio(result: Result, library: str) -> float | None:
    """How much longer a library took than ours."""
    time, our_time = median(result, library), median(result, ours(result))
    return None if time is None or not our_time else time / our_time


def file_bytes(result: Result) -> int | None:
    """The length of the file that our row loaded."""
    for run in result["runs"].get(ours(result), ()):
        if run.get("cache"):
            return int(run["cache"]["size"])
    return None


def duration(seconds: float) -> str:
    """Seconds with three digits that mean something."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"


def times(factor: float) -> str:
    """A ratio with as many digits as mean something."""
    return f"{factor:.2f}" if factor < 100 else f"{factor:.0f}"


def size(amount: float) -> str:
    """Bytes in the unit that suits them."""
    return f"{amount / 2**30:.2f} GiB" if amount >= 2**30 else f"{amount / 2**20:.1f} MiB"
