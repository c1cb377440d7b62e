"""Pickles that are no programs: cut short, taking from an empty stack, in unknown instructions."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from . import program as p
from .archive import archive
from .builder import Case, entries, good_pickle

CUT, EMPTY = "it is cut short", "the stack is empty"
WHOLE = good_pickle()


def cases() -> Iterator[Case]:
    for size in (1, 2, 3, 8, len(WHOLE) // 2, len(WHOLE) - 2, len(WHOLE) - 1):
        yield _case(f"cut-after-{size}", CUT, WHOLE[:size])
    yield from _lengths()
    yield from _stack()
    yield from _instructions()
    yield from _values()


def _lengths() -> Iterator[Case]:
    """Counts of bytes that are not there."""
    for name, code in {
        "string": b"X\xff\xff\xff\xff",
        "short-string": b"\x8c\xff",
        "long-string": b"\x8d" + b"\xff" * 8,
        "string-of-2-to-63": b"\x8d" + struct.pack("<Q", 2**63),
        "string-of-8-gib": b"\x8d" + struct.pack("<Q", 2**33),
        "old-string": b"T\xff\xff\xff\x7f",
        "bytes": b"B\xff\xff\xff\xff",
        "short-bytes": b"C\xff",
        "long-bytes": b"\x8e" + b"\xff" * 8,
        "bytearray": b"\x96" + b"\xff" * 8,
        "integer": b"\x8a\xff",
        "long-integer": b"\x8b\xff\xff\xff\x7f",
        "frame": b"\x95\1",
        "float": b"G\0\0",
        "name": b"ctorch",
        "name-without-attribute": b"ctorch\nSize",
    }.items():
        yield _case(f"{name}-past-the-end", CUT, p.PROTO + code)


def _stack() -> Iterator[Case]:
    for name, code in {
        "stop": b".",
        "pop": p.POP,
        "dup": p.DUP,
        "reduce": p.REDUCE,
        "reduce-of-one": p.EMPTY_TUPLE + p.REDUCE,
        "build": p.NONE + p.BUILD,
        "append": p.NONE + p.APPEND,
        "setitem": p.EMPTY_DICT + p.NONE + p.SETITEM,
        "persistent": p.BINPERSID,
        "tuple-of-one": p.TUPLE1,
        "tuple-of-two": p.NONE + p.TUPLE2,
        "put": p.put(0),
        "memoize": b"\x94",
        "stack-global": p.text("torch") + b"\x93",
        "stop-above-a-mark": p.NONE + p.MARK,
        "appends-without-a-list": p.MARK + p.NONE + p.APPENDS,
    }.items():
        yield _case(f"empty-{name}", EMPTY, p.PROTO + code + p.STOP)
    for name, code in {
        "tuple": p.TUPLE,
        "appends": p.EMPTY_LIST + p.APPENDS,
        "setitems": p.EMPTY_DICT + p.SETITEMS,
        "list": b"l",
        "dict": b"d",
        "frozenset": b"\x91",
        "pop-mark": b"1",
    }.items():
        yield _case(f"no-mark-{name}", "no mark is set", p.PROTO + code + p.STOP)
    for name, code in {"get": b"h\0", "long-get": p.get(2**32 - 1), "not-this": p.put(1)}.items():
        rest = p.get(2) if name == "not-this" else b""
        yield _case(f"no-memo-{name}", "nothing is remembered as", p.program(p.NONE + code + rest))


def _instructions() -> Iterator[Case]:
    """Those of protocol 0, of extension registries and of classes, and those that do not exist."""
    for code in b"FILPSVgpio\x82\x83\x84\x97\x98\0\xff\n":
        named = f"instruction 0x{code:02x} is none"
        yield _case(f"instruction-{code:02x}", named, p.PROTO + bytes([code]) + b"0\n0\n.")


def _values() -> Iterator[Case]:
    long = b"\x8b" + struct.pack("<i", 1 << 20) + bytes(1 << 20)
    yield _case("integer-of-a-mebibyte", "an integer has 1048576 bytes", p.program(long))
    negative = b"\x8b" + struct.pack("<i", -1)
    yield _case("integer-of-minus-one-bytes", CUT, p.program(negative))
    yield _case("string-that-is-not-utf-8", "not UTF-8", p.program(b"X\2\0\0\0\xff\xff"))
    half = b"X\2\0\0\0\xed\xa0"
    yield _case("string-with-half-a-surrogate", "not UTF-8", p.program(half))
    yield _case("name-that-is-not-utf-8", "not UTF-8", p.program(b"c\xff\n\xff\n"))
    half = p.EMPTY_DICT + p.MARK + p.NONE + p.SETITEMS
    yield _case("key-without-value", "a key has no value", p.program(half))
    kinds = "items are put into what holds none of their kind"
    for name, code in {
        "append-to-a-dict": p.EMPTY_DICT + p.NONE + p.APPEND,
        "append-to-a-tuple": p.EMPTY_TUPLE + p.NONE + p.APPEND,
        "item-of-a-list": p.EMPTY_LIST + p.NONE + p.NONE + p.SETITEM,
        "item-of-none": p.NONE + p.NONE + p.NONE + p.SETITEM,
    }.items():
        yield _case(name, kinds, p.program(code))
    state = "a state is given to what has none"
    for name, code in {"dict": p.EMPTY_DICT, "list": p.EMPTY_LIST, "none": p.NONE}.items():
        yield _case(f"state-of-a-{name}", state, p.program(code + p.EMPTY_DICT + p.BUILD))
    arguments = "the arguments of a call are not a tuple"
    size = p.name("torch", "Size")
    yield _case(
        "call-with-a-list", arguments, p.program(size + p.EMPTY_LIST + p.REDUCE), torch=False
    )
    imported = p.integer(1) + p.integer(2) + b"\x93"
    yield _case("imported-number", "an imported name is not a string", p.program(imported))


def _case(name: str, reason: str, pickle: bytes, torch: bool = True) -> Case:
    return Case(name, archive(entries(pickle)), reason, torch)
