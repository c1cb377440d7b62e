"""Files that name what only torch knows, and lie besides: torch must never be asked about them.

Given a lying archive, torch.load returns garbage without an error, or takes the memory that a
bomb asks for. So what is no plain checkpoint has to be sound before torch gets to see it. Which
of the two faults the refusal names is left open.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import program as p
from .archive import Entry, archive
from .builder import FOUR, Case, counted, entries, legacy
from .not_stored import deflated_entry


def layout() -> bytes:
    """What weights_only allows and this project gives no meaning."""
    return p.call(p.name("torch.serialization", "_get_layout"), p.text("torch.strided"))


def both(tensor: bytes) -> bytes:
    return p.mapping(c=layout(), a=tensor)


def with_storage(entry: Entry | None, tensor: bytes | None = None) -> bytes:
    """An archive whose one storage is ``entry``, or is not there."""
    pickle = p.program(both(p.tensor(p.storage()) if tensor is None else tensor))
    return archive([*entries(pickle, {}), *([] if entry is None else [entry])])


def cases() -> Iterator[Case]:
    name = "archive/data/0"
    damaged = deflated_entry(name, FOUR + FOUR)
    yield Case("compressed-storage-of-another-length", with_storage(damaged), "")
    encrypted = Entry(name, FOUR, {"flags": 1}, {"flags": 1})
    yield Case("encrypted-storage", with_storage(encrypted), "")
    yield Case("no-storage", with_storage(None), "")
    for size in (0, 15, 17):
        yield Case(f"storage-of-{size}-bytes", with_storage(Entry(name, bytes(size))), "")
    there = entries(p.program(both(p.tensor(p.storage()))))
    twice = archive([*there, Entry(name, FOUR)])
    yield Case("storage-twice", twice, "stands twice", torch=False)

    whole = legacy(both(p.tensor(p.storage(legacy=True))))
    for left in (1, 16):
        yield Case(f"legacy-without-its-last-{left}", whole[:-left], "")
    longer = legacy(both(p.tensor(p.storage(legacy=True))), counted(FOUR, 5))
    yield Case("legacy-of-another-length", longer, "")
    large = p.tensor(p.storage(elements=2**40, legacy=True))
    yield Case("legacy-of-4-tebibytes", legacy(both(large), counted(FOUR, 2**40)), "")
