"""``use_direct_io``: past the page cache, and the same tensors whatever the file system says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attacks.builder import file, tensor
from conftest import Run
from probe import assert_same, maps_of

import veturboio

STATE = {
    "large": torch.arange(3_000_000),  # over two segments, and no whole number of pages
    "odd": torch.randn(1237),
    "bytes": torch.arange(11, dtype=torch.uint8),
    "nothing": torch.empty(0),
}


@pytest.mark.parametrize("save", [veturboio.save_file, torch.save], ids=["safetensors", "zip"])
@pytest.mark.parametrize("threads", [1, 32])
def test_the_same_tensors_without_a_map(
    tmp_path: Path, save: Callable[..., None], threads: int
) -> None:
    path = tmp_path / "model"
    save(STATE, path)
    loaded = veturboio.load(path, use_direct_io=True, num_thread=threads)
    assert_same(loaded, STATE)
    assert maps_of(path) == []
    veturboio.load(path)["odd"].add_(1)
    loaded["odd"].add_(1)
    assert_same(veturboio.load(path), STATE)


def test_the_operator_takes_it_too(tmp_path: Path) -> None:
    veturboio.save_file(STATE, tmp_path / "model")
    loaded = torch.ops.veturboio.load(str(tmp_path / "model"), use_direct_io=True)
    assert_same(loaded, STATE)
    assert maps_of(tmp_path / "model") == []


def test_the_page_cache_is_left_alone(tmp_path: Path, run: Run) -> None:
    """What the kernel counts as read from the disk is the whole file, though it is cached."""
    veturboio.save_file({"a": torch.zeros(2**22)}, tmp_path / "model")
    code = """
import veturboio
def read():
    return int(open("/proc/self/io").read().split("read_bytes: ")[1].split()[0])
veturboio.load("model")
before = read()
veturboio.load("model")
mapped = read()
veturboio.load("model", use_direct_io=True)
print(mapped - before, read() - mapped)
"""
    mapped_bytes, direct_bytes = map(int, run(code).split())
    if direct_bytes == 0:
        pytest.skip("this file system has no O_DIRECT, or no disk under it")
    assert mapped_bytes == 0
    assert direct_bytes >= 2**24


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 2**23 - 1, 2**23, 2**23 + 1])
@pytest.mark.parametrize("spaces", [0, 3])
def test_ends_that_are_no_pages(tmp_path: Path, length: int, spaces: int) -> None:
    data = bytes(i * 7 % 251 for i in range(length % 5000)) * (length // max(length % 5000, 1) + 1)
    data = data[:length].ljust(length, b"x")
    header = {"a": tensor("U8", [length], 0, length)}
    content = file(header, data)
    head = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + head] + b" " * spaces
    (tmp_path / "model").write_bytes(len(text).to_bytes(8, "little") + text + data)
    loaded = veturboio.load(tmp_path / "model", use_direct_io=True)
    assert bytes(loaded["a"].numpy()) == data


def test_where_it_is_refused_the_page_cache_serves(mount: Callable[[str], Path]) -> None:
    point = mount("size=64m")
    veturboio.save_file(STATE, point / "model")
    assert_same(veturboio.load(point / "model", use_direct_io=True), STATE)
