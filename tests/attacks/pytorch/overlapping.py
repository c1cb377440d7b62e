"""Entries that share bytes, stand twice, or lie where no entry can be."""

from __future__ import annotations

from collections.abc import Iterator

from .archive import Entry, archive, local_record
from .builder import Case, good

OVERLAP, TWICE, OUTSIDE = "overlap", "stands twice", "lies outside the archive"
NO_HEADER = "has no header of its own"


def cases() -> Iterator[Case]:
    yield from _twice()
    yield from _same_bytes()
    yield from _elsewhere()


def _twice() -> Iterator[Case]:
    entries = good()
    for at, entry in enumerate(entries):
        name = entry.name.rpartition("/")[2]
        yield Case(f"twice-{name}", archive([*entries, entry]), TWICE, torch=False)
        other = entry._replace(data=entry.data[::-1])
        data = archive([*entries[:at], other, *entries])
        refused = name in ("data.pkl", "byteorder")
        yield Case(f"twice-and-different-{name}", data, TWICE, refused)


def _same_bytes() -> Iterator[Case]:
    """Listed entries that have no bytes of their own point into those of another."""
    entries = good()
    whole = archive(entries)
    start = whole.index(b"archive/data/0") - 30
    for key, listed in {
        "the-same-record": {"local": start, "packed": 16, "size": 16},
        "the-same-record-shorter": {"local": start, "packed": 4, "size": 4},
        "the-same-record-empty": {"local": start, "packed": 0, "size": 0},
        "the-pickle": {"local": 0, "packed": len(entries[0].data), "size": len(entries[0].data)},
        "all-entries": {"local": 0, "packed": start, "size": start},
    }.items():
        more = Entry("archive/data/1", None, listed=listed)
        yield Case(f"over-{key}", archive([*entries, more]), OVERLAP, torch=False)

    inner = Entry("archive/data/1", bytes(16))
    outer = Entry("archive/data/2", b"....." + local_record(inner) + inner.data + b"...")
    at = whole.index(b"archive/version") - 30 + len(local_record(outer)) + 5
    listed = {"local": at, "packed": 16, "size": 16}
    nested = [*entries[:-1], outer, inner._replace(data=None, listed=listed), entries[-1]]
    yield Case("inside-the-bytes-of-another", archive(nested), OVERLAP, torch=False)

    longer = {"packed": 60, "size": 60}
    stretched = entries[2]._replace(listed=longer)
    yield Case("longer-than-its-own-bytes", archive([*entries[:2], stretched, entries[3]]), OVERLAP)
    moved = entries[2]._replace(local={"extra_len": 9})
    pushed = archive([*entries[:2], moved, entries[3]])
    yield Case("pushed-into-the-next", pushed, OVERLAP, torch=False)


def _elsewhere() -> Iterator[Case]:
    entries = good()
    whole = archive(entries)
    directory = whole.index(b"PK\x01\x02")
    for name, at in {
        "in-the-directory": directory,
        "at-the-end-record": len(whole) - 22,
        "at-the-end": len(whole),
        "behind-the-end": len(whole) + 1,
        "at-2-to-32-minus-2": 2**32 - 2,
    }.items():
        yield Case(f"placed-{name}", _placed(at), OUTSIDE)
    yield Case("placed-one-byte-late", _placed(whole.index(b"archive/data/0") - 29), NO_HEADER)
    yield Case("placed-in-the-pickle", _placed(40), NO_HEADER)
    for name, local in {
        "without-signature": {"signature": 0x0403_4B51},
        "with-that-of-the-directory": {"signature": 0x0201_4B50},
    }.items():
        record = entries[2]._replace(local=local)
        yield Case(f"header-{name}", archive([*entries[:2], record, entries[3]]), NO_HEADER)
    record = entries[3]._replace(local={"name_len": 0xFFFF})
    yield Case("header-with-a-name-past-the-archive", archive([*entries[:3], record]), OUTSIDE)


def _placed(at: int) -> bytes:
    entries = good()
    storage = entries[2]._replace(listed={"local": at})
    return archive([*entries[:2], storage, entries[3]])
