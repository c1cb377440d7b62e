"""A whole file cut off at each of its boundaries, as an interrupted download leaves it."""

from collections.abc import Iterator

from .builder import Case, file, tensor

HEADER = {
    "first": tensor("U8", [3], 0, 3),
    "nothing": tensor("F32", [0], 3, 3),
    "second": tensor("I16", [2], 3, 7),
}
WHOLE = file(HEADER, b"abcdefg")
START = len(WHOLE) - 7


def cases() -> Iterator[Case]:
    for size in (0, 1, 7):
        yield Case(f"inside-the-length-{size}", WHOLE[:size], "too short for a header")
    for size in (8, 9, START // 2, START - 1):
        yield Case(f"inside-the-header-{size}", WHOLE[:size], _past(size))
    for size in (START, START + 1, START + 3, START + 5, START + 6):
        yield Case(f"inside-the-data-{size - START}", WHOLE[:size], _ends(size - START))


def _past(size: int) -> str:
    return f"header of {START - 8} bytes does not fit in a file of {size} bytes"


def _ends(size: int) -> str:
    return f"tensors end at byte {len(WHOLE)} but the file at byte {START + size}"
