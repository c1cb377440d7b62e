"""Builds PyTorch checkpoints of both formats and checks nothing, so any fault can be put in."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from . import program as p
from .archive import Entry, archive

#: The bytes of four float32: 1, 2, 3, 4.
FOUR = struct.pack("<4f", 1, 2, 3, 4)

MAGIC = 0x1950_A86A_20F9_469C_FC6C


class Case(NamedTuple):
    """One file and the refusal that it must meet.

    ``reason`` is a part of the reason's text. ``unknown`` marks a file that is well formed and
    names something without a meaning here: the only kind that ``torch.load`` is asked about.
    ``torch`` tells whether ``torch.load(weights_only=True)`` refuses the file too. ``in_bytes``
    marks a fault that only reading a tensor's bytes can find.
    """

    name: str
    data: bytes
    reason: str
    torch: bool = True
    unknown: bool = False
    in_bytes: bool = False


def entries(
    pickle: bytes, storages: Mapping[str, bytes] | None = None, root: str = "archive"
) -> list[Entry]:
    """What torch.save puts into an archive, in its order."""
    storages = {"0": FOUR} if storages is None else storages
    found = [Entry(f"{root}/data.pkl", pickle), Entry(f"{root}/byteorder", b"little")]
    found += [Entry(f"{root}/data/{key}", data) for key, data in storages.items()]
    return [*found, Entry(f"{root}/version", b"3\n")]


def good_pickle() -> bytes:
    """The pickle of ``{"a": tensor([1, 2, 3, 4])}``."""
    return p.program(p.mapping(a=p.tensor(p.storage())))


def good() -> list[Entry]:
    """The entries of a checkpoint without a fault."""
    return entries(good_pickle())


def zipped(value: bytes, storages: Mapping[str, bytes] | None = None) -> bytes:
    """A checkpoint whose pickle builds ``value``."""
    return archive(entries(p.program(value), storages))


def legacy(
    value: bytes | None = None,
    stored: bytes | None = None,
    keys: bytes | None = None,
    version: bytes | None = None,
    facts: bytes | None = None,
) -> bytes:
    """A checkpoint of the old format: five pickles, then ``stored``, all storages with counts.

    Every part is the instructions that push one value; what is not given is without a fault.
    """
    facts = p.mapping(little_endian=p.TRUE) if facts is None else facts
    value = p.mapping(a=p.tensor(p.storage(legacy=True))) if value is None else value
    version = p.integer(1001) if version is None else version
    keys = p.listed(p.text("0")) if keys is None else keys
    parts = [p.integer(MAGIC), version, facts, value, keys]
    return b"".join(map(p.program, parts)) + (counted() if stored is None else stored)


def counted(data: bytes = FOUR, elements: int = 4) -> bytes:
    """The bytes of a storage as the old format stores them, behind their count."""
    return struct.pack("<q", elements) + data
