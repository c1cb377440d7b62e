"""Entries whose bytes do not stand in the file as they are: compressed or encrypted."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from .archive import Entry, Said, archive
from .builder import FOUR, Case, good

COMPRESSED, ENCRYPTED = "is compressed", "is encrypted"
DEFLATE = 8


def cases() -> Iterator[Case]:
    for at, kind in ((0, "pickle"), (2, "storage")):
        yield _deflated(kind, at)
        for method in (1, 12, 14, 93, 99, 0xFFFF):
            yield _case(f"{kind}-method-{method}", at, COMPRESSED, {"method": method})
        for flags in (1, 0x41, 0x2001):
            yield _case(f"{kind}-encrypted-{flags:#x}", at, ENCRYPTED, {"flags": flags})
        reason = "has no header of its own"
        for name, local in {"deflated": {"method": DEFLATE}, "encrypted": {"flags": 1}}.items():
            # torch never looks at these fields of an entry's own header.
            named = f"{kind}-{name}-in-its-own-header"
            yield _case(named, at, reason, {}, local, torch=False)
    bomb = [*good()[:2], deflated_entry("archive/data/0", bytes(64 << 20)), good()[3]]
    yield Case("storage-bomb", archive(bomb), COMPRESSED)
    bomb = [deflated_entry("archive/data.pkl", bytes(64 << 20)), *good()[1:]]
    yield Case("pickle-bomb", archive(bomb), COMPRESSED)


def _case(
    name: str,
    at: int,
    reason: str,
    listed: Said,
    local: Said | None = None,
    torch: bool = True,
) -> Case:
    entries: list[Entry] = good()
    entries[at] = entries[at]._replace(listed=listed, local=listed if local is None else local)
    return Case(name, archive(entries), reason, torch)


def _deflated(kind: str, at: int) -> Case:
    entries = good()
    entries[at] = deflated_entry(entries[at].name, entries[at].data or FOUR)
    return Case(f"{kind}-deflated", archive(entries), COMPRESSED, torch=False)


def deflated_entry(name: str, data: bytes) -> Entry:
    deflate = zlib.compressobj(wbits=-15)
    packed = deflate.compress(data) + deflate.flush()
    said = {"method": DEFLATE, "size": len(data), "crc": zlib.crc32(data)}
    return Entry(name, packed, said, said)
