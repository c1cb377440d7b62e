"""Check 8: a tensor narrower than a byte must still fill whole bytes."""

from collections.abc import Iterator

from .builder import Case, file, tensor


def cases() -> Iterator[Case]:
    for name, dtype, shape, bits in [
        ("f4-scalar", "F4", [], 4),
        ("f4-one", "F4", [1], 4),
        ("f4-three", "F4", [3], 12),
        ("f4-three-by-three", "F4", [3, 3], 36),
        ("f6-scalar", "F6_E2M3", [], 6),
        ("f6-one", "F6_E3M2", [1], 6),
        ("f6-two", "F6_E2M3", [2], 12),
        ("f6-five", "F6_E3M2", [5], 30),
    ]:
        for rounding, size in {"down": bits // 8, "up": bits // 8 + 1}.items():
            data = file({"a": tensor(dtype, shape, 0, size)}, bytes(size))
            yield Case(f"{name}-{rounding}", data, f"{bits} bits are not whole bytes", "a")
