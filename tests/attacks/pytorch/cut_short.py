"""An archive cut off at each of its boundaries, as an interrupted download leaves it."""

from collections.abc import Iterator

from .archive import archive
from .builder import Case, good

WHOLE = archive(good())
WIDE = archive(good(), zip64={})
NO_END = "zip archive is cut short: it has no end record"


def cases() -> Iterator[Case]:
    directory = WHOLE.index(b"PK\x01\x02")
    for size in (4, 8, 9, 21, 22, 30, 100, directory, directory + 40, len(WHOLE) - 22):
        yield Case(f"after-{size}", WHOLE[:size], NO_END)
    yield Case("in-the-end-record", WHOLE[:-1], NO_END)
    yield Case("behind-its-signature", WHOLE[:-18], NO_END)
    for left in (1, 21, 22, 30, 42, 60, 98):
        yield Case(f"zip64-without-its-last-{left}", WIDE[:-left], NO_END)

    commented = archive(good(), comment=b"a comment")
    yield Case("in-the-comment", commented[:-1], NO_END, torch=False)
    # What stands behind a whole archive is no part of it; the last end record counts.
    ends = b"PK\5\6" + bytes(18)
    yield Case("another-end-behind-the-end", WHOLE + ends, "is no checkpoint of PyTorch")
    yield Case("half-an-end-behind-the-end", WHOLE[:-1] + ends[:21], NO_END, torch=False)
    yield Case("a-mebibyte-behind-the-end", WHOLE + bytes(1 << 20), NO_END)

    start = WHOLE.index(b"archive/data/0") - 30
    hole = WHOLE[:start] + WHOLE[start + 64 :]
    yield Case("a-piece-missing-in-the-middle", hole, "zip directory reaches past its end record")
