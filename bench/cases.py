"""The cases, one row each: what is done, to what, where it lies, and by whom."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bench.cache import State
from bench.libraries import OURS

LOADERS = (OURS, "safetensors", "torch", "torch mmap")
SAVERS = (OURS, "safetensors", "torch")
CHECKPOINT = "checkpoint"  # a content that the user names with --checkpoint


@dataclass(frozen=True)
class Case:
    """One question put to several libraries."""

    name: str
    title: str
    operation: str  # "load" or "save"
    content: str  # a key of files.CONTENTS, or CHECKPOINT
    libraries: tuple[str, ...]
    state: State = State.AS_IS
    touch: bool = True  # read a byte of every page of every tensor before the clock stops
    folder: Path | None = None  # where the files lie; None: the data folder of the run
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
            LOADERS,
            State.LARGE,
        ),
        Case(
            "load-100k",
            "Load 100,000 tensors of 16 float32, the call alone",
            "load",
            "small-100k",
            (OURS, "safetensors"),
            State.LARGE,
            touch=False,
            quick="small-quick",
        ),
        Case("save-2g", "Save 2 GiB bf16, durably", "save", "decoder-2g", SAVERS),
        Case(
            "load-2g-4k",
            "Load 2 GiB bf16, page cache in 4 KiB pages",
            "load",
            "decoder-2g",
            LOADERS,
            State.SMALL,
        ),
        Case(
            "load-2g-tmpfs",
            "Load 2 GiB bf16 from tmpfs",
            "load",
            "decoder-2g",
            LOADERS,
            folder=Path("/dev/shm/veturboio-bench"),
            published=False,
        ),
        Case(
            "load-2g-cold",
            "Load 2 GiB bf16, nothing cached",
            "load",
            "decoder-2g",
            LOADERS,
            State.COLD,
            published=False,
        ),
        Case(
            "load-checkpoint",
            "Load a checkpoint of your own, page cache",
            "load",
            CHECKPOINT,
            LOADERS,
            State.LARGE,
            published=False,
        ),
    )
}


def quick(case: Case) -> Case:
    """The tiny twin of a case: the same path through the harness, no figure worth keeping."""
    return replace(case, content=case.quick, title=case.title + " (quick)", published=False)
