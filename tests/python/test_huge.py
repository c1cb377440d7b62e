"""Beyond what 32 bits count: files, tensors, headers. Files are sparse, and cost no disk."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from attacks.builder import prefix, tensor
from circumstances import every_way
from probe import assert_same, bits, maps_of

import veturboio

GIB = 2**30

#: Seconds; what is quadratic in a million takes hours.
PATIENCE = 120

ROOT = Path(__file__).resolve().parents[2]

#: A row more than 2^31 elements, and the last one ends beyond 6 GiB of the file.
ROWS, COLUMNS = 2**20 + 1, 2049
WIDE, LONG = 2**31 + 11, 2 * ROWS * COLUMNS


def size_of(value: torch.Tensor) -> int:
    return value.numel() * value.element_size()


def told_by(file: str, key: str) -> int:
    """A number of bytes that the kernel tells in kB."""
    return int(Path(file).read_text().split(f"{key}:")[1].split()[0]) * 1024


def peak_of(act: Callable[[], object]) -> int:
    """Bytes that the process grows by meanwhile, at most."""
    Path("/proc/self/clear_refs").write_text("5")
    before = told_by("/proc/self/status", "VmRSS")
    act()
    return told_by("/proc/self/status", "VmHWM") - before


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Zeros, but for the ends of each tensor."""
    path = tmp_path_factory.mktemp("sparse") / "model.safetensors"
    header: dict[str, Any] = {
        "wide": tensor("U8", [WIDE], 0, WIDE),
        "long": tensor("BF16", [ROWS, COLUMNS], WIDE + 1, WIDE + 1 + LONG),
        "pad": tensor("U8", [1], WIDE, WIDE + 1),
        "last": tensor("I64", [3], WIDE + 1 + LONG, WIDE + 1 + LONG + 24),
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    path.write_bytes(prefix(len(text)) + text)
    os.truncate(path, start + WIDE + 1 + LONG + 24)
    ends = {
        0: b"\1\2\3",
        WIDE - 3: b"\4\5\6",
        WIDE + 1: bits(torch.arange(COLUMNS).bfloat16()),
        WIDE + 1 + LONG - 2 * COLUMNS: bits(torch.arange(COLUMNS).neg().bfloat16()),
        WIDE + 1 + LONG: bits(torch.tensor([2**40, -1, 5])),
    }
    with path.open("r+b") as file:
        for offset, data in ends.items():
            file.seek(start + offset)
            file.write(data)
    assert path.stat().st_size > 6 * GIB
    return path


def test_what_a_huge_file_holds(sparse: Path) -> None:
    meta = veturboio.load(sparse, map_location="meta")
    assert {name: tuple(value.shape) for name, value in meta.items()} == {
        "wide": (WIDE,),
        "pad": (1,),
        "long": (ROWS, COLUMNS),
        "last": (3,),
    }
    assert f" {WIDE + 1 + LONG + 24} bytes " in veturboio.explain(sparse)


@every_way
def test_parts_deep_inside(sparse: Path, way: str) -> None:
    """Of a file of six gigabytes, only what is asked for comes into memory."""
    ends = torch.arange(COLUMNS).bfloat16()

    def load() -> None:
        slices = {"wide": slice(-3, None), "long": (slice(-2, None), slice(5, None))}
        loaded = veturboio.load(sparse, way=way, slices=slices)
        expected = torch.stack([torch.zeros_like(ends), -ends])[:, 5:]
        assert_same(
            loaded,
            {
                "wide": torch.tensor([4, 5, 6], dtype=torch.uint8),
                "pad": torch.zeros(1, dtype=torch.uint8),
                "long": expected,
                "last": torch.tensor([2**40, -1, 5]),
            },
        )
        loaded = veturboio.load(sparse, way=way, names=["long"], slices={"long": slice(1)})
        assert_same(loaded, {"long": ends.view(1, COLUMNS)})
        loaded = veturboio.load(
            sparse, way=way, names=["wide"], slices={"wide": slice(2**31 - 2, 2**31 + 2)}
        )
        assert_same(loaded, {"wide": torch.zeros(4, dtype=torch.uint8)})
        column = {"long": (slice(ROWS - 3000, None), slice(-1, None))}
        loaded = veturboio.load(sparse, way=way, names=["long"], slices=column)
        assert loaded["long"].view(-1)[-2:].tolist() == [0, float(-ends[-1])]

    assert peak_of(load) < 128 * 2**20


@pytest.mark.parametrize("way", ["map", "direct"])
def test_a_tensor_of_more_than_two_billion_elements(sparse: Path, way: str) -> None:
    if told_by("/proc/meminfo", "MemAvailable") < 4 * GIB:
        pytest.skip("there are no 4 GiB of memory")
    loaded = veturboio.load(sparse, way=way, names=["wide"])["wide"]
    assert loaded.shape == (WIDE,)
    assert loaded[:4].tolist() == [1, 2, 3, 0]
    assert loaded[-4:].tolist() == [0, 4, 5, 6]
    assert bool(maps_of(sparse)) == (way == "map")


@pytest.fixture
def roomy() -> Iterator[Path]:
    """A directory where twelve gigabytes are free."""
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    if shutil.disk_usage(build).free < 12 * GIB:
        pytest.skip("there are no 12 GiB free")
    with TemporaryDirectory(dir=build) as directory:
        yield Path(directory)


def test_a_file_of_more_than_four_gigabytes_is_saved(roomy: Path) -> None:
    """From tensors that take next to no memory, through a few segments of it."""
    path = roomy / "model.safetensors"
    row = torch.arange(2**21).bfloat16()
    state = {
        "wide": torch.tensor([7], dtype=torch.uint8).expand(2**31 + 3),
        "long": row.expand(2**9 + 1, 2**21),
        "last": torch.arange(3),
    }
    told: list[tuple[int, int]] = []
    veturboio.save_file(state, path, progress=lambda *now: told.append(now))
    size = path.stat().st_size
    assert size > 4 * GIB
    assert size - sum(size_of(value) for value in state.values()) < 1000
    assert told[-1] == (size, size)
    slices = {"wide": slice(2**31 - 5, None), "long": slice(-1, None)}
    loaded = veturboio.load(path, slices=slices)
    assert_same(
        loaded,
        {"wide": state["wide"][-8:].clone(), "long": row.view(1, -1), "last": state["last"]},
    )


COUNT = 1_000_000


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A million tensors of a byte."""
    path = tmp_path_factory.mktemp("crowded") / "model.safetensors"
    entries = ",".join(
        f'"t{i:07}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i in range(COUNT)
    )
    text = f"{{{entries}}}".encode()
    data = torch.arange(COUNT).remainder(251).to(torch.uint8)
    path.write_bytes(prefix(len(text)) + text + bits(data))
    return path


def test_a_million_tensors(crowded: Path) -> None:
    start = time.monotonic()
    meta = veturboio.load(crowded, map_location="meta")
    assert len(meta) == COUNT
    del meta
    loaded = veturboio.load(crowded)
    assert len(loaded) == COUNT
    assert list(loaded)[:: COUNT - 1] == ["t0000000", f"t{COUNT - 1:07}"]
    for number in range(0, COUNT, 9973):
        assert loaded[f"t{number:07}"].item() == number % 251
    assert time.monotonic() - start < PATIENCE


def test_a_few_of_a_million_tensors(crowded: Path) -> None:
    start = time.monotonic()
    names = [f"t{number:07}" for number in range(COUNT - 1, 0, -99_991)]
    loaded = veturboio.load(crowded, names=names, slices={names[0]: slice(0, 0)})
    assert list(loaded) == names
    assert loaded[names[0]].shape == (0,)
    assert [value.item() for value in list(loaded.values())[1:]] == [
        int(name[1:]) % 251 for name in names[1:]
    ]
    assert time.monotonic() - start < PATIENCE


def test_a_hundred_thousand_tensors_are_saved(tmp_path: Path) -> None:
    """Parts of one storage, of which each has to be told from all others."""
    start = time.monotonic()
    base = torch.arange(100_000)
    state = {f"{number}": part for number, part in enumerate(base.split(1))}
    veturboio.save_file(state, tmp_path / "model")
    saved = veturboio.save_file(state, tmp_path / "later", wait=False)
    assert saved is not None
    saved.result()
    assert time.monotonic() - start < PATIENCE
    assert (tmp_path / "later").read_bytes() == (tmp_path / "model").read_bytes()
    loaded = veturboio.load(tmp_path / "model", names=["99999", "5"])
    assert [value.item() for value in loaded.values()] == [99_999, 5]
