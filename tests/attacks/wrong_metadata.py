"""Check 5: ``__metadata__`` maps strings to strings and stands once."""

from collections.abc import Iterator

from .builder import Case, file

VALUES = {
    "list": "[]",
    "list-of-pairs": '[["a","b"]]',
    "string": '"pt"',
    "number": "1",
    "true": "true",
    "number-inside": '{"epoch":3}',
    "null-inside": '{"note":null}',
    "true-inside": '{"final":true}',
    "list-inside": '{"tags":["a"]}',
    "object-inside": '{"config":{"a":"b"}}',
    "tensor-inside": '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}',
}


def cases() -> Iterator[Case]:
    for name, value in VALUES.items():
        yield Case(name, file(f'{{"__metadata__":{value}}}'), "header is not valid: ")
    for name, first in {"twice": "__metadata__", "twice-one-escaped": "\\u005f_metadata__"}.items():
        header = f'{{"{first}":{{"a":"b"}},"__metadata__":{{"a":"b"}}}}'
        yield Case(name, file(header), "header is not valid: ")
