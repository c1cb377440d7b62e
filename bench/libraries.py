"""The libraries that are compared, one row each; a new rival is a new row.

Each function does what that library's own documentation tells a user to do, and imports the
library itself, so that a worker loads nothing but the library it measures. Beside them stand the
modes of ``bare.c``: what the machine itself can do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench import devices

if TYPE_CHECKING:
    import torch

    StateDict = dict[str, torch.Tensor]

ENVIRONMENTS = Path(__file__).parents[1] / "build" / "bench"
PROJECT = "project"  # the interpreter that runs the harness
RIVALS = "rivals"  # what bench/requirements.txt names; ``make bench`` installs it

OURS = "veturboio"
OURS_PT = "veturboio pt"
OURS_DEVICE = "veturboio device"
OURS_DEVICE_PAGEABLE = "veturboio device pageable"
OURS_THEN_COPY = "veturboio then copy"
ALL_OURS = (OURS, OURS_PT, OURS_DEVICE, OURS_DEVICE_PAGEABLE, OURS_THEN_COPY)


@dataclass(frozen=True)
class Shard:
    """One of several equal parts of a checkpoint, cut along the first dimension of each tensor."""

    index: int
    count: int

    def rows(self, shape: Sequence[int]) -> slice | None:
        """The rows of this part; None for a tensor that cannot be cut so and is loaded whole."""
        if not shape or shape[0] < self.count or shape[0] % self.count:
            return None
        rows = shape[0] // self.count
        return slice(self.index * rows, (self.index + 1) * rows)


@dataclass(frozen=True)
class Program:
    """A mode of ``bare.c``, and in how many threads it runs."""

    mode: str
    threads: int


@dataclass(frozen=True)
class Library:
    """How one library reads and writes; None where it is not measured doing so.

    ``load`` is told how many threads may read; None leaves that to the library. ``save`` is
    told whether the file must be durable when it returns.
    """

    name: str
    module: str  # what must be importable, and whose version is reported
    suffix: str
    load: Callable[[Path, int | None], StateDict] | None = None
    shard: Callable[[Path, Shard], StateDict] | None = None
    save: Callable[[StateDict, Path, bool], None] | None = None
    environment: str = RIVALS
    settings: Mapping[str, str] = field(default_factory=dict)  # environment variables
    program: Program | None = None  # this instead of all functions

    def interpreter(self) -> str:
        """The Python of the environment; where there is none, the one that runs the harness."""
        own = ENVIRONMENTS / f"venv-{self.environment}" / "bin" / "python"
        return str(own) if own.exists() else sys.executable


def _veturboio_load(path: Path, threads: int | None) -> StateDict:
    import veturboio

    state_dict: StateDict = (
        veturboio.load(path) if threads is None else veturboio.load(path, num_thread=threads)
    )
    return state_dict


def _veturboio_device(path: Path, _threads: int | None) -> StateDict:
    import veturboio

    return _arrived(veturboio.load(path, map_location=f"{devices.NAME}:0", use_pinmem=True))


def _veturboio_device_pageable(path: Path, _threads: int | None) -> StateDict:
    import veturboio

    return _arrived(veturboio.load(path, map_location=f"{devices.NAME}:0"))


def _veturboio_then_copy(path: Path, _threads: int | None) -> StateDict:
    import veturboio

    loaded = veturboio.load(path)
    return _arrived({name: tensor.to(f"{devices.NAME}:0") for name, tensor in loaded.items()})


def _safetensors_device(path: Path, _threads: int | None) -> StateDict:
    from safetensors.torch import load_file

    return _arrived(load_file(path, device=f"{devices.NAME}:0"))


def _arrived(state_dict: StateDict) -> StateDict:
    """The tensors of a device once their bytes are there."""
    devices.synchronize()
    return state_dict


def _veturboio_shard(path: Path, shard: Shard) -> StateDict:
    import veturboio

    shapes = veturboio.load(path, map_location="meta")
    rows = {name: shard.rows(tensor.shape) for name, tensor in shapes.items()}
    slices = {name: part for name, part in rows.items() if part is not None}
    state_dict: StateDict = veturboio.load(path, slices=slices)
    return state_dict


def _veturboio_save(state_dict: StateDict, path: Path, durable: bool) -> None:
    import veturboio

    if durable:
        veturboio.save_file(state_dict, path)  # flushes file and directory by itself
    else:
        veturboio.save_file(state_dict, path, durable=False)


def _safetensors_load(path: Path, _threads: int | None) -> StateDict:
    from safetensors.torch import load_file

    return load_file(path)


def _safetensors_shard(path: Path, shard: Shard) -> StateDict:
    from safetensors import safe_open

    state_dict: StateDict = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            view = file.get_slice(name)
            rows = shard.rows(view.get_shape())
            state_dict[name] = file.get_tensor(name) if rows is None else view[rows]
    return state_dict


def _safetensors_save(state_dict: StateDict, path: Path, durable: bool) -> None:
    from safetensors.torch import save_file

    save_file(state_dict, path)
    if durable:
        _flush(path)


def _fastsafetensors_load(path: Path, threads: int | None) -> StateDict:
    return _fastsafetensors(path, {} if threads is None else {"max_threads": threads})


def _fastsafetensors_load_large(path: Path, threads: int | None) -> StateDict:
    """By default, 32 threads read 256 KiB at a time; each reads 4 MiB with this buffer."""
    threads = threads or 16
    return _fastsafetensors(path, {"max_threads": threads, "bbuf_size_kb": threads * 8 * 1024})


def _fastsafetensors(path: Path, options: dict[str, int]) -> StateDict:
    from fastsafetensors import (  # type: ignore[import-not-found]
        SafeTensorsFileLoader,
        SingleGroup,
    )

    loader = SafeTensorsFileLoader(SingleGroup(), device="cpu", nogds=True, **options)
    try:
        loader.add_filenames({0: [str(path)]})
        files = loader.copy_files_to_device()
        try:
            # The tensors own the memory together; they stay valid after close().
            return {name: files.get_tensor(name) for name in loader.get_keys()}
        finally:
            files.close()
    finally:
        loader.close()


def _runai_load(path: Path, threads: int | None) -> StateDict:
    if threads is not None:
        os.environ["RUNAI_STREAMER_CONCURRENCY"] = str(threads)
    from runai_model_streamer import SafetensorsStreamer  # type: ignore[import-not-found]

    with SafetensorsStreamer() as streamer:
        streamer.stream_file(str(path))
        # Each tensor is the caller's, and stays valid: that is the default of stream_file.
        return dict(streamer.get_tensors())


def _torch_load(path: Path, _threads: int | None) -> StateDict:
    import torch

    state_dict: StateDict = torch.load(path, weights_only=True)
    return state_dict


def _torch_load_mapped(path: Path, _threads: int | None) -> StateDict:
    import torch

    state_dict: StateDict = torch.load(path, weights_only=True, mmap=True)
    return state_dict


def _torch_save(state_dict: StateDict, path: Path, durable: bool) -> None:
    import torch

    torch.save(state_dict, path)
    if durable:
        _flush(path)


def _flush(path: Path) -> None:
    """Make a finished file durable: its bytes, and its name in the directory."""
    for target in (path, path.parent):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _bare(mode: str, threads: int) -> Library:
    program = Program(mode, threads)
    return Library(f"bare {mode}", "", ".safetensors", environment=PROJECT, program=program)


LIBRARIES = {
    library.name: library
    for library in (
        Library(
            OURS,
            "veturboio",
            ".safetensors",
            _veturboio_load,
            _veturboio_shard,
            _veturboio_save,
            environment=PROJECT,
        ),
        Library(OURS_PT, "veturboio", ".pt", _veturboio_load, environment=PROJECT),
        *(
            Library(name, "veturboio", ".safetensors", load, environment=PROJECT)
            for name, load in (
                (OURS_DEVICE, _veturboio_device),
                (OURS_DEVICE_PAGEABLE, _veturboio_device_pageable),
                (OURS_THEN_COPY, _veturboio_then_copy),
            )
        ),
        Library("safetensors device", "safetensors", ".safetensors", _safetensors_device),
        Library(
            "safetensors",
            "safetensors",
            ".safetensors",
            _safetensors_load,
            _safetensors_shard,
            _safetensors_save,
        ),
        Library("torch", "torch", ".pt", _torch_load, save=_torch_save),
        Library("torch mmap", "torch", ".pt", _torch_load_mapped),
        Library("fastsafetensors", "fastsafetensors", ".safetensors", _fastsafetensors_load),
        # Left to itself it reads past the page cache, even where that holds the file.
        Library(
            "fastsafetensors buffered",
            "fastsafetensors",
            ".safetensors",
            _fastsafetensors_load,
            settings={"FASTSAFETENSORS_ODIRECT": "0"},
        ),
        Library(
            "fastsafetensors large", "fastsafetensors", ".safetensors", _fastsafetensors_load_large
        ),
        Library("runai", "runai_model_streamer", ".safetensors", _runai_load),
        # So does this one.
        Library(
            "runai buffered",
            "runai_model_streamer",
            ".safetensors",
            _runai_load,
            settings={"RUNAI_STREAMER_FS_STRATEGY": "sync_buffered"},
        ),
        _bare("map", 2),
        _bare("copy", 2),
        _bare("direct", 4),
        _bare("write", 2),
        _bare("write-direct", 4),
    )
}
