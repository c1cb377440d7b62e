"""Sound archives that are no checkpoints, or say impossible things of themselves."""

from __future__ import annotations

from collections.abc import Iterator

from .archive import Entry, archive
from .builder import Case, entries, good, good_pickle

NONE = "zip archive is no checkpoint of PyTorch"
ORDER = "byte order is neither little nor big"
CUT = "pickle is not valid at its byte 0: it is cut short"


def cases() -> Iterator[Case]:
    yield Case("empty-archive", archive([]), NONE)
    yield Case("empty-zip64-archive", archive([], zip64={}), "header length")
    yield Case("one-text", archive([Entry("notes.txt", b"nothing to load")]), NONE)
    yield Case("no-pickle", archive(good()[1:]), NONE)
    yield Case("pickle-without-a-directory", archive([Entry("data.pkl", good_pickle())]), NONE)
    deeper = entries(good_pickle(), root="one/two")
    yield Case("pickle-two-directories-deep", archive(deeper), NONE)
    for name, order in {"middle": b"middle", "none": b"", "newline": b"little\n"}.items():
        marked = [good()[0], Entry("archive/byteorder", order), *good()[2:]]
        yield Case(f"byte-order-{name}", archive(marked), ORDER)
    for name, version in {
        "future": b"11\n",
        "zero": b"0\n",
        "negative": b"-3\n",
        "word": b"three\n",
        "empty": b"",
        "huge": b"9" * 40,
    }.items():
        others = [entry for entry in good() if entry.name != "archive/version"]
        marked = [*others, Entry("archive/version", version)]
        yield Case(f"version-{name}", archive(marked), "of the format is unknown")
    unmarked = [entry for entry in good() if entry.name != "archive/version"]
    yield Case("version-missing", archive(unmarked), "of the format is unknown")
    twice = [*good(), *entries(good_pickle(), root="other")]
    yield Case("two-checkpoints", archive(twice), "holds two checkpoints")
    yield Case("empty-pickle", archive(entries(b"")), CUT)
