"""Well-formed files that torch cannot hold: no dtype for F6, no half pairs of F4, no 2^63 sizes.

The reference hands out tensors whose strides overflowed, which torch itself refuses to make.
"""

from collections.abc import Iterator

from .builder import Case, file, tensor


def cases() -> Iterator[Case]:
    for dtype in ("F6_E2M3", "F6_E3M2"):
        reason = f"dtype {dtype} has no torch dtype"
        yield _case(f"{dtype}", dtype, [4], 3, reason)
        yield _case(f"{dtype}-zero-size", dtype, [0], 0, reason)
    both = {"a": tensor("U8", [1], 0, 1), "six": tensor("F6_E2M3", [4], 1, 4)}
    reason = "dtype F6_E2M3 has no torch dtype"
    yield Case("F6-behind-a-good-one", file(both, b"abcd"), reason, "six")

    odd = "last dimension of F4 must be even"
    yield _case("F4-last-dimension-one", "F4", [2, 1], 1, odd)
    yield _case("F4-last-dimension-three", "F4", [2, 3], 3, odd)
    yield _case("F4-odd-but-empty", "F4", [0, 1], 0, odd)
    yield _case("F4-odd-behind-a-zero", "F4", [0, 2**63 - 1], 0, odd)

    for name, shape in {
        "2-to-63": [0, 2**63],
        "2-to-63-first": [2**63, 0],
        "2-to-64-minus-1": [2**64 - 1, 0],
    }.items():
        yield _case(f"dimension-{name}", "U8", shape, 0, str(max(shape)))

    for name, shape in {
        "2-to-80": [0, 2**40, 2**40],
        "max-squared": [0, 2**63 - 1, 2**63 - 1],
    }.items():
        data = file({"a": tensor("F64", shape, 0, 0)})
        yield Case(f"strides-of-{name}", data, "strides of shape", "a", reference=False)


def _case(name: str, dtype: str, shape: list[int], size: int, reason: str) -> Case:
    return Case(name, file({"a": tensor(dtype, shape, 0, size)}, bytes(size)), reason, "a")
