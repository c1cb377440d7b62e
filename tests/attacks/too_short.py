"""Check 1: a file needs eight bytes for the length of its header."""

from collections.abc import Iterator

from .builder import Case


def cases() -> Iterator[Case]:
    for size in range(8):
        reason = f"file of {size} bytes is too short for a header"
        yield Case(f"{size}-zero-bytes", bytes(size), reason)
    yield Case("7-bytes-of-json", b'{"a":1}', "file of 7 bytes is too short for a header")
    yield Case("7-high-bytes", b"\xff" * 7, "file of 7 bytes is too short for a header")
