"""Makes torch believe in an accelerator, ``sim``: the backend itself is ``tests/accelerator``.

torch knows one such backend per process and never forgets it, so ``load`` is for processes of their
own: the tests in ``tests/accelerator/python`` run in one, other tests start some.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils import backend_registration

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests" / "accelerator"
BUILT = ROOT / "build" / "accelerator"

#: What torch calls the devices, and how many there are.
NAME = "sim"
DEVICES = 2

#: What ``fail_after`` can make fail.
FAULTS = ("alloc", "pin", "copy", "record", "synchronize", "late")

_FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-Wall", "-Wextra"]


class Settings(NamedTuple):
    """How the devices behave; ``load`` leaves them as they are here."""

    h2d_bandwidth: float = 0  # bytes a second; 0 is unlimited
    d2h_bandwidth: float = 0
    latency_us: int = 10  # of each copy between host and device
    random_delay_us: int = 200  # the most that a copy waits before it starts
    seed: int = 0  # of these delays
    memory_limit: tuple[int, ...] = (-1, -1)  # bytes of each device; -1 is none


@functools.cache
def unavailable() -> str | None:
    """Why the accelerator cannot be built here, in words; ``None`` if it can."""
    compiler = _compiler()
    if shutil.which(compiler[0]) is None:
        return f"{compiler[0]} is not on PATH"
    if not sys.platform.startswith("linux"):
        return "the accelerator is simulated on Linux only"
    return None


@functools.cache
def build() -> Path:
    """Compiles the backend, unless that was done before, and returns the path of the library."""
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it, whatever happens to us
        return _build([*_compiler(), *_FLAGS])


def _build(command: list[str]) -> Path:
    version = _run([command[0], "--version"])
    headers = [path.read_text() for path in sorted(SOURCES.glob("*.h"))]
    common = [*command, version, torch.__version__, str(torch.__file__), *headers]

    def compiled(source: Path) -> Path:
        target = BUILT / f"{source.stem}-{_digest([*common, source.read_text()])}.o"
        if not target.exists():
            include = [f"-isystem{path}" for path in _include_paths()]
            _make(target, [*command, *include, "-c", str(source)])
        return target

    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(jobs) as pool:
        objects = [str(path) for path in pool.map(compiled, sorted(SOURCES.glob("*.cpp")))]
    library = BUILT / f"libsim-{_digest([*common, *objects])}.so"
    if not library.exists():
        directory = str(Path(torch.__file__).parent / "lib")
        torch_library = [f"-L{directory}", f"-Wl,-rpath,{directory}", "-ltorch_cpu", "-lc10"]
        _make(library, [*command, "-shared", *objects, *torch_library])
    return library


def _make(target: Path, command: list[str]) -> None:
    """Runs a compiler; what is at ``target`` is whole, or not there."""
    unfinished = target.with_suffix(".unfinished")
    _run([*command, "-o", str(unfinished)])
    unfinished.rename(target)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"build the simulated accelerator: {done.stderr.strip()}")
    return done.stdout


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or ["c++"]


def _include_paths() -> list[Path]:
    include = Path(torch.__file__).parent / "include"
    return [include, include / "torch" / "csrc" / "api" / "include"]


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@functools.cache
def load(name: str = NAME) -> None:
    """Builds the accelerator and makes it torch's, for as long as the process lives."""
    torch.ops.load_library(build())
    backend_registration.rename_privateuse1_backend(name)
    torch._register_device_module(name, _module(name))
    backend_registration.generate_methods_for_privateuse1_backend(for_storage=True)
    # Before what streams use is taken apart.
    atexit.register(torch.ops.sim.shut_down)


def _module(name: str) -> types.ModuleType:
    """``torch.sim``, with what torch looks up there."""
    module = types.ModuleType(f"torch.{name}")
    contents: dict[str, object] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: DEVICES,
        "current_device": torch.accelerator.current_device_index,
        "device": lambda device: torch.accelerator.device_index(torch.device(device).index),
        "set_device": torch.accelerator.set_device_index,
        "current_stream": torch.accelerator.current_stream,
        "synchronize": torch.accelerator.synchronize,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
        "_is_in_bad_fork": lambda: False,
    }
    vars(module).update(contents)
    return module


def stats() -> dict[str, Any]:
    """What was counted so far, bytes and calls unless it says otherwise.

    ``device``: a list, by device, of ``now``, ``peak`` (bytes), ``live``, ``ever`` (allocations).
    ``pinned``: the same of pinned memory. ``h2d``, ``d2h``, ``d2d``: ``copies``, ``bytes``, how
    many were ``async`` and ``sync``, ``largest``, ``smallest``, and ``busy``, the seconds that the
    wires were held by the settings. ``violations``: the sum of ``device_freed_in_use``,
    ``pinned_freed_in_use`` and ``use_of_freed``; ``messages`` tells of the first ones. ``streams``:
    how many streams of each device were given work; ``max_queue``: the longest queue of one.
    """
    counted: dict[str, Any] = json.loads(torch.ops.sim.stats())
    return counted


def reset_stats() -> None:
    """Begins to count anew. What is allocated stays counted, and is the new peak."""
    torch.ops.sim.reset_stats()


def settings() -> Settings:
    """How the devices behave now."""
    now = Settings(*torch.ops.sim.get_settings())
    return now._replace(memory_limit=tuple(now.memory_limit))


def set_bandwidth(h2d: float, d2h: float | None = None) -> None:
    """Bytes a second between the host and each device; 0 is unlimited, ``d2h=None`` the same."""
    torch.ops.sim.set_bandwidth(float(h2d), float(h2d if d2h is None else d2h))


def set_latency(us: int) -> None:
    """Microseconds that a copy between host and device takes besides its bytes."""
    torch.ops.sim.set_latency(us)


def set_random_delay(us: int, seed: int = 0) -> None:
    """The most microseconds that such a copy waits before it takes hold of the wire."""
    torch.ops.sim.set_random_delay(us, seed)


def set_memory_limit(limit: int | None, device: int | None = None) -> None:
    """Bytes that a device has, or each of them; ``None`` is no limit."""
    for index in range(DEVICES) if device is None else [device]:
        torch.ops.sim.set_memory_limit(index, -1 if limit is None else limit)


def fail_after(kind: str, calls: int) -> None:
    """Makes a coming call fail, the next one for ``calls=1``; -1 takes that back.

    ``alloc`` and ``pin`` are allocations on a device and of pinned memory, ``copy`` is one between
    host and device, ``record`` that of an event, ``synchronize`` with an event, a stream or a
    device: these raise ``simulated <kind> failure``. ``late`` is a copy that fails when its turn
    comes: the next to ask the device, or wait for it, is told, and so is everyone until ``reset``.
    """
    torch.ops.sim.fail_after(kind, calls)


def reset() -> None:
    """Makes broken devices whole, and nothing fail any more."""
    torch.ops.sim.reset()


def synchronize(device: int | None = None) -> None:
    """Waits for everything that a device, or each of them, was told to do."""
    for index in range(DEVICES) if device is None else [device]:
        torch.accelerator.synchronize(index)


def drain() -> None:
    """Waits for everything, but raises nothing and is made to fail by nothing."""
    torch.ops.sim.drain()


def pooled_stream(device: int) -> torch.Stream:
    """The next of the few streams that torch keeps for a device, and gives to C++ alone."""
    stream: torch.Stream = torch.ops.sim.pooled_stream(device)
    return stream


@contextlib.contextmanager
def configured(*, fail_after: Mapping[str, int] | None = None, **changed: Any) -> Iterator[None]:
    """Changes settings, named as in ``Settings``, for a block.

    ``bandwidth=`` sets both bandwidths, and a number as ``memory_limit`` that of both devices. In
    the end all is done that the devices were told to do, they are whole, and nothing else fails
    than would have failed before.
    """
    before, faults = settings(), torch.ops.sim.get_faults()
    if "bandwidth" in changed:
        both = changed.pop("bandwidth")
        changed = {"h2d_bandwidth": both, "d2h_bandwidth": both, **changed}
    if isinstance(limit := changed.get("memory_limit"), int):
        changed["memory_limit"] = (limit,) * DEVICES
    _apply(before._replace(**changed))
    for kind, calls in (fail_after or {}).items():
        torch.ops.sim.fail_after(kind, calls)
    try:
        yield
    finally:
        drain()
        reset()
        _apply(before)
        for kind, calls in zip(FAULTS, faults, strict=True):
            torch.ops.sim.fail_after(kind, calls)


def _apply(wanted: Settings) -> None:
    set_bandwidth(wanted.h2d_bandwidth, wanted.d2h_bandwidth)
    set_latency(wanted.latency_us)
    set_random_delay(wanted.random_delay_us, wanted.seed)
    for device, limit in enumerate(wanted.memory_limit):
        torch.ops.sim.set_memory_limit(device, limit)
