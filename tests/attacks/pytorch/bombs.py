"""Small files that would take a great deal of memory or time if they were believed.

They are made when they are asked for: the largest have 20 MB. Each has the refusal that it must
meet, or None where it may as well be read, as long as it is read within bounds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from . import program as p
from .archive import Entry, archive, listed_record, record
from .builder import entries, good_pickle, legacy, zipped
from .not_stored import deflated_entry
from .unknown_and_lying import with_storage

MANY = 20_000_000


class Bomb(NamedTuple):
    """How a file is made, and the text that its refusal must contain."""

    make: Callable[[], bytes]
    reason: str | None


def repeated(code: bytes, before: bytes = b"", after: bytes = b"") -> Callable[[], bytes]:
    """A checkpoint whose pickle does one thing twenty million times."""
    return lambda: archive(entries(p.program(before + code * (MANY // len(code)) + after)))


def doubling(leaf: bytes, depth: int, wide: int = 2) -> bytes:
    """Lists of lists: each holds the next one several times over."""
    value = leaf + p.put(0)
    for level in range(depth):
        value = p.listed(value, *[p.get(level)] * (wide - 1)) + p.put(level + 1)
    return value


def one_tensor() -> bytes:
    return p.tensor(p.storage())


def chained(depth: int, opening: bytes = p.EMPTY_LIST, closing: bytes = p.APPEND) -> bytes:
    """One container in another, as deep as it is long."""
    return opening * depth + p.NONE + closing * depth


def long_names() -> bytes:
    """A key of a mebibyte over a thousand tensors: their names together would have a gibibyte."""
    inner = p.mapping(**{f"t{i}": one_tensor() for i in range(1000)})
    return p.mapping(**{"k" * (1 << 20): inner})


def keys_on_keys() -> bytes:
    """Nested dicts whose keys are long, with a tensor at every depth."""
    value = p.mapping(leaf=one_tensor())
    for _ in range(300):
        value = p.mapping(**{"k" * 20_000: value, "t": one_tensor()})
    return value


def long_shape() -> bytes:
    ones = p.numbers(*[1] * 1_000_000)
    return zipped(p.mapping(a=p.tensor(p.storage(), p.integer(0), ones, ones)))


def long_name() -> bytes:
    return zipped(p.mapping(a=p.name("m" * 1_000_000, "a" * 1_000_000)))


def long_key() -> bytes:
    return zipped(p.mapping(a=p.tensor(p.storage(key="k" * 1_000_000))))


def long_entry() -> bytes:
    entry = Entry("\x01" * 65_535, b"x", listed={"method": 8})
    return archive([*entries(good_pickle()), entry, entry])


def many_entries() -> bytes:
    """A directory of two hundred thousand entries that all lie in one place."""
    one = listed_record(Entry("e", None), 0)
    first = archive([Entry("e")])[:31]
    end = {"here": 0xFFFF, "count": 0xFFFF, "size": len(one) * 200_000, "start": len(first)}
    closing = struct.pack("<I4H2IH", 0x0605_4B50, 0, 0, *end.values(), 0)
    wide = {"signature": 0x0606_4B50, "here": 200_000, "count": 200_000}
    layout = "I signature Q record_len H made_by H version I disk I start_disk"
    wide |= {"size": end["size"], "start": end["start"]}
    wide_record = record(f"{layout} Q here Q count Q size Q start", wide, {})
    at = len(first) + end["size"]
    locator = struct.pack("<IIQI", 0x0706_4B50, 0, at, 1)
    return first + one * 200_000 + wide_record + locator + closing


def stored_twice(count: int) -> bytes:
    """The old format: a small file whose keys name one storage over and over."""
    return legacy(keys=p.listed(*[p.text("0")] * count))


def only_torch() -> bytes:
    """A name that only torch knows, and a storage that grows to 100 MiB, as its length says."""
    size = 100 << 20
    tensor = p.tensor(p.storage(elements=size // 4))
    return with_storage(deflated_entry("archive/data/0", bytes(size)), tensor)


#: What the pickle machine does with them is the same by every door.
def one_key(key: bytes) -> bytes:
    """A dict of one key, which Python hashes with all that it holds."""
    return zipped(p.EMPTY_DICT + key + p.NONE + p.SETITEM)


def again(first: bytes, then: bytes, times: int) -> bytes:
    """A list of what is made over and over from one value, which stands under 0."""
    return zipped(first + p.put(0) + p.POP + p.listed(*[then] * times))


def alike(count: int) -> Iterator[bytes]:
    """Complex numbers that have one hash."""
    for n in range(count):
        real, imaginary = (struct.pack(">d", part) for part in (-1_000_003.0 * n, float(n)))
        yield p.call(p.name("builtins", "complex"), b"G" + real, b"G" + imaginary)


PICKLES = {
    "marks": Bomb(repeated(p.MARK), "the stack is empty"),
    "dups": Bomb(repeated(p.DUP, p.NONE), None),
    "nones": Bomb(repeated(p.NONE), None),
    "lists": Bomb(repeated(p.EMPTY_LIST), None),
    "dicts": Bomb(repeated(p.EMPTY_DICT), None),
    "lists-of-one": Bomb(repeated(b"]Na"), None),
    "integers": Bomb(repeated(b"K\1"), None),
    "memos": Bomb(repeated(b"\x94", p.NONE), None),
    "puts-and-pops": Bomb(repeated(b"N\x940"), None),
    "marks-in-tuples": Bomb(repeated(b"(t"), None),
    "one-list-of-many": Bomb(repeated(p.NONE, p.EMPTY_LIST + p.MARK, p.APPENDS), None),
}

BOMBS = {
    "a-key-of-doubled-tuples": Bomb(lambda: one_key(b"K\1" + (p.DUP + p.TUPLE2) * 60), "too large"),
    "a-key-of-nested-tuples": Bomb(
        lambda: one_key(p.EMPTY_TUPLE + p.TUPLE1 * 1_000_000), "too large"
    ),
    "a-name-over-and-over": Bomb(
        lambda: again(p.text("x" * 1_000_000), p.get(0) * 2 + b"\x93", 4000), "pickle uses"
    ),
    "a-size-over-and-over": Bomb(
        lambda: again(p.numbers(*[1] * 20_000), p.call(p.name("torch", "Size"), p.get(0)), 3000),
        "too often",
    ),
    "a-shape-over-and-over": Bomb(
        lambda: again(
            p.numbers(*[1] * 50_000),
            p.tensor(p.storage(), p.integer(0), p.get(0), p.get(0)),
            500,
        ),
        "too often",
    ),
    "an-id-over-and-over": Bomb(
        lambda: again(
            p.name("nobody", "Nothing") + p.POP + p.items(*[p.NONE] * 200_000),
            p.get(0) + p.BINPERSID,
            400_000,
        ),
        "nobody.Nothing",
    ),
    "arguments-over-and-over": Bomb(
        lambda: again(
            p.items(*[p.NONE] * 200_000),
            p.name("builtins", "set") + p.get(0) + p.REDUCE,
            200_000,
        ),
        "arguments",
    ),
    "a-long-key-of-storages": Bomb(
        lambda: again(
            p.text("k" * 1_000_000),
            p.items(
                p.text("storage"),
                p.name("torch", "FloatStorage"),
                p.get(0),
                p.text("cpu"),
                p.integer(4),
            )
            + p.BINPERSID,
            40_000,
        ),
        "is not among the entries",
    ),
    "keys-of-one-hash": Bomb(
        lambda: zipped(
            p.EMPTY_DICT
            + p.MARK
            + b"".join(p.integer((2**61 - 1) << n) + p.NONE for n in range(3, 900))
            + p.SETITEMS
        ),
        "have the same hash",
    ),
    "pairs-of-one-hash": Bomb(
        lambda: zipped(p.call(p.name("builtins", "set"), p.listed(*alike(10_000)))),
        "have the same hash",
    ),
    "a-key-over-and-over": Bomb(
        lambda: again(
            p.text("k" * 200_000),
            p.EMPTY_DICT + p.get(0) + p.tensor(p.storage()) + p.SETITEM,
            6000,
        ),
        None,
    ),
    "a-bytearray-of-a-gigabyte": Bomb(
        lambda: zipped(p.call(p.name("builtins", "bytearray"), p.integer(1 << 30))),
        "is given a length",
    ),
    "a-list-of-three-million": Bomb(
        lambda: zipped(p.EMPTY_LIST + p.MARK + p.NONE * 3_000_000 + p.APPENDS), None
    ),
    "doubled-strings": Bomb(lambda: zipped(doubling(p.text("laugh"), 60)), None),
    "doubled-tensors": Bomb(lambda: zipped(doubling(one_tensor(), 60)), None),
    "hundredfold-tensors": Bomb(lambda: zipped(doubling(one_tensor(), 10, wide=100)), None),
    "doubled-keys": Bomb(lambda: zipped(p.mapping(a=doubling(one_tensor(), 22))), None),
    "deep-lists": Bomb(lambda: zipped(chained(200_000)), None),
    "deep-tuples": Bomb(lambda: zipped(chained(200_000, b"", p.TUPLE1)), None),
    "deep-dicts": Bomb(lambda: zipped(chained(100_000, p.EMPTY_DICT + p.NONE, p.SETITEM)), None),
    "a-list-that-holds-itself": Bomb(
        lambda: zipped(p.EMPTY_LIST + p.put(0) + p.get(0) + p.APPEND), None
    ),
    "a-dict-that-holds-itself": Bomb(
        lambda: zipped(p.EMPTY_DICT + p.put(0) + p.text("a") + p.get(0) + p.SETITEM), None
    ),
    "long-names": Bomb(lambda: zipped(long_names()), None),
    "keys-on-keys": Bomb(lambda: zipped(keys_on_keys()), None),
    "a-shape-of-a-million": Bomb(long_shape, None),
    "a-name-of-a-million": Bomb(long_name, "pickle uses"),
    "a-key-of-a-million": Bomb(long_key, "is not among the entries"),
    "an-entry-name-of-64-kib": Bomb(long_entry, "zip entr"),
    "many-entries-in-one-place": Bomb(many_entries, "overlap"),
    "stored-over-and-over": Bomb(lambda: stored_twice(200_000), "is cut short"),
    "only-for-torch-and-compressed": Bomb(only_torch, None),
}
