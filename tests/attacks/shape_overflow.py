"""Check 7: shapes whose size overflows 64 bits, before or after the dtype's width comes in."""

from collections.abc import Iterator

from .builder import Case, file, tensor


def cases() -> Iterator[Case]:
    yield _case("two-dimensions", "U8", [2**32, 2**32], 0)
    yield _case("wraps-to-one", "U8", [2**63 + 1, 2**63 + 1], 1)
    yield _case("wraps-to-four", "U8", [2**31 + 2, 2**33 + 2**3], 16)
    yield _case("max-times-max", "U8", [2**64 - 1, 2**64 - 1], 1)
    yield _case("max-times-two", "BOOL", [2**64 - 1, 2], 0)
    yield _case("many-dimensions", "U8", [2] * 64, 0)
    yield _case("1000-dimensions", "U8", [3] * 1000, 0)
    yield _case("zero-comes-too-late", "U8", [2**32, 2**32, 0], 0)
    yield _case("bits-overflow-u8", "U8", [2**61], 0)
    yield _case("bits-overflow-f16", "F16", [2**60], 0)
    yield _case("bits-overflow-f64", "F64", [2**58], 0)
    yield _case("bits-overflow-c64", "C64", [2**58 + 1], 8)
    yield _case("bits-overflow-f4", "F4", [2**62], 0)
    yield _case("bits-overflow-f6", "F6_E2M3", [2**62], 0)


def _case(name: str, dtype: str, shape: list[int], size: int) -> Case:
    return Case(name, file({"a": tensor(dtype, shape, 0, size)}, bytes(size)), "overflows", "a")
