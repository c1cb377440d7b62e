"""Compares what two readers made of one checkpoint, down to which objects are the same object."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping
from typing import Any

import torch
from probe import bits


def assert_alike(ours: Any, theirs: Any, storages: bool = True) -> None:
    """Asserts that two values have the same types, contents, tensors and shared objects.

    ``storages`` compares the storages under the tensors too: their bytes, and who shares one.
    """
    _Comparison(storages).run(ours, theirs)


class _Comparison:
    """Walks both values at once, without recursion: they may be deep, or hold themselves."""

    def __init__(self, storages: bool) -> None:
        self._storages = storages
        self._pairs: dict[int, int] = {}
        self._taken: dict[int, int] = {}
        self._shared: dict[int, int] = {}
        self._seen: set[int] = set()
        self._waiting: list[tuple[str, Any, Any]] = []

    def run(self, ours: Any, theirs: Any) -> None:
        self._waiting.append(("", ours, theirs))
        while self._waiting:
            self._compare(*self._waiting.pop())

    def _compare(self, place: str, ours: Any, theirs: Any) -> None:
        assert type(ours) is type(theirs), (place, type(ours), type(theirs))
        if self._was_seen(place, ours, theirs):
            return
        if isinstance(ours, torch.Tensor):
            self._tensors(place, ours, theirs)
        elif isinstance(ours, Mapping):
            self._mappings(place, ours, theirs)
        elif isinstance(ours, (list, tuple)):
            assert len(ours) == len(theirs), place
            for at, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                self._waiting.append((f"{place}[{at}]", one, other))
        elif isinstance(ours, (float, complex)):
            assert _float_bits(ours) == _float_bits(theirs), (place, ours, theirs)
        elif isinstance(ours, (torch.UntypedStorage, torch.TypedStorage)):
            assert ours.tolist() == theirs.tolist(), place
        else:
            assert ours == theirs, (place, ours, theirs)

    def _was_seen(self, place: str, ours: Any, theirs: Any) -> bool:
        """One object on one side must be one object on the other; ask only about mutable ones."""
        if not isinstance(ours, (torch.Tensor, dict, list, set, bytearray)):
            return False
        known = self._pairs.setdefault(id(ours), id(theirs))
        taken = self._taken.setdefault(id(theirs), id(ours))
        assert known == id(theirs), f"{place}: one object of ours is two of theirs"
        assert taken == id(ours), f"{place}: one object of theirs is two of ours"
        seen = id(ours) in self._seen
        self._seen.add(id(ours))
        return seen

    def _tensors(self, place: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        for what in ("dtype", "shape", "layout", "device", "requires_grad", "is_leaf"):
            one, other = getattr(ours, what), getattr(theirs, what)
            assert one == other, (place, what, one, other)
        if ours.layout != torch.strided or ours.is_quantized:
            assert repr(ours) == repr(theirs), place
            return
        assert ours.stride() == theirs.stride(), (place, ours.stride(), theirs.stride())
        assert ours.storage_offset() == theirs.storage_offset(), place
        assert (ours.is_conj(), ours.is_neg()) == (theirs.is_conj(), theirs.is_neg()), place
        one, other = ours.untyped_storage(), theirs.untyped_storage()
        if self._storages:
            assert one.nbytes() == other.nbytes(), (place, one.nbytes(), other.nbytes())
        if ours.device.type == "meta":
            return
        assert bits(ours) == bits(theirs), place
        if self._storages and one.nbytes():
            known = self._shared.setdefault(one.data_ptr(), other.data_ptr())
            assert known == other.data_ptr(), f"{place}: shares a storage with another tensor"
            assert _bytes(one) == _bytes(other), f"{place}: its storage has other bytes"

    def _mappings(self, place: str, ours: Mapping, theirs: Mapping) -> None:
        assert len(ours) == len(theirs), place
        # Both were made in the order of the file.
        for (key, one), (other_key, other) in zip(ours.items(), theirs.items(), strict=True):
            self._waiting.append((f"{place}.key", key, other_key))
            self._waiting.append((f"{place}[{key!r}]", one, other))
        own = vars(ours) if hasattr(ours, "__dict__") else None
        its = vars(theirs) if hasattr(theirs, "__dict__") else None
        self._waiting.append((f"{place}.__dict__", own, its))


def _float_bits(value: complex) -> bytes:
    return struct.pack("<dd", value.real, value.imag)


def _bytes(storage: torch.UntypedStorage) -> bytes:
    return ctypes.string_at(storage.data_ptr(), storage.nbytes())
