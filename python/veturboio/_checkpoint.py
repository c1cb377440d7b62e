"""Builds the values of a PyTorch file, as ``torch.load`` would give them.

The core reads the file's pickle without running it, and writes another that can do nothing but
build plain values: it imports nothing and calls nothing (``src/format/emit.rs`` says how).
Python's own unpickler builds them, which is as fast as torch.load, and asks here for what has no
instruction of its own: a tensor by its position, anything else by a letter and what it is made of.
Two places that held one object hold one object again, and a list may hold itself.
"""

from __future__ import annotations

import ctypes
import json
import pickle
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from veturboio.unknown import Unknown


class Structure:
    """What the core tells of the values of a PyTorch file; false for a file of another kind.

    Args:
        described: JSON: what is known beside the values.
        values: uint8[n] on the CPU, a pickle of the values; None for a file of another kind.
    """

    def __init__(self, described: str = "", values: torch.Tensor | None = None) -> None:
        self._described = described
        self._values = values

    def __bool__(self) -> bool:
        return self._values is not None

    def locations(self) -> list[str]:
        """Tell the device that each tensor was saved from, by its position."""
        runs = json.loads(self._described)["locations"] if self._described else []
        return [location for location, count in runs for _ in range(count)]

    def pickled(self) -> bytes:
        """Return the pickle of the values."""
        if self._values is None:
            return b""
        return ctypes.string_at(self._values.data_ptr(), self._values.numel())


def build(structure: Structure, tensors: Sequence[torch.Tensor]) -> Any:
    """Build the values that the core described.

    Args:
        structure: the core's description.
        tensors: the file's tensors, by position.

    Raises:
        TypeError, ValueError, RuntimeError, pickle.UnpicklingError: a value cannot be what the file
            wants it to be, such as a device that torch does not have.
    """
    return _Unpickler(_Framed(structure.pickled()), tensors).load()


class _Framed:
    """A pickle as a file of one frame, which is read at once and not copied.

    Args:
        pickled: a pickle of protocol 4 without frames.
    """

    _PROTO_LEN = 2

    def __init__(self, pickled: bytes) -> None:
        self._head = pickled[: self._PROTO_LEN] + b"\x95"
        # The frame begins with the protocol's number once more.
        self._head += struct.pack("<Q", len(pickled))
        self._pickled = pickled

    def read(self, count: int) -> bytes:
        if self._head:
            read, self._head = self._head[:count], self._head[count:]
            return read
        read, self._pickled = self._pickled, b""
        return read if count == len(read) else read[:count]

    def readline(self) -> bytes:
        return b""


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: _Framed, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: Any) -> Any:
        if type(pid) is int:
            return self._tensors[pid]
        kind, *parts = pid
        if kind == "P":
            position, requires_grad = parts
            return torch.nn.Parameter(self._tensors[position], requires_grad)
        return _MAKERS[kind](*parts)

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name} is not imported")


_MAKERS: dict[str, Callable[..., Any]] = {
    "o": OrderedDict,
    "k": Counter,
    "c": complex,
    "z": lambda *sizes: torch.Size(sizes),
    "D": lambda name: getattr(torch, name),
    "V": torch.device,
    "U": Unknown,
}
