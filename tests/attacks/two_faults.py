"""Files with two faults: the earlier check speaks, so the same file always gets the same text."""

from collections.abc import Iterator

from .builder import Case, file, tensor


def cases() -> Iterator[Case]:
    data = file(b"\xff", length=100_000_001)
    yield Case("over-limit-before-past-end", data, "over the limit")
    yield Case("past-end-before-utf8", file(b"\xff", length=2), "does not fit in a file")
    yield Case("utf8-before-json", file(b'{"\xff'), "header is not UTF-8")
    unknown = {"a": tensor("F7", [1], 5, 3)}
    yield Case("json-before-offsets", file(unknown), "header is not valid: ", "a")
    one = '{"dtype":"U8","shape":[1],"data_offsets":[5,6]}'
    twice = file(f'{{"a":{one},"a":{one}}}', b"xyz")
    yield Case("duplicate-before-offsets", twice, "name stands twice in the header", "a")
    hole = {"a": tensor("U8", [2**32, 2**32], 1, 2)}
    yield Case("offsets-before-overflow", file(hole, b"xy"), "do not follow on from 0", "a")
    wide = {"a": tensor("F4", [2**62 + 1], 0, 1)}
    yield Case("overflow-before-whole-bytes", file(wide, b"x"), "overflows", "a")
    bits = {"a": tensor("F4", [3], 0, 9)}
    yield Case("whole-bytes-before-size", file(bits, b"x"), "12 bits are not whole bytes", "a")
    size = {"a": tensor("U8", [1], 0, 2)}
    yield Case("size-before-coverage", file(size, b"xyz"), "do not hold shape [1] of U8", "a")
    six = {"a": tensor("F6_E2M3", [4], 0, 3)}
    yield Case("coverage-before-torch", file(six, b"abcd"), "but the file at byte ")
