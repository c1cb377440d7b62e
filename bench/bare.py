"""Compiles what is in C: ``bare.c``, which moves the same bytes by nothing but system calls, and
``touch.c``, which looks at them."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import resource
import shlex
import subprocess
from pathlib import Path
from typing import Any

from bench.libraries import Program

SOURCE = Path(__file__).with_name("bare.c")
TOUCH = Path(__file__).with_name("touch.c")
BUILT = Path(__file__).parents[1] / "build" / "bench"


class BuildError(RuntimeError):
    """The program cannot be had; the text says why."""


def build(folder: Path) -> Path:
    """The compiled program in ``folder``, made anew where it is older than its source."""
    return _compiled(SOURCE, folder / "bare", "-pthread")


@functools.cache
def touch() -> ctypes.CDLL:
    """The function ``touch``, of an address and a length in bytes."""
    library = ctypes.CDLL(str(_compiled(TOUCH, BUILT / "touch.so", "-shared", "-fPIC")))
    library.touch.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.touch.restype = ctypes.c_uint64
    return library


def _compiled(source: Path, target: Path, *flags: str) -> Path:
    if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    compiler = shlex.split(os.environ.get("CC", "cc"))
    part = target.with_name(f"{target.name}.part")  # whole or not at all
    command = [*compiler, "-O2", *flags, str(source), "-o", str(part)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as failure:
        raise BuildError(f"run {compiler[0]}: {failure.strerror}") from failure
    if done.returncode != 0:
        raise BuildError(f"compile {source.name}: {done.stderr.strip()}")
    return part.replace(target)


def run(executable: Path, program: Program, path: Path, length: int) -> dict[str, Any]:
    """Read ``path``, or write ``length`` bytes to it; the program keeps the time itself."""
    command = [str(executable), program.mode, str(path), str(program.threads), str(length)]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    used_after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or f"bare: exit status {done.returncode}")
    told = json.loads(done.stdout)
    return {
        "seconds": told["seconds"],
        "call_seconds": told["call_seconds"],
        "cpu_seconds": used_after.ru_utime + used_after.ru_stime - used.ru_utime - used.ru_stime,
        "minor_faults": used_after.ru_minflt - used.ru_minflt,
    }
