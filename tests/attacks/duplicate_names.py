"""Two entries of one name: readers would differ about which one counts.

The reference keeps the last entry and drops the first, so it refuses only where what remains no
longer covers the file.
"""

from collections.abc import Iterator

from .builder import Case, file, tensor

REASON = "name stands twice in the header"


def cases() -> Iterator[Case]:
    one, two = _entry(0, 1), _entry(1, 2)
    yield _case("same-entry-twice", "a", f'{{"a":{one},"a":{one}}}', b"x", reference=False)
    yield _case("two-entries", "a", f'{{"a":{one},"a":{two}}}', b"xy")
    yield _case("two-entries-swapped", "a", f'{{"a":{two},"a":{one}}}', b"xy")
    yield _case("hidden-first", "a", f'{{"a":{two},"a":{one}}}', b"x", reference=False)
    yield _case("escaped-spelling", "a", f'{{"a":{one},"\\u0061":{one}}}', b"x", reference=False)
    yield _case("empty-name", "", f'{{"":{one},"":{one}}}', b"x", reference=False)
    yield _case("far-apart", "a", f'{{"a":{one},"b":{two},"a":{one}}}', b"xy", reference=False)
    emoji = f'{{"\U0001f600":{one},"\\ud83d\\ude00":{one}}}'
    yield _case("escaped-surrogate-pair", "\U0001f600", emoji, b"x", reference=False)
    empty = _entry(0, 0)
    yield _case("zero-size", "a", f'{{"a":{empty},"a":{empty}}}', b"", reference=False)


def _entry(start: int, end: int) -> str:
    entry = tensor("U8", [end - start], start, end)
    return str(entry).replace("'", '"')


def _case(name: str, tensor_name: str, header: str, data: bytes, reference: bool = True) -> Case:
    return Case(name, file(header, data), REASON, tensor_name, reference)
