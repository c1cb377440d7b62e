"""Check 2: a header longer than 100,000,000 bytes is refused before anything is read or reserved.

Lengths near 2^64 belong here: 8 + N wraps around for them, and so does a signed comparison.
"""

from collections.abc import Iterator

from .builder import Case, file, prefix, tensor

LIMIT = 100_000_000


def cases() -> Iterator[Case]:
    lengths = {
        "limit-plus-one": LIMIT + 1,
        "2-to-31": 2**31,
        "2-to-32": 2**32,
        "2-to-32-plus-2": 2**32 + 2,
        "2-to-63-minus-1": 2**63 - 1,
        "2-to-63": 2**63,
        "2-to-63-plus-2": 2**63 + 2,
        "wraps-to-zero": 2**64 - 8,
        "wraps-to-two": 2**64 - 6,
        "wraps-to-seven": 2**64 - 1,
    }
    for name, length in lengths.items():
        yield Case(name, file("{}", length=length), _over(length))
    yield Case("nothing-behind-it", prefix(2**64 - 1), _over(2**64 - 1))
    text = b"\x89HDF\r\n\x1a\n and the rest of a file of another format"
    yield Case("another-format", text, "file is an HDF5 file")
    header = {"a": tensor("U8", [1], 0, 1)}
    swapped = file(header, b"x")
    swapped = swapped[:8][::-1] + swapped[8:]
    yield Case("big-endian-length", swapped, _over(int.from_bytes(swapped[:8], "little")))


def _over(length: int) -> str:
    return f"header length {length} is over the limit of {LIMIT}"
