"""PyTorch files that somebody unpacked and zipped again, or padded, or wrote with Python 2."""

from __future__ import annotations

import random
import struct
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from attacks.pytorch import program as p
from attacks.pytorch.archive import archive
from attacks.pytorch.builder import counted, entries, legacy, zipped
from pytorch_files import load_by_torch
from values import assert_alike

import veturboio

STATE = {
    "w": torch.arange(300_000.0).reshape(300, 1000),
    "t": torch.arange(12, dtype=torch.int16).reshape(3, 4).t(),
    "zeros": torch.zeros(3 << 20),
    "empty": torch.empty(0, 4),
    "n": {"inner": torch.rand(5000).bfloat16(), "list": [1, 2.5, "x"]},
}


def rezipped(path: Path, to: Path, method: int = zipfile.ZIP_DEFLATED, some: bool = False) -> Path:
    """Write the archive again, all of it deflated or every other entry."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", method) as new:
        for index, name in enumerate(old.namelist()):
            plain = some and index % 2 == 0
            new.writestr(name, old.read(name), zipfile.ZIP_STORED if plain else method)
    return to


@pytest.fixture(params=[False, True], ids=["all", "some"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.save(STATE, tmp_path / "a.pt")
    return rezipped(tmp_path / "a.pt", tmp_path / "b.pt", some=request.param)


@pytest.fixture(autouse=True)
def _natively(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """torch's reader is not asked, except where it is compared."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("torch.load is asked")

    if "by_torch" not in request.keywords:
        monkeypatch.setattr("veturboio._fallback.load", refuse)


@pytest.mark.parametrize("way", ["map", "read", "direct", "uring", None])
def test_deflated_entries(file: Path, way: str | None) -> None:
    assert_alike(veturboio.load(file, way=way), STATE, storages=False)
    assert_alike(veturboio.load(file, way=way, num_thread=1), STATE, storages=False)


def test_parts_of_deflated_entries(file: Path) -> None:
    names = ["n.inner", "w", "t"]
    cut = {"w": (slice(10, 20), slice(5, None)), "t": slice(1, 3)}
    loaded = veturboio.load(file, names=names, slices=cut)
    assert torch.equal(loaded["n.inner"], STATE["n"]["inner"])
    assert torch.equal(loaded["w"], STATE["w"][10:20, 5:])
    assert torch.equal(loaded["t"], STATE["t"][1:3])
    half = veturboio.load(file, names=names, dtype=torch.float16)
    assert torch.equal(half["w"], STATE["w"].half())
    meta = veturboio.load(file, map_location="meta")
    assert meta["w"].shape == STATE["w"].shape


def test_deflated_entries_fill_tensors(tmp_path: Path) -> None:
    state = {"a": torch.arange(3_000_000.0), "b": torch.arange(7).float().reshape(7, 1)}
    torch.save(state, tmp_path / "a.pt")
    file = rezipped(tmp_path / "a.pt", tmp_path / "b.pt")
    targets = {name: torch.zeros_like(value) for name, value in state.items()}
    veturboio.load(file, state_dict=targets)
    assert_alike(targets, state, storages=False)


def test_a_damaged_byte_is_noticed(tmp_path: Path) -> None:
    chance = random.Random(0)
    state = {"w": torch.tensor([chance.random() for _ in range(5000)])}
    torch.save(state, tmp_path / "a.pt")
    file = rezipped(tmp_path / "a.pt", tmp_path / "b.pt")
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as opened:
        (entry,) = (e for e in opened.infolist() if e.filename.endswith("/data/0"))
    start = entry.header_offset + 30 + len(entry.filename)
    for at in range(start, start + entry.compress_size, entry.compress_size // 50):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(veturboio.FormatError, match=r"data/0.* (is|inflates|holds)"):
            veturboio.load(file)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_named(tmp_path: Path, method: int) -> None:
    torch.save(STATE, tmp_path / "a.pt")
    file = rezipped(tmp_path / "a.pt", tmp_path / "b.pt", method)
    with pytest.raises(veturboio.FormatError, match=f"compressed by method {method}"):
        veturboio.load(file)


@pytest.mark.parametrize("deflated", [False, True])
def test_entries_with_their_sizes_behind_them(tmp_path: Path, deflated: bool) -> None:
    """As zip writes to a pipe, where it cannot go back to the header."""

    class Pipe:
        def __init__(self, path: Path) -> None:
            self.file = path.open("wb")

        def write(self, data: bytes) -> int:
            return self.file.write(data)

        def flush(self) -> None:
            self.file.flush()

    torch.save(STATE, tmp_path / "a.pt")
    pipe: Any = Pipe(tmp_path / "b.pt")
    method = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(pipe, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    pipe.file.close()
    assert_alike(veturboio.load(tmp_path / "b.pt"), STATE, storages=False)


TAILS = [b"\n", b"\r\n", bytes(511), b"\0\1\2PK\3\4" * 100, b"x" * 65_000, b"PK\5"]


@pytest.mark.parametrize("tail", TAILS, ids=range(len(TAILS)))
def test_bytes_behind_an_archive(tmp_path: Path, tail: bytes) -> None:
    file = tmp_path / "a.pt"
    torch.save(STATE, file)
    whole = file.read_bytes()
    file.write_bytes(whole + tail)
    assert_alike(veturboio.load(file), STATE, storages=False)
    assert_alike(load_by_torch(file), STATE, storages=False)
    for cut in (1, 10, 21):
        file.write_bytes(whole[:-cut])
        with pytest.raises(veturboio.FormatError):
            veturboio.load(file)
    file.write_bytes(b"#!" + whole)
    with pytest.raises(veturboio.FormatError):
        veturboio.load(file)


def binstring(text: str) -> bytes:
    """A string of Python 2."""
    return b"U" + bytes([len(text.encode())]) + text.encode()


@pytest.mark.parametrize("pair", [p.items, p.listed], ids=["tuples", "lists"])
def test_an_ordered_dict_of_pairs(tmp_path: Path, pair: Any) -> None:
    file = tmp_path / "a.pt"
    pairs = [pair(binstring("é"), p.tensor(p.storage())), pair(binstring("n"), p.integer(3))]
    file.write_bytes(zipped(p.call(p.name("collections", "OrderedDict"), p.listed(*pairs))))
    loaded = veturboio.load(file)
    assert type(loaded) is OrderedDict
    assert list(loaded) == ["é", "n"]
    assert loaded["é"].tolist() == [1, 2, 3, 4]
    assert_alike(loaded, load_by_torch(file), storages=False)
    assert list(torch.ops.veturboio.load(str(file))) == ["é"]


def test_strings_with_surrogates(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    state = {"\ud800": 1, "w": torch.ones(2), "list": ["a\udfffb", "\ud83d\ude00"]}
    torch.save(state, file)
    assert_alike(veturboio.load(file), state, storages=False)


def test_plain_values_of_every_kind(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    text = "t" * 300
    state: dict[Any, Any] = {
        "ints": [0, -1, 255, 256, 65_536, -(1 << 31), 1 << 40, 1 << 62, -(1 << 63), 1 << 200],
        "floats": [0.0, -0.0, 1e300, float("inf"), 5e-324],
        "texts": [text, text, "", "é" * 200],
        "bytes": [b"", b"\0\xff" * 200, bytearray(b"abc")],
        "sets": [{1, 2}, frozenset({(1, "a"), frozenset()}), set()],
        "more": [None, True, 1 + 2j, torch.Size([2, 3]), torch.float8_e5m2, torch.device("cuda:1")],
        "counter": Counter("hello"),
        "ordered": OrderedDict([((1, 2), [()]), (None, {})]),
        7: {True: torch.nn.Parameter(torch.ones(2)), (1, (2, "x")): "deep"},
    }
    state["itself"] = state
    state["cycle"] = (state["ints"], [state["texts"]])
    state["texts"].append(state["cycle"])
    for protocol in (2, 4, 5):
        torch.save(state, file, pickle_protocol=protocol)
        loaded: Any = veturboio.load(file)
        assert loaded["itself"] is loaded
        assert loaded["texts"][-1] is loaded["cycle"]
        assert loaded["cycle"][0] is loaded["ints"]
        assert loaded["cycle"][1][0] is loaded["texts"]
        assert loaded["texts"][0] is loaded["texts"][1]
        assert type(loaded["counter"]) is Counter
        assert type(loaded[7][True]) is torch.nn.Parameter
        for key in state.keys() - {"itself", "cycle", "texts", 7}:
            assert loaded[key] == state[key], key
            assert [*map(type, loaded[key])] == [*map(type, state[key])]


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
def test_an_empty_storage_of_two_dtypes(tmp_path: Path, new: bool) -> None:
    """torch shares one storage without a byte among tensors whatever they are."""
    file, none = tmp_path / "a.pt", p.numbers(0)
    value = p.mapping(
        **{
            kind: p.tensor(p.storage(kind, elements=0, legacy=not new), shape=none)
            for kind in ("FloatStorage", "IntStorage", "BoolStorage", "LongStorage")
        }
    )
    if new:
        file.write_bytes(archive(entries(p.program(value), {"0": b""})))
    else:
        file.write_bytes(legacy(value, counted(b"", 0)))
    loaded = veturboio.load(file)
    assert [tensor.dtype for tensor in loaded.values()] == [
        torch.float32,
        torch.int32,
        torch.bool,
        torch.int64,
    ]
    assert_alike(loaded, load_by_torch(file), storages=False)
    assert veturboio.load(file, dtype=torch.float16)["FloatStorage"].dtype is torch.float16
    some = veturboio.load(file, names=["IntStorage"], slices={"IntStorage": slice(0, 1)})
    assert some["IntStorage"].shape == (0,)


def test_the_first_tensors_of_torch(tmp_path: Path) -> None:
    """``_rebuild_tensor``, as torch 0.3 wrote it."""
    file = tmp_path / "a.pt"
    parts = [p.storage(), p.integer(1), p.numbers(3), p.numbers(1)]
    file.write_bytes(zipped(p.mapping(a=p.call(p.name("torch._utils", "_rebuild_tensor"), *parts))))
    assert veturboio.load(file)["a"].tolist() == [2, 3, 4]
    data = struct.pack("<4f", 1, 2, 3, 4)
    stored = [p.storage(legacy=True), *parts[1:]]
    made = p.call(p.name("torch._utils", "_rebuild_tensor"), *stored)
    file.write_bytes(legacy(p.mapping(a=made), counted(data)))
    assert veturboio.load(file)["a"].tolist() == [2, 3, 4]
