"""Check 3: the header must end inside the file."""

from collections.abc import Iterator

from .builder import Case, file, prefix


def cases() -> Iterator[Case]:
    yield Case("one-byte-too-long", file("{}", length=3), _past(3, 10))
    yield Case("no-header-at-all", prefix(2), _past(2, 8))
    yield Case("at-the-limit", file("{}", length=100_000_000), _past(100_000_000, 10))
    yield Case("file-length-as-header-length", file("{}" + " " * 6, length=16), _past(16, 16))
    yield Case("a-letter-in-the-length", file("{}", length=ord("a")), _past(ord("a"), 10))


def _past(length: int, size: int) -> str:
    return f"header of {length} bytes does not fit in a file of {size} bytes"
