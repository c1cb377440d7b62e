"""Check 5: a dtype outside the format's list, letter case included."""

import json
from collections.abc import Iterator

from .builder import Case, file, tensor

NAMES = [
    "",
    "u8",
    "U8 ",
    "U8\0",
    "U128",
    "F128",
    "C128",
    "F8_E4M3FN",
    "F8_E4M3fnuz",
    "F4_E2M1",
    "BFLOAT16",
    "float32",
    "torch.float32",
    "Q8",
    "\uff2632",
    "__proto__",
]


def cases() -> Iterator[Case]:
    for number, name in enumerate(NAMES):
        header = file({"a": tensor(name, [1], 0, 4)}, b"abcd")
        yield Case(f"name-{number}", header, "header is not valid: ", "a")
    for kind, value in {"null": None, "number": 1, "list": ["U8"], "true": True}.items():
        data = file({"a": tensor(value, [1], 0, 1)}, b"x")
        yield Case(kind, data, "header is not valid: ", "a")
    text = json.dumps({"a": tensor("A" * 100_000, [1], 0, 1)})
    yield Case("100000-letters", file(text, b"x"), "header is not valid: ", "a")
