"""What the tests ask of tensors and of the process: raw bits, open files, mapped files."""

from __future__ import annotations

import ctypes
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

#: The torch dtype of each dtype of the format; the two F6 have none.
DTYPES = {
    "BOOL": torch.bool,
    "F4": torch.float4_e2m1fn_x2,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}


def bits(tensor: torch.Tensor) -> bytes:
    """The elements' bytes in row-major order, whatever the dtype can or cannot compute."""
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes) if tensor.numel() else b""


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit."""
    return left.dtype == right.dtype and left.shape == right.shape and bits(left) == bits(right)


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Asserts that two dictionaries hold the same tensors under the same names."""
    assert sorted(left) == sorted(right)
    for name, tensor in left.items():
        assert same(tensor, right[name]), name


def random_tensor(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    """A tensor of random bits: NaNs with payloads, denormals and all."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty(shape, dtype=dtype, device="meta").nbytes
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    raw = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
    tensor = torch.empty(shape, dtype=dtype)
    ctypes.memmove(tensor.data_ptr(), raw.data_ptr(), size)
    return tensor


def header_of(path: Path) -> dict[str, dict]:
    """The header of a safetensors file, read without any library's help."""
    with path.open("rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def open_files() -> list[str]:
    """What the process's file descriptors refer to."""
    targets = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            targets.append(str(entry.readlink()))
        except FileNotFoundError:  # the descriptor that lists the directory itself
            continue
    return sorted(target for target in targets if not target.startswith("/proc/"))


def maps_of(path: Path) -> list[str]:
    """The lines of ``/proc/self/maps`` that map a file at ``path``, deleted or not."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if str(path) in line]


def threads_of(act: Callable[[], object], enough: int) -> int:
    """The most threads of ours that were there at once, calling ``act`` until they are ``enough``.

    They are told apart by their names: one that has ended may stay in the kernel's list for a
    moment, and the next one of its name does not count twice.
    """

    def count() -> int:
        names = set()
        for task in Path("/proc/self/task").iterdir():
            try:
                names.add((task / "comm").read_text())
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                continue
        return sum(name.startswith("veturboio") for name in names)

    def watch() -> None:
        while not done.is_set():
            seen.append(count())

    seen, done = [0], threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(20):
            if max(seen) >= enough:
                break
            act()
    finally:
        done.set()
        watcher.join()
    return max(seen)


def time_of_others(act: Callable[[], object]) -> int:
    """Nanoseconds that threads other than this one computed while ``act`` ran, ended ones too.

    The kernel counts them, however busy the machine is, so that no thread is missed. Not positive
    if there was none: a little of what this thread does between two clocks is taken off.
    """
    here, everywhere = time.thread_time_ns(), time.process_time_ns()
    act()
    return time.process_time_ns() - everywhere - (time.thread_time_ns() - here)


def has_help(act: Callable[[], object]) -> bool:
    """Whether ``act`` has other threads compute: torch's own may, for a moment after its work."""
    return all(time_of_others(act) > 0 for _ in range(20))


def read_from_disk(act: Callable[[], object]) -> int:
    """Bytes that the disk gave: none while the page cache has them, unless it is gone past."""

    def total() -> int:
        return int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])

    before = total()
    act()
    return total() - before
