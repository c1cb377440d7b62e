"""Entries that are encrypted, compressed otherwise than deflated, or lie about what is deflated."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from .archive import Entry, Said, archive
from .builder import FOUR, Case, good

COMPRESSED, ENCRYPTED = "is compressed", "is encrypted"
DEFLATE = 8

#: What torch returns garbage for, or takes.
TORCH_TAKES = {
    "pickle-deflated-and-more",
    "pickle-of-another-checksum",
    "storage-of-no-deflated-bytes",
    "storage-deflated-and-cut",
    "storage-deflated-and-more",
    "storage-of-another-checksum",
}


def cases() -> Iterator[Case]:
    for at, kind in ((0, "pickle"), (2, "storage")):
        for method in (1, 12, 14, 93, 99, 0xFFFF):
            yield _case(f"{kind}-method-{method}", at, COMPRESSED, {"method": method})
        for flags in (1, 0x41, 0x2001):
            yield _case(f"{kind}-encrypted-{flags:#x}", at, ENCRYPTED, {"flags": flags})
        reason = "has no header of its own"
        for name, local in {"deflated": {"method": DEFLATE}, "encrypted": {"flags": 1}}.items():
            # torch never looks at these fields of an entry's own header.
            named = f"{kind}-{name}-in-its-own-header"
            yield _case(named, at, reason, {}, local, torch=False)
    yield from _deflated()


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


def _deflated() -> Iterator[Case]:
    bomb = [*good()[:2], deflated_entry("archive/data/0", bytes(64 << 20)), good()[3]]
    yield Case("storage-bomb", archive(bomb), 'storage "0" has 67108864 bytes, not 16')
    bomb = [deflated_entry("archive/data.pkl", bytes(128 << 20)), *good()[1:]]
    yield Case("pickle-bomb", archive(bomb), "of 134217728 bytes is over")
    pickle = good()[0].data or b""
    for kind, at, data in (("pickle", 0, pickle), ("storage", 2, FOUR)):
        entry = deflated_entry(good()[at].name, data)
        packed, said = entry.data or b"", dict(entry.listed or {})
        longer, wide = f"{kind}-deflated-to-more", {"size": len(data) - 1}
        own = 'storage "0" has' if at else None
        for name, reason, data_now, change in (
            (longer, own or "inflates to more bytes", packed, wide),
            (f"{kind}-deflated-to-less", own or "fewer bytes", packed, {"size": len(data) + 1}),
            (f"{kind}-of-no-deflated-bytes", "is damaged", b"\xff" * len(packed), {}),
            (f"{kind}-deflated-and-cut", "is cut short", packed[:-2], {}),
            (f"{kind}-deflated-and-more", "behind its end", packed + b"x", {}),
            (f"{kind}-of-another-checksum", "checksum", packed, {"crc": said["crc"] ^ 1}),
            (f"{kind}-beyond-all-ratios", "grows to more", packed, {"size": 1 << 30}),
        ):
            entries: list[Entry] = good()
            changed = {**said, **change}
            entries[at] = entry._replace(data=data_now, local=changed, listed=changed)
            # torch looks neither at checksums nor at what follows, and takes what it gets.
            in_bytes = name.startswith("storage") and name in TORCH_TAKES
            yield Case(name, archive(entries), reason, name not in TORCH_TAKES, in_bytes=in_bytes)


def deflated_entry(name: str, data: bytes) -> Entry:
    deflate = zlib.compressobj(wbits=-15)
    packed = deflate.compress(data) + deflate.flush()
    said = {"method": DEFLATE, "size": len(data), "crc": zlib.crc32(data)}
    return Entry(name, packed, said, said)
