"""Damages small PyTorch files at random, and asks both readers about what is left of them.

``run`` is called in a process of its own, so that a crash is a failed test and no more.
"""

from __future__ import annotations

import io
import json
import random
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attacks.pytorch.archive import Entry, archive
from pytorch_files import load_by_torch
from values import assert_alike

import veturboio

#: Bytes that mean something in a pickle or in a zip record.
TELLING = b"(.012JKMNQRXabcehjlqrstu\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x94\x95\0\1\x7f\xff"

#: Numbers that fields of zip records are replaced with.
NUMBERS = [0, 1, 8, 22, 30, 46, 0x7FFF, 0xFFFF]


def sources() -> list[Callable[[random.Random], bytes]]:
    """What makes the damaged files: whole bytes are hit, or parts that still fit together."""
    base = torch.arange(6.0)
    values: list[Any] = [
        {"a": base, "b": base.view(2, 3)[:, 1:], "n": [1, (2.5, None), "text"]},
        OrderedDict([("p", torch.nn.Parameter(torch.rand(2, 2))), ("i", torch.arange(3))]),
        {"h": torch.rand(2).half(), "u": torch.tensor([1, 2], dtype=torch.uint16), 3: {4}},
        torch.nn.Linear(2, 2).state_dict(),
        [],
    ]
    files = [saved(value, new) for value in values for new in (True, False)]
    archives = [unpacked(file) for file in files if file.startswith(b"PK")]
    return [
        *(lambda chance, file=file: mutated(chance, file) for file in files),
        *(lambda chance, parts=parts: rebuilt(chance, parts) for parts in archives),
    ]


def saved(value: Any, new: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def unpacked(file: bytes) -> list[Entry]:
    reader = torch._C.PyTorchFileReader(io.BytesIO(file))
    return [Entry(f"archive/{name}", reader.get_record(name)) for name in reader.get_all_records()]


def mutated(chance: random.Random, source: bytes) -> bytes:
    """One to three small damages anywhere."""
    data = bytearray(source)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        place, length = chance.randrange(len(data) + 1), chance.randrange(1, 9)
        match chance.randrange(6):
            case 0 if place < len(data):
                data[place] ^= 1 << chance.randrange(8)
            case 1 if place < len(data):
                data[place] = chance.choice(TELLING)
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = data[place : place + length]
            case 4:
                data[place : place + length] = chance.randbytes(length)
            case 5 if chance.random() < 0.2:
                del data[place:]
        if not data:
            return b"\0"
    return bytes(data)


def rebuilt(chance: random.Random, entries: list[Entry]) -> bytes:
    """An archive with a damaged pickle, or with a field or an entry that is not what it was."""
    entries = list(entries)
    at = chance.randrange(len(entries))
    match chance.randrange(5):
        case 0 | 1:
            (at,) = (n for n, entry in enumerate(entries) if entry.name.endswith("/data.pkl"))
            entries[at] = entries[at]._replace(data=mutated(chance, entries[at].data))
        case 2:
            fields = ["flags", "method", "packed", "size", "name_len", "extra_len"]
            said = {chance.choice(fields): chance.choice(NUMBERS)}
            which = chance.choice(["local", "listed"])
            entries[at] = entries[at]._replace(**{which: said})
        case 3:
            entries[at] = entries[at]._replace(data=mutated(chance, entries[at].data or b"x"))
        case 4:
            entries.insert(chance.randrange(len(entries)), entries.pop(at))
    field = chance.choice(["disk", "here", "count", "size", "start", "comment_len"])
    end = {field: chance.choice(NUMBERS)} if chance.random() < 0.1 else {}
    return archive(entries, end=end, zip64=chance.choice([None, {}]))


def ours(path: Path) -> Any:
    try:
        return veturboio.load(path)
    except veturboio.FormatError as refusal:
        assert str(refusal).startswith(f"read {path}: "), refusal
        assert len(str(refusal)) < 10_000
        return refusal


def theirs(path: Path) -> Any:
    try:
        return load_by_torch(path)
    except Exception as refusal:
        return refusal


def flat(path: Path) -> None:
    """The operator may refuse what Python loads, in words."""
    try:
        torch.ops.veturboio.load(str(path))
    except ValueError as refusal:
        assert f"read {path}: " in str(refusal)


def assert_either(one: Any, other: Any, path: Path) -> None:
    """torch gives memory that it never filled where an entry is marked as a directory."""
    try:
        assert_alike(one, other)
    except AssertionError:
        assert_alike(one, load_by_torch(path, mmap=True))


def run(directory: str, seed: int, count: int) -> None:
    """Prints how often each pair of outcomes came about, as JSON."""
    warnings.simplefilter("ignore")
    chance, makers = random.Random(seed), sources()
    path = Path(directory) / f"mutated-{seed}.pt"  # stays where it is if the process dies
    outcomes: Counter[str] = Counter()
    for number in range(count):
        path.write_bytes(chance.choice(makers)(chance))
        one, other = ours(path), theirs(path)
        refused = isinstance(one, veturboio.FormatError), isinstance(other, Exception)
        if refused == (False, False):
            try:
                assert_either(one, other, path)
            except AssertionError as difference:
                raise AssertionError(f"file {number} of seed {seed}") from difference
        flat(path)
        outcomes[{(0, 0): "both", (0, 1): "ours", (1, 0): "theirs", (1, 1): "none"}[refused]] += 1
    print(json.dumps(outcomes))
