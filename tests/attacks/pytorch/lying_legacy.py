"""Files of the format before torch 1.6: cut short, or at odds with themselves."""

from __future__ import annotations

from collections.abc import Iterator

from . import program as p
from .builder import FOUR, Case, counted, legacy

WHOLE = legacy()
STORED = len(counted())
CUT = "it is cut short"
KEYS = "the keys of the storages are no list of strings"
FACTS = "byte order of the writing machine is not told"


def cases() -> Iterator[Case]:
    pickles = len(WHOLE) - STORED
    for size in (15, 16, 20, 40, pickles // 2, pickles - 1):
        yield Case(f"cut-after-{size}", WHOLE[:size], CUT)
    for size in (1, STORED - 8, STORED - 7, STORED):
        yield Case(f"without-its-last-{size}", WHOLE[:-size], 'storage "0" is cut short')

    version = "version of the old format is unknown"
    for name, value in {
        "1000": p.integer(1000),
        "string": p.text("1001"),
        "negative": p.integer(-1001),
        "none": p.NONE,
    }.items():
        yield Case(f"version-{name}", legacy(version=value), version)
    yield Case("facts-none", legacy(facts=p.NONE), FACTS, torch=False)
    yield Case("facts-empty", legacy(facts=p.EMPTY_DICT), FACTS, torch=False)
    told = p.mapping(little_endian=p.integer(1))
    yield Case("facts-a-number", legacy(facts=told), FACTS, torch=False)

    for name, keys in {
        "none": p.NONE,
        "dict": p.EMPTY_DICT,
        "numbers": p.listed(p.integer(0)),
        "tuple": p.items(p.text("0")),
        "string": p.text("0"),
    }.items():
        torch = name not in ("dict", "tuple", "string")
        yield Case(f"keys-{name}", legacy(keys=keys), KEYS, torch=torch)
    no_keys = p.EMPTY_LIST
    yield Case("keys-empty", legacy(keys=no_keys), "is described but not stored", torch=False)
    more = p.listed(p.text("0"), p.text("1"))
    yield Case("keys-of-nobody", legacy(keys=more), 'storage "1" is stored but never described')
    yield from _counts()
    bad = p.mapping(a=p.tensor(p.storage(legacy=True), shape=p.numbers(5)))
    yield Case("tensor-past-its-storage", legacy(bad), "reaches past its storage of 16 bytes")
    viewed = p.items(p.text("storage"), p.name("torch", "FloatStorage"), p.text("0"), p.text("cpu"))
    view = viewed[:-1] + p.integer(4) + p.numbers(1, 2, 3) + p.TUPLE + p.BINPERSID
    yield Case("view-of-a-storage", legacy(p.mapping(a=p.tensor(view))), "", unknown=True)


def _counts() -> Iterator[Case]:
    other = "is stored in another length than described"
    for elements in (0, 3, 5, -1, 2**61, 2**63 - 1):
        yield Case(f"count-{elements}", legacy(stored=counted(FOUR, elements)), other)
    for elements in (5, 2**20, 2**40, 2**61 - 1):
        stored = p.storage(elements=elements, legacy=True)
        value = p.mapping(a=p.tensor(stored))
        data = legacy(value, counted(FOUR, elements))
        yield Case(f"described-and-counted-{elements}", data, 'storage "0" is cut short')
    for elements in (-1, 2**62, 2**63 - 1):
        stored = p.storage(elements=elements, legacy=True)
        reason = f'storage "0" of {elements} elements'
        yield Case(f"described-{elements}", legacy(p.mapping(a=p.tensor(stored))), reason)
