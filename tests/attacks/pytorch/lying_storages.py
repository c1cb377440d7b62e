"""Storages that are not there, or are not what the pickle says of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from . import program as p
from .archive import archive
from .builder import FOUR, Case, entries, good_pickle, zipped

NO_STORAGE = "a tensor lies in what is no storage"


def cases() -> Iterator[Case]:
    missing = 'storage "0" is not among the entries'
    yield Case("not-there", archive(entries(good_pickle(), {})), missing)
    yield Case("under-another-key", archive(entries(good_pickle(), {"00": FOUR})), missing)
    for key in ("", "1", "../data/0", "/0", "0\0", "é", "0/0"):
        stored = p.tensor(p.storage(key=key))
        data = zipped(p.mapping(a=stored))
        # To torch a name ends at its first zero byte.
        yield Case(f"key-{key.encode().hex()}", data, "is not among", torch="\0" not in key)
    for size in (0, 15, 17, 32):
        data = archive(entries(good_pickle(), {"0": bytes(size)}))
        yield Case(f"{size}-bytes", data, f"has {size} bytes, not 16")
    for elements in (0, 3, 5, 2**40, 2**61 - 1):
        told = f"has 16 bytes, not {4 * elements}"
        yield _described(f"{elements}-elements", told, p.storage(elements=elements), size=0)
    for elements in (-1, -(2**31), -(2**63), 2**62, 2**63 - 1):
        told = f'storage "0" of {elements} elements'
        yield _described(f"{elements}-elements", told, p.storage(elements=elements), size=0)
    yield _described("2-to-64-elements", NO_STORAGE, p.storage(elements=2**64), size=0)

    short = p.tensor(p.storage("DoubleStorage", elements=2), shape=p.numbers(2))
    two = p.mapping(a=short, b=p.tensor(p.storage()))
    yield Case("of-two-dtypes", zipped(two), "reaches past its storage of 16 bytes")
    short = p.tensor(p.storage(elements=2), shape=p.numbers(2))
    two = p.mapping(a=p.tensor(p.storage()), b=short)
    yield Case("of-two-lengths", zipped(two), "is described in two ways", torch=False)
    yield from _not_a_storage()


def _not_a_storage() -> Iterator[Case]:
    parts = [p.text("storage"), p.name("torch", "FloatStorage"), p.text("0"), p.text("cpu")]
    four, persistent = p.integer(4), p.BINPERSID
    wrong = {
        "a-number": p.integer(0),
        "a-string": p.text("0"),
        "a-list": p.listed(*parts, four),
        "a-tuple": p.items(*parts, four),
        "persistent-too-short": p.items(*parts) + persistent,
        "persistent-empty": p.EMPTY_TUPLE + persistent,
        "persistent-of-another-tag": p.items(p.text("module"), *parts[1:], four) + persistent,
        "persistent-of-a-number-for-key": (
            p.items(parts[0], parts[1], p.integer(0), parts[3], four) + persistent
        ),
        "persistent-of-a-string-for-class": (
            p.items(parts[0], p.text("FloatStorage"), *parts[2:], four) + persistent
        ),
        "persistent-of-a-float-for-length": p.items(*parts, b"G" + struct.pack(">d", 4))
        + persistent,
        "persistent-of-a-persistent": p.storage() + persistent,
    }
    for name, stored in wrong.items():
        torch = name != "persistent-of-a-number-for-key"
        yield Case(name, zipped(p.mapping(a=p.tensor(stored))), NO_STORAGE, torch)
    sized = p.items(parts[0], p.name("torch", "Size"), *parts[2:], four) + persistent
    yield Case("persistent-of-another-class", zipped(p.mapping(a=p.tensor(sized))), NO_STORAGE)


def _described(name: str, reason: str, stored: bytes, size: int) -> Case:
    value = p.mapping(a=p.tensor(stored, shape=p.numbers(size)))
    return Case(name, zipped(value), reason)
