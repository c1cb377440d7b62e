"""``load_to_shmem``: a checkpoint in memory that other processes open by name."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import torch

from veturboio import _ops
from veturboio._arguments import refuse, storage_options_of, wants_cipher
from veturboio._segment import filled
from veturboio._sources import File, FilePath, held, opened


def load_to_shmem(
    file: File,
    num_thread: int = 32,
    helper: Any = None,
    use_direct_io: bool = False,
    use_cipher: bool | None = None,
    storage_options: Mapping[str, str] | None = None,
    cache_dir: FilePath | None = None,
) -> SharedMemory:
    """Read a checkpoint into shared memory.

    Any process loads it from there without a copy, as ``load("/dev/shm/" + shmem.name)``: the
    segment holds the file as it is. It stays until ``unlink()`` is called, whatever becomes of the
    process that made it and of those that load from it. What is returned may be pickled, for other
    processes; a plain ``SharedMemory(name)`` is removed with its process by Python before 3.13.

    Args:
        file: a safetensors or PyTorch file, as for ``load``.
        num_thread: upper bound of reader threads, at least 1.
        helper: keeps the memory that a load needs beside its result, see ``init_io_helper``.
        use_direct_io: read past the page cache, where the file system allows it.
        use_cipher: not implemented yet; None asks the variable ``VETURBOIO_USE_CIPHER``.
        storage_options: as for ``load``.
        cache_dir: as for ``load``.

    Returns:
        The segment, whose size is the file's. The caller closes and unlinks it.

    Raises:
        FormatError: the file is malformed; no segment is left behind.
        OSError: the system refuses the file or the memory; no segment is left behind.
        ValueError: ``num_thread`` is less than 1.
        NotImplementedError: a parameter asks for what does not exist yet.
    """
    refuse("use_cipher", wants_cipher(use_cipher))
    options: dict[str, Any] = {
        "num_thread": num_thread,
        "use_direct_io": use_direct_io,
        "helper": helper,
        "storage_options": storage_options_of(storage_options),
        "cache_dir": None if cache_dir is None else os.fsdecode(cache_dir),
    }
    # Its length is asked for before its content: both are of one version.
    with opened(file) as name, held(name) as path:
        return _load(path, options)


def _load(path: str, options: dict[str, Any]) -> SharedMemory:
    store = {name: options[name] for name in ("storage_options", "cache_dir")}
    # An empty file is malformed, which the core says; a segment cannot be empty.
    size = max(_ops.byte_len(path, **store), 1)

    def fill(memory: mmap.mmap) -> None:
        with torch._C.DisableTorchFunction():  # whatever modes the caller has
            content = torch.frombuffer(memory, dtype=torch.uint8)
        try:
            _ops.load_bytes(path, content, **options)
        finally:
            # The memory cannot be unmapped while a tensor looks at it, and a traceback may hold
            # this one for long.
            content.set_(torch.UntypedStorage())

    return filled(size, fill)
