"""A small assembler of pickles: each function returns the instructions that push one value.

Nothing is checked, so the programs can be as wrong as they like. Names of instructions are those of
CPython's ``pickletools``.
"""

from __future__ import annotations

import struct

PROTO, STOP = b"\x80\x02", b"."
MARK, POP, DUP, REDUCE, BUILD, NEWOBJ = b"(", b"0", b"2", b"R", b"b", b"\x81"
NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"
APPEND, APPENDS, SETITEM, SETITEMS = b"a", b"e", b"s", b"u"
EMPTY_LIST, EMPTY_DICT, EMPTY_TUPLE, TUPLE = b"]", b"}", b")", b"t"
TUPLE1, TUPLE2, BINPERSID = b"\x85", b"\x86", b"Q"


def program(value: bytes) -> bytes:
    """A whole pickle that builds one value."""
    return PROTO + value + STOP


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    width = (value if value >= 0 else ~value).bit_length() // 8 + 1
    encoded = value.to_bytes(width, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def name(module: str, attribute: str) -> bytes:
    """Imports a name."""
    return f"c{module}\n{attribute}\n".encode()


def items(*values: bytes) -> bytes:
    """A tuple."""
    return MARK + b"".join(values) + TUPLE


def listed(*values: bytes) -> bytes:
    return EMPTY_LIST + MARK + b"".join(values) + APPENDS


def mapping(**values: bytes) -> bytes:
    """A dict with strings for keys."""
    pairs = b"".join(text(key) + value for key, value in values.items())
    return EMPTY_DICT + MARK + pairs + SETITEMS


def call(callable_: bytes, *arguments: bytes) -> bytes:
    return callable_ + items(*arguments) + REDUCE


def put(index: int) -> bytes:
    """Remembers the value on top of the stack."""
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    """Pushes a value that was remembered."""
    return b"j" + struct.pack("<I", index)


def ordered() -> bytes:
    """An empty OrderedDict."""
    return call(name("collections", "OrderedDict"))


def storage(
    kind: str = "FloatStorage",
    key: str = "0",
    elements: int = 4,
    location: str = "cpu",
    legacy: bool = False,
) -> bytes:
    """A storage as torch.save names it; the old format adds what it is a view of."""
    parts = [text("storage"), name("torch", kind), text(key), text(location), integer(elements)]
    return items(*parts, *([NONE] if legacy else [])) + BINPERSID


def numbers(*values: int) -> bytes:
    """A tuple of integers."""
    return items(*(integer(value) for value in values))


def tensor(
    stored: bytes,
    offset: bytes = integer(0),
    shape: bytes = numbers(4),
    strides: bytes = numbers(1),
    requires_grad: bytes = FALSE,
    *more: bytes,
    rebuild: str = "_rebuild_tensor_v2",
) -> bytes:
    """A tensor as torch.save writes it."""
    arguments = [stored, offset, shape, strides, requires_grad, ordered(), *more]
    return call(name("torch._utils", rebuild), *arguments)
