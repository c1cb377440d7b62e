"""Directories that lie: about how many entries there are, where they lie, how long they are."""

from __future__ import annotations

from collections.abc import Iterator

from .archive import MOVED_32, Entry, Said, archive, extra_64
from .builder import Case, good

COUNT = len(good())
SIZE = len(archive(good())) - 22 - archive(good()).index(b"PK\x01\x02")
START = archive(good()).index(b"PK\x01\x02")
PAST = "zip directory reaches past its end record"
OVER = "zip directory of 4294967295 bytes is over"
NO_ENTRY = "zip directory holds what is no entry"
CUT = "zip directory is cut short"
DISKS = "zip archive spans several disks"
WIDE = "zip64 end record is not where its locator says"


def cases() -> Iterator[Case]:
    yield from _end()
    yield from _end_64()
    yield from _entry()


def _end() -> Iterator[Case]:
    for count in (0, 1, COUNT - 1, COUNT + 1, 0xFFFF):
        said = {"here": count, "count": count}
        yield _case(f"count-{count}", f"has {COUNT} entries, not {count}", said)
    yield _case("size-zero", f"has 0 entries, not {COUNT}", {"size": 0})
    yield _case("size-too-small", CUT, {"size": SIZE - 1})
    yield _case("size-too-large", PAST, {"size": SIZE + 1}, torch=False)
    yield _case("size-of-32-bits", OVER, {"size": MOVED_32})
    yield _case("start-too-early", NO_ENTRY, {"start": START - 1})
    yield _case("start-at-zero", NO_ENTRY, {"start": 0})
    yield _case("start-too-late", PAST, {"start": START + 1})
    yield _case("start-of-32-bits", PAST, {"start": MOVED_32})
    yield _case("start-and-size-of-32-bits", OVER, {"start": MOVED_32, "size": MOVED_32})
    for field in ("disk", "start_disk", "here"):
        yield _case(f"another-{field}", DISKS, {field: COUNT + 1})
    yield _case("comment-that-is-not-there", "no end record", {"comment_len": 1}, torch=False)
    yield _case("no-signature", "no end record", {"signature": 0x0605_4B51})


def _end_64() -> Iterator[Case]:
    for at in (0, 1, START, 2**32, 2**63, 2**64 - 1):
        yield _wide(f"locator-at-{at}", WIDE, {"locator": {"at": at}})
    yield _wide("no-signature", WIDE, {"signature": 0x0606_4B51})
    for field in ("disk", "start_disk", "here"):
        yield _wide(f"another-{field}", DISKS, {field: COUNT + 1})
    yield _wide("size-zero", f"has 0 entries, not {COUNT}", {"size": 0})
    for number in (2**32, 2**63, 2**64 - 1):
        said = {"here": number, "count": number}
        yield _wide(f"count-{number}", f"has {COUNT} entries, not {number}", said)
        yield _wide(f"size-{number}", f"zip directory of {number} bytes is over", {"size": number})
        yield _wide(f"start-{number}", PAST, {"start": number})
    yield _wide("start-that-wraps", PAST, {"start": 2**64 - SIZE, "size": SIZE})


def _entry() -> Iterator[Case]:
    outside = "lies outside the archive"
    yield _entry_case("no-signature", NO_ENTRY, {"signature": 0x0201_4B51})
    yield _entry_case("name-too-long", CUT, {"name_len": 0xFFFF})
    yield _entry_case("extra-too-long", CUT, {"extra_len": 0xFFFF})
    yield _entry_case("comment-too-long", CUT, {"comment_len": 0xFFFF})
    yield _entry_case("name-too-short", NO_ENTRY, {"name_len": 1})
    yield _entry_case("two-sizes", "stored in a size that is not its own", {"packed": 15})
    yield _entry_case("size-past-the-archive", outside, {"packed": 2**31, "size": 2**31})
    reached = START - archive(good()).index(b"archive/data/0") - 14
    yield _entry_case(
        "size-into-the-directory", outside, {"packed": reached + 1, "size": reached + 1}
    )
    lacks = "lacks its 64-bit sizes"
    moved = {"packed": MOVED_32, "size": MOVED_32}
    yield _entry_case("no-64-bit-sizes", lacks, moved)
    yield _entry_case("half-of-the-64-bit-sizes", lacks, {**moved, "extra": extra_64(16)})
    other = extra_64(16, 16, field=2)
    yield _entry_case("64-bit-sizes-of-another-field", lacks, {**moved, "extra": other})
    longer = extra_64(16, 16)[:-1]
    yield _entry_case("64-bit-sizes-cut-short", lacks, {**moved, "extra": longer})
    for size in (2**32, 2**63, 2**64 - 1):
        wide = {**moved, "extra": extra_64(size, size)}
        yield _entry_case(f"64-bit-size-{size}", outside, wide)
        far = {"local": MOVED_32, "extra": extra_64(size)}
        yield _entry_case(f"64-bit-place-{size}", outside, far)


def _case(name: str, reason: str, end: Said, torch: bool = True) -> Case:
    return Case(name, archive(good(), end=end), reason, torch)


def _wide(name: str, reason: str, zip64: Said) -> Case:
    return Case(f"zip64-{name}", archive(good(), zip64=zip64), reason)


def _entry_case(name: str, reason: str, listed: Said) -> Case:
    """Lies in how the storage is listed, the last entry but one."""
    entries: list[Entry] = good()
    entries[-2] = entries[-2]._replace(listed=listed)
    return Case(f"entry-{name}", archive(entries), reason)
