"""Check 10: the tensors end where the file ends: nothing behind them, nothing missing."""

from collections.abc import Iterator
from typing import Any

from .builder import Case, file, tensor


def cases() -> Iterator[Case]:
    one = {"a": tensor("U8", [1], 0, 1)}
    yield _case("one-byte-behind", one, b"xy", 1)
    yield _case("one-byte-missing", one, b"", 1)
    yield _case("seven-zero-bytes-behind", one, b"x" + bytes(7), 1)
    yield _case("a-page-behind", one, b"x" + bytes(4096), 1)
    yield _case("another-file-behind", one, b"x" + file(one, b"x"), 1)
    yield _case("no-tensor-but-a-byte", {}, b"x", 0)
    yield _case("only-metadata-but-a-byte", {"__metadata__": {"a": "b"}}, b"x", 0)
    yield _case("zero-size-but-a-byte", {"a": tensor("F32", [0], 0, 0)}, b"x", 0)
    huge = {"a": tensor("U8", [2**40], 0, 2**40)}
    yield _case("a-terabyte-missing", huge, b"x", 2**40)
    most = {"a": tensor("U8", [2**61 - 1], 0, 2**61 - 1)}
    yield _case("nearly-everything-missing", most, b"", 2**61 - 1)


def _case(name: str, header: dict[str, Any], data: bytes, end: int) -> Case:
    whole = file(header, data)
    end += len(whole) - len(data)
    return Case(name, whole, f"tensors end at byte {end} but the file at byte {len(whole)}")
