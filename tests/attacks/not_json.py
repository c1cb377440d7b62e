"""Check 5: the header is JSON as the standard has it, and one value only."""

from collections.abc import Iterator

from .builder import Case, file

ENTRY = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'

WITHOUT_TENSORS = {
    "empty": "",
    "only-spaces": "        ",
    "only-nul-bytes": "\0" * 8,
    "nul-bytes-behind": "{}" + "\0" * 6,
    "nul-bytes-before": "\0\0{}",
    "byte-order-mark": "\ufeff{}",
    "no-break-space-before": "\u00a0{}",
    "form-feed-before": "\f{}",
    "open-brace": "{",
    "close-brace": "}",
    "two-values": "{}{}",
    "comma-behind": "{},",
    "bare-word": "tensor",
    "comment": "{/* none */}",
    "line-comment": "{} // none",
    "single-quotes": "{'__metadata__':{}}",
    "unquoted-key": "{__metadata__:{}}",
    "comma-first": '{,"__metadata__":{}}',
    "unterminated-string": '{"a',
    "unterminated-metadata": '{"__metadata__":{"a":"b"}',
}

BETWEEN_ENTRIES = {
    "trailing-comma": f'{{"a":{ENTRY},}}',
    "no-comma-between": f'{{"a":{ENTRY} "b":{ENTRY}}}',
    "nul-byte-in-a-name": f'{{"a\0b":{ENTRY}}}',
    "line-feed-in-a-name": f'{{"a\nb":{ENTRY}}}',
    "tab-in-a-name": f'{{"a\tb":{ENTRY}}}',
    "unknown-escape": f'{{"\\x61":{ENTRY}}}',
    "short-unicode-escape": f'{{"\\u61":{ENTRY}}}',
    "lone-high-surrogate": f'{{"\\ud83d":{ENTRY}}}',
    "lone-low-surrogate": f'{{"\\ude00":{ENTRY}}}',
    "swapped-surrogates": f'{{"\\ude00\\ud83d":{ENTRY}}}',
    "two-high-surrogates": f'{{"\\ud83d\\ud83d":{ENTRY}}}',
}

IN_THE_ENTRY = {
    "no-colon": f'{{"a" {ENTRY}}}',
    "trailing-comma-in-shape": '{"a":{"dtype":"U8","shape":[1,],"data_offsets":[0,1]}}',
    "nan": '{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}',
    "infinity": '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,Infinity]}}',
    "hexadecimal": '{"a":{"dtype":"U8","shape":[0x1],"data_offsets":[0,1]}}',
    "leading-zero": '{"a":{"dtype":"U8","shape":[01],"data_offsets":[0,1]}}',
    "plus-sign": '{"a":{"dtype":"U8","shape":[+1],"data_offsets":[0,1]}}',
    "underscore-in-a-number": '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,0_1]}}',
}


def cases() -> Iterator[Case]:
    for name, header in WITHOUT_TENSORS.items():
        yield Case(name, file(header), "header is not valid: ")
    for name, header in BETWEEN_ENTRIES.items():
        yield Case(name, file(header, b"x"), "header is not valid: ")
    for name, header in IN_THE_ENTRY.items():
        yield Case(name, file(header, b"x"), "header is not valid: ", "a")
