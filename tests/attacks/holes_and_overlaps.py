"""Check 6: sorted by offset, each tensor starts where the one before it ends."""

from collections.abc import Iterator

from .builder import Case, file, tensor


def cases() -> Iterator[Case]:
    yield _case("starts-late", {"a": (1, 2)}, b"xy", "a", (1, 2, 0))
    yield _case("hole", {"a": (0, 1), "b": (2, 3)}, b"xyz", "b", (2, 3, 1))
    yield _case("hole-in-front-of-nothing", {"a": (0, 1), "b": (2, 2)}, b"xy", "b", (2, 2, 1))
    yield _case(
        "hole-of-a-terabyte", {"a": (0, 1), "b": (2**40, 2**40)}, b"x", "b", (2**40, 2**40, 1)
    )
    yield _case("overlap-by-one", {"a": (0, 2), "b": (1, 3)}, b"xyz", "b", (1, 3, 2))
    yield _case("one-inside-another", {"a": (0, 4), "b": (1, 2)}, b"wxyz", "b", (1, 2, 4))
    yield _case(
        "inside-then-after", {"a": (0, 2), "b": (1, 2), "c": (2, 3)}, b"xyz", "b", (1, 2, 2)
    )
    yield _case("written-in-another-order", {"b": (2, 3), "a": (0, 1)}, b"xyz", "b", (2, 3, 1))
    yield _case("u64-max-start", {"a": (2**64 - 1, 2**64 - 1)}, b"", "a", (2**64 - 1, 2**64 - 1, 0))
    same = file({"a": tensor("U8", [1], 0, 1), "b": tensor("U8", [1], 0, 1)}, b"x")
    yield Case("same-bytes", same, "bytes 0..1 do not follow on from 1", "b")


def _case(
    name: str,
    entries: dict[str, tuple[int, int]],
    data: bytes,
    tensor_name: str,
    numbers: tuple[int, int, int],
) -> Case:
    header = {key: tensor("U8", [end - start], start, end) for key, (start, end) in entries.items()}
    start, end, expected = numbers
    reason = f"bytes {start}..{end} do not follow on from {expected}"
    return Case(name, file(header, data), reason, tensor_name)
