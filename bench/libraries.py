"""The libraries that are compared, one row each; a new rival is a new row.

Each function does what that library's own documentation tells a user to do, and imports the
library itself, so that a worker loads nothing but the library it measures.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    StateDict = dict[str, torch.Tensor]

OURS = "veturboio"
PROJECT = "project"  # the interpreter that runs the harness


@dataclass(frozen=True)
class Library:
    """How one library reads and writes; None where it is not measured doing so."""

    name: str
    module: str  # what must be importable, and whose version is reported
    suffix: str
    load: Callable[[Path], StateDict] | None = None
    save: Callable[[StateDict, Path], None] | None = None
    environment: str = PROJECT

    def interpreter(self, data: Path) -> str:
        """The Python that has this library: ours, or a venv of its own under ``data``."""
        if self.environment == PROJECT:
            return sys.executable
        return str(data / f"venv-{self.environment}" / "bin" / "python")


def _veturboio_load(path: Path) -> StateDict:
    import veturboio

    state_dict: StateDict = veturboio.load(path)
    return state_dict


def _veturboio_save(state_dict: StateDict, path: Path) -> None:
    import veturboio

    veturboio.save_file(state_dict, path)  # flushes file and directory by itself


def _safetensors_load(path: Path) -> StateDict:
    from safetensors.torch import load_file

    return load_file(path)


def _safetensors_save(state_dict: StateDict, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state_dict, path)
    _flush(path)


def _torch_load(path: Path) -> StateDict:
    import torch

    state_dict: StateDict = torch.load(path, weights_only=True)
    return state_dict


def _torch_load_mapped(path: Path) -> StateDict:
    import torch

    state_dict: StateDict = torch.load(path, weights_only=True, mmap=True)
    return state_dict


def _torch_save(state_dict: StateDict, path: Path) -> None:
    import torch

    torch.save(state_dict, path)
    _flush(path)


def _flush(path: Path) -> None:
    """Make a finished file durable: its bytes, and its name in the directory."""
    for target in (path, path.parent):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


LIBRARIES = {
    library.name: library
    for library in (
        Library(OURS, "veturboio", ".safetensors", _veturboio_load, _veturboio_save),
        Library("safetensors", "safetensors", ".safetensors", _safetensors_load, _safetensors_save),
        Library("torch", "torch", ".pt", _torch_load, _torch_save),
        Library("torch mmap", "torch", ".pt", _torch_load_mapped),
    )
}
