"""Writes zip archives record by record, so that every field can lie.

Each record has its fields named; ``said`` replaces the truth in any of them. Source: APPNOTE.TXT
6.3.10, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

Said = Mapping[str, Any]

#: What a record says that does not lie.
TRUTH: Said = MappingProxyType({})

LOCAL = "I signature H version H flags H method H time H date I crc I packed I size"
LOCAL += " H name_len H extra_len"
LISTED = "I signature H made_by H version H flags H method H time H date I crc I packed I size"
LISTED += " H name_len H extra_len H comment_len H disk H internal I external I local"
END = "I signature H disk H start_disk H here H count I size I start H comment_len"
END_64 = "I signature Q record_len H made_by H version I disk I start_disk"
END_64 += " Q here Q count Q size Q start"
LOCATOR_64 = "I signature I disk Q at I disks"

#: What stands in a field whose number has moved to a zip64 record.
MOVED_16, MOVED_32 = 0xFFFF, 0xFFFF_FFFF


class Entry(NamedTuple):
    """One entry: its name and bytes, and what its two records say instead of the truth.

    ``local`` and ``listed`` may also hold ``name`` and ``extra``, the bytes behind the fields.
    ``data`` may be None, for an entry that is listed but has no local record.
    """

    name: str
    data: bytes | None = b""
    local: Said = TRUTH
    listed: Said = TRUTH


def archive(
    entries: Sequence[Entry], end: Said = TRUTH, zip64: Said | None = None, comment: bytes = b""
) -> bytes:
    """An archive of stored entries. ``zip64``: what its end record and ``locator`` say."""
    written, directory = bytearray(), bytearray()
    for entry in entries:
        at = len(written)
        if entry.data is not None:
            written += local_record(entry) + entry.data
        directory += listed_record(entry, at)
    truth = {"here": len(entries), "count": len(entries)}
    truth |= {"size": len(directory), "start": len(written)}
    written += directory
    if zip64 is not None:
        written += end_64(truth, len(written), zip64)
        truth = {"here": MOVED_16, "count": MOVED_16, "size": MOVED_32, "start": MOVED_32}
    fields = {"signature": 0x0605_4B50, "comment_len": len(comment), **truth}
    return bytes(written + record(END, fields, end) + comment)


def local_record(entry: Entry) -> bytes:
    """The record before an entry's bytes."""
    fields = {"signature": 0x0403_4B50, "version": 20, **_common(entry)}
    return _with_name(LOCAL, entry, fields, entry.local)


def listed_record(entry: Entry, at: int) -> bytes:
    """The entry's record in the directory."""
    fields = {"signature": 0x0201_4B50, "made_by": 20, "version": 20, "local": at}
    return _with_name(LISTED, entry, fields | _common(entry), entry.listed)


def end_64(truth: Said, at: int, said: Said) -> bytes:
    """The zip64 end record, which stands at ``at``, and its locator."""
    fields = {"signature": 0x0606_4B50, "record_len": 44, "made_by": 45, "version": 45, **truth}
    locator = {"signature": 0x0706_4B50, "at": at, "disks": 1}
    said = dict(said)
    said_of_locator = said.pop("locator", {})
    return record(END_64, fields, said) + record(LOCATOR_64, locator, said_of_locator)


def extra_64(*numbers: int, field: int = 1) -> bytes:
    """The extra field that holds what 32 bits cannot."""
    return struct.pack(f"<HH{len(numbers)}Q", field, 8 * len(numbers), *numbers)


def record(layout: str, fields: Said, said: Said) -> bytes:
    """The bytes of a record, a field that is not told being zero."""
    words = layout.split()
    values = {**dict.fromkeys(words[1::2], 0), **fields, **said}
    return struct.pack("<" + "".join(words[0::2]), *(values[name] for name in words[1::2]))


def _common(entry: Entry) -> dict[str, int]:
    data = entry.data or b""
    return {"crc": zlib.crc32(data), "packed": len(data), "size": len(data)}


def _with_name(layout: str, entry: Entry, fields: Said, said: Said) -> bytes:
    said = dict(said)
    name, extra = said.pop("name", entry.name.encode()), said.pop("extra", b"")
    lengths = {"name_len": len(name), "extra_len": len(extra)}
    return record(layout, {**fields, **lengths}, said) + name + extra
