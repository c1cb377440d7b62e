"""Check 6: offsets whose end lies before their start, which a subtraction would wrap."""

from collections.abc import Iterator

from .builder import Case, file, tensor


def cases() -> Iterator[Case]:
    yield _case("swapped", "U8", [1], 1, 0)
    yield _case("swapped-at-the-end", "U8", [2**63 - 1], 2**63 - 1, 0)
    yield _case("wrapping-to-the-right-size", "U8", [2], 2**64 - 1, 1)
    behind = {"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [2], 4, 2)}
    reason = "bytes 4..2 do not follow on from 4"
    yield Case("behind-a-good-one", file(behind, b"abcd"), reason, "b")
    zero = {"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [0], 2, 1)}
    yield Case("of-nothing", file(zero, b"ab"), "bytes 2..1 do not follow on from 2", "b")


def _case(name: str, dtype: str, shape: list[int], start: int, end: int) -> Case:
    reason = f"bytes {start}..{end} do not follow on from 0"
    return Case(name, file({"a": tensor(dtype, shape, start, end)}, b"xy"), reason, "a")
