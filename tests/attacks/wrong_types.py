"""Check 5: JSON that is well formed but says the wrong kind of thing."""

from collections.abc import Iterator

from .builder import Case, file, tensor

TOP = {
    "null": "null",
    "list": "[]",
    "list-of-entries": '[{"dtype":"U8","shape":[0],"data_offsets":[0,0]}]',
    "string": '"{}"',
    "number": "1",
    "true": "true",
}

ENTRIES = {
    "null": "null",
    "string": '"U8"',
    "number": "0",
    "empty-list": "[]",
    "empty-object": "{}",
    "no-dtype": '{"shape":[1],"data_offsets":[0,1]}',
    "no-shape": '{"dtype":"U8","data_offsets":[0,1]}',
    "no-offsets": '{"dtype":"U8","shape":[1]}',
    "dtype-twice": '{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}',
    "shape-twice": '{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}',
    "offsets-twice": '{"dtype":"U8","shape":[1],"data_offsets":[0,1],"data_offsets":[0,1]}',
}

SHAPES = {
    "null": "null",
    "number": "1",
    "string": '"1"',
    "object": '{"0":1}',
    "string-inside": '["1"]',
    "null-inside": "[null]",
    "list-inside": "[[1]]",
    "true-inside": "[true]",
    "float-inside": "[1.0]",
    "exponent-inside": "[1e0]",
    "negative-inside": "[-1]",
    "two-negatives": "[-1,-1]",
    "minus-zero": "[-0]",
    "2-to-64": "[18446744073709551616]",
    "forty-digits": "[" + "9" * 40 + "]",
    "a-float-too-large": "[1e400]",
}

OFFSETS = {
    "null": "null",
    "empty": "[]",
    "one": "[0]",
    "three": "[0,1,2]",
    "strings": '["0","1"]',
    "floats": "[0.0,1.0]",
    "negative-start": "[-1,0]",
    "negative-end": "[0,-1]",
    "nested": "[[0,1]]",
    "object": '{"start":0,"end":1}',
    "null-end": "[0,null]",
    "2-to-64": "[0,18446744073709551616]",
    "2-to-64-plus-1": "[0,18446744073709551617]",
}


def cases() -> Iterator[Case]:
    for name, header in TOP.items():
        yield _case(f"header-{name}", header)
    for name, entry in ENTRIES.items():
        yield _case(f"entry-{name}", f'{{"a":{entry}}}', b"x", "a")
    for name, shape in SHAPES.items():
        entry = f'{{"dtype":"U8","shape":{shape},"data_offsets":[0,1]}}'
        yield _case(f"shape-{name}", f'{{"a":{entry}}}', b"x", "a")
    for name, offsets in OFFSETS.items():
        entry = f'{{"dtype":"U8","shape":[1],"data_offsets":{offsets}}}'
        yield _case(f"offsets-{name}", f'{{"a":{entry}}}', b"x", "a")
    good = tensor("U8", [1], 0, 1)
    yield Case(
        "fault-behind-a-good-entry", file({"a": good, "b": 1}, b"x"), "header is not valid: ", "b"
    )


def _case(name: str, header: str, data: bytes = b"", tensor_name: str | None = None) -> Case:
    return Case(name, file(header, data), "header is not valid: ", tensor_name)
