"""Check 4: the header is UTF-8, strictly: no surrogates, no overlong forms, no stray bytes."""

from collections.abc import Iterator

from .builder import Case, file

STRAYS = {
    "latin-1-name": b"\xe9",
    "lone-continuation": b"\x80",
    "surrogate": b"\xed\xa0\x80",
    "surrogate-pair": b"\xed\xa0\xbd\xed\xb8\x80",
    "overlong-slash": b"\xc0\xaf",
    "overlong-nul": b"\xc0\x80",
    "past-the-last-code-point": b"\xf4\x90\x80\x80",
    "cut-off-sequence": b"\xf0\x9f\x98",
    "byte-fe": b"\xfe",
}


def cases() -> Iterator[Case]:
    entry = b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    for name, stray in STRAYS.items():
        yield _case(name, b'{"' + stray + b'":' + entry + b"}", b"x")
    yield _case("in-metadata", b'{"__metadata__":{"a":"\xff"}}')
    yield _case("before-the-brace", b"\xff{}")
    yield _case("behind-the-brace", b"{}\xff")
    yield _case("utf-16", "{}".encode("utf-16"))
    sequence = "é".encode()
    yield _case("cut-by-the-header-length", b"{}" + sequence[:1], sequence[1:])


def _case(name: str, header: bytes, data: bytes = b"") -> Case:
    return Case(name, file(header, data), "header is not UTF-8")
