"""The cases, one row each: what is done, to what, where it lies, by whom, and with what goal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.cache import State
from bench.goals import Alike, DiskBytes, Faster, Goal, Memory, Within
from bench.libraries import (
    OURS,
    OURS_DEVICE,
    OURS_DEVICE_PAGEABLE,
    OURS_PT,
    OURS_THEN_COPY,
    Shard,
)

CHECKPOINT = "checkpoint"  # a content that the user names with --checkpoint


@dataclass(frozen=True)
class Case:
    """One question put to several libraries; the first of them is ours."""

    name: str
    title: str
    operation: str  # "load" or "save"
    content: str  # a key of files.CONTENTS, or CHECKPOINT
    libraries: tuple[str, ...]
    state: State = State.AS_IS
    touch: bool = True  # read a byte of every page of every tensor before the clock stops
    durable: bool = True  # of a save: the clock stops when the file is on the disk
    shard: Shard | None = None  # load this part of each tensor instead of all
    threads: int | None = None  # what each library is told; None: what it takes by itself
    folder: Path | None = None  # where the files lie; None: the data folder of the run
    delay_ms: int | None = None  # the files lie on a FUSE mount, whose reads take so long
    bandwidth: int | None = None  # bytes a second of that mount, and of the bus to a device
    limits: Mapping[str, int] = field(default_factory=dict)  # fewer counted runs, no warm-up
    goals: tuple[Goal, ...] = ()
    quick: str = "decoder-quick"
    published: bool = True  # part of the default run and of the README


CASES = {
    case.name: case
    for case in (
        Case(
            "load-2g",
            "Load 2 GiB bf16, page cache in large folios",
            "load",
            "decoder-2g",
            (
                *(OURS, "bare map", "safetensors", "torch", "torch mmap"),
                *("fastsafetensors buffered", "runai buffered"),
            ),
            State.LARGE,
            goals=(
                Within("bare map", 1.3, touched=False),
                Faster("safetensors", 1.3),
                Faster("torch", 20),
                Faster("fastsafetensors buffered", 20),
                Faster("runai buffered", 20),
                Memory(),
            ),
        ),
        Case(
            "load-pt-2g",
            "Load 2 GiB bf16 from a PyTorch file, page cache in large folios",
            "load",
            "decoder-2g",
            (OURS_PT, OURS, "torch", "torch mmap"),
            State.LARGE,
            goals=(Faster("torch", 10), Faster("torch mmap", 1.5), Alike(OURS, 1.2), Memory()),
        ),
        Case(
            "load-2g-4k",
            "Load 2 GiB bf16, page cache in 4 KiB pages",
            "load",
            "decoder-2g",
            (OURS, "bare map", "safetensors", "torch mmap"),
            State.SMALL,
        ),
        Case(
            "load-2g-tmpfs",
            "Load 2 GiB bf16 from tmpfs",
            "load",
            "decoder-2g",
            (
                *(OURS, "bare copy", "bare map", "safetensors", "torch", "torch mmap"),
                "fastsafetensors",
            ),
            folder=Path("/dev/shm/veturboio-bench"),
            goals=(
                Within("bare copy", 1.15),
                Faster("safetensors", 4),
                Faster("torch mmap", 4),
                Faster("fastsafetensors", 3),
                Memory(),
            ),
        ),
        Case(
            "load-2g-cold",
            "Load 2 GiB bf16 from the disk, nothing cached",
            "load",
            "decoder-2g",
            (OURS, "bare direct", "safetensors", "torch", "fastsafetensors", "runai"),
            State.COLD,
            goals=(Within("bare direct", 1.08), Faster("safetensors", 1.5), Memory()),
        ),
        Case(
            "load-shard-cold",
            "Load one part of 8 of each tensor from the disk, nothing cached",
            "load",
            "decoder-2g",
            (OURS, "safetensors"),
            State.COLD,
            shard=Shard(3, 8),
            goals=(DiskBytes(share=1 / 8, times=1.3),),
        ),
        Case(
            "load-fuse",
            "Load 1 GiB bf16 from a FUSE mount, 20 ms a read, 32 threads",
            "load",
            "decoder-1g",
            (
                *(OURS, "fastsafetensors", "fastsafetensors large", "runai"),
                *("safetensors", "torch mmap"),
            ),
            State.COLD,
            threads=32,
            delay_ms=20,
            limits={"safetensors": 1, "torch mmap": 1},
            goals=(
                Faster("safetensors", 10),
                Faster("runai", 5),
                Faster("fastsafetensors", 1.2),
                Faster("fastsafetensors large", 1.2),
                Memory(),
            ),
        ),
        Case(
            "load-device",
            "Load 1 GiB bf16 to a simulated device, mount and bus of 400 MB/s each",
            "load",
            "decoder-1g",
            (OURS_DEVICE, OURS_DEVICE_PAGEABLE, OURS, OURS_THEN_COPY, "safetensors device"),
            State.COLD,
            touch=False,
            delay_ms=1,
            bandwidth=400_000_000,
            limits={"safetensors device": 3},
            goals=(Within(OURS, 1.2), Faster(OURS_THEN_COPY, 1.6)),
        ),
        Case(
            "load-100k",
            "Load 100,000 tensors of 16 float32, the call alone",
            "load",
            "small-100k",
            (OURS, "safetensors"),
            State.LARGE,
            touch=False,
            goals=(Faster("safetensors", 5),),
            quick="small-quick",
        ),
        Case(
            "save-2g",
            "Save 2 GiB bf16, durably",
            "save",
            "decoder-2g",
            (OURS, "bare write-direct", "bare write", "safetensors", "torch"),
            goals=(
                Within("bare write-direct", 1 / 0.85),
                Faster("safetensors", 1.6),
                Faster("torch", 2),
                Memory(),
            ),
        ),
        Case(
            "save-2g-fast",
            "Save 2 GiB bf16, not durably",
            "save",
            "decoder-2g",
            (OURS, "safetensors", "torch"),
            durable=False,
            goals=(Faster("safetensors", 1), Memory()),
        ),
        Case(
            "load-checkpoint",
            "Load a checkpoint of your own, page cache",
            "load",
            CHECKPOINT,
            (OURS, "safetensors", "torch", "torch mmap"),
            State.LARGE,
            published=False,
        ),
    )
}


def quick(case: Case) -> Case:
    """The tiny twin of a case: the same path through the harness, no figure worth keeping."""
    return replace(case, content=case.quick, title=case.title + " (quick)", published=False)
