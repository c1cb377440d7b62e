"""Check 9: the bytes between the offsets are exactly those that shape and dtype need."""

from collections.abc import Iterator

from .builder import Case, file, tensor


def cases() -> Iterator[Case]:
    yield _case("one-too-many", "U8", [1], 0, 2, 1)
    yield _case("one-too-few", "U8", [3], 0, 2, 3)
    yield _case("scalar-of-nothing", "F32", [], 0, 0, 4)
    yield _case("scalar-of-two", "F32", [], 0, 8, 4)
    yield _case("zero-size-with-bytes", "F32", [0], 0, 4, 0)
    yield _case("zero-size-in-the-middle", "F32", [2, 0, 2], 0, 16, 0)
    yield _case("wrong-width", "F64", [2], 0, 8, 16)
    yield _case("one-byte-of-a-float", "F32", [1], 0, 1, 4)
    yield _case("f4-counted-in-bytes", "F4", [4], 0, 4, 2)
    yield _case("f6-counted-in-bytes", "F6_E2M3", [4], 0, 4, 3)
    yield _case("past-the-file", "U8", [1], 0, 2**40, 1)
    yield _case("to-u64-max", "U8", [1], 0, 2**64 - 1, 1)
    yield _case("a-terabyte-from-no-bytes", "U8", [2**40], 0, 0, 2**40)
    first = {"a": tensor("U8", [2], 0, 1), "b": tensor("U8", [1], 1, 3)}
    reason = "bytes 0..1 do not hold shape [2] of U8, which takes 2"
    yield Case("borrowed-from-the-next", file(first, b"xyz"), reason, "a")


def _case(name: str, dtype: str, shape: list[int], start: int, end: int, takes: int) -> Case:
    data = file({"a": tensor(dtype, shape, start, end)}, bytes(min(end, 64)))
    reason = f"bytes {start}..{end} do not hold shape {shape} of {dtype}, which takes {takes}"
    return Case(name, data, reason, "a")
