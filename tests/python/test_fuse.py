"""Loads from a file system whose every read takes its time, fails, or finds the file cut short."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from circumstances import every_way, nothing_left
from probe import assert_same, maps_of
from slowfs import Mount, mounted, unavailable

import veturboio

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

MIB = 2**20

STATE = {
    "large": torch.arange(3 * 2**20 + 11, dtype=torch.int32),
    "odd": torch.randn(1237),
    "half": torch.randn(300, 7).bfloat16(),
    "turned": torch.arange(600_000).view(600, 1000).t(),
    "nothing": torch.empty(0, 3),
}

Slow = Callable[..., AbstractContextManager[Mount]]


def old(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What is mirrored; the file ``model`` in it has three segments and a bit."""
    (tmp_path / "source").mkdir()
    veturboio.save_file(STATE, tmp_path / "source" / "model")
    return tmp_path / "source"


@pytest.fixture
def slow(source: Path, tmp_path: Path) -> Slow:
    """Mirrors ``source``, so slowly."""
    (tmp_path / "mount").mkdir()

    def mirror(**options: Any) -> AbstractContextManager[Mount]:
        return mounted(source, tmp_path / "mount", **options)

    return mirror


@every_way
@pytest.mark.parametrize("direct_io", [False, True], ids=["cached", "uncached"])
def test_every_way_loads_the_same(source: Path, slow: Slow, way: str, direct_io: bool) -> None:
    torch.save(STATE, source / "zip")
    old(STATE, source / "old")
    with slow(direct_io=direct_io) as mount:
        for name in ("model", "zip", "old"):
            for threads in (1, 32):
                loaded = veturboio.load(mount.path / name, way=way, num_thread=threads)
                assert_same(loaded, STATE)
        part = veturboio.load(mount.path / "model", way=way, slices={"large": slice(-7, None)})
        assert_same(part, {**STATE, "large": STATE["large"][-7:]})
        targets = {name: torch.empty_like(value) for name, value in STATE.items()}
        targets["turned"] = targets["turned"].contiguous()
        assert_same(veturboio.load(mount.path / "model", way=way, state_dict=targets), STATE)
        del loaded, part


def test_where_requests_take_their_time_many_are_under_way(source: Path, slow: Slow) -> None:
    """And each asks for as much as the file system gives at once; nothing comes twice."""
    veturboio.save_file({"a": torch.zeros(32 * MIB, dtype=torch.uint8)}, source / "large")
    with slow(delay_ms=30) as mount:
        path = mount.path / "large"
        sentence = veturboio.explain(path)
        assert ": direct, " in sentence
        assert ", 32 at a time, because " in sentence
        assert "each request to FUSE takes its time" in sentence
        header = mount.stats()
        assert veturboio.load(path)["a"].sum() == 0
        stats = mount.stats()
        assert stats["max_in_flight"] >= 16
        assert stats["largest_read"] == MIB
        assert stats["reads"] - header["reads"] < 50
        assert stats["bytes"] - header["bytes"] < 33 * MIB
        assert maps_of(path) == []


@pytest.mark.parametrize("save", [torch.save, old], ids=["zip", "old"])
def test_what_a_pytorch_file_says_of_its_tensors_comes_at_once(
    source: Path, slow: Slow, save: Callable[[dict[str, torch.Tensor], Path], None]
) -> None:
    """It stands before each of them, all over the file."""
    save({str(index): torch.zeros(2**20, dtype=torch.uint8) for index in range(40)}, source / "pt")
    for threads in (1, 32):
        with slow(delay_ms=30, direct_io=True, no_async_dio=True) as mount:
            veturboio.explain(mount.path / "pt", num_thread=threads)
            at_once = mount.stats()["max_in_flight"]
        assert at_once == 1 if threads == 1 else at_once >= 16


@pytest.mark.parametrize("way", [None, "read", "direct", "uring"])
@pytest.mark.parametrize("threads", [1, 3])
def test_readers_are_as_many_as_may_be(slow: Slow, way: str | None, threads: int) -> None:
    """On a mount that asks for the pieces of a read one after the other, and reads none ahead."""
    with slow(delay_ms=30, direct_io=True, no_async_dio=True) as mount:
        assert_same(veturboio.load(mount.path / "model", way=way, num_thread=threads), STATE)
        assert mount.stats()["max_in_flight"] == threads
    with slow(direct_io=True, no_async_dio=True) as mount:
        veturboio.load(mount.path / "model", way=way, enable_fast_mode=False)
        assert mount.stats()["max_in_flight"] == 1


def test_a_map_populates_on_as_many_threads_as_may_be(slow: Slow) -> None:
    most = {}
    for threads in (1, 4):
        with slow(delay_ms=10) as mount:
            veturboio.load(mount.path / "model", way="map", num_thread=threads)
            most[threads] = mount.stats()["max_in_flight"]
    assert most[1] <= 2  # the one it waits for, and what the kernel reads ahead
    assert most[4] > most[1]


@pytest.mark.parametrize("way", [None, "direct", "uring"])
def test_only_the_bytes_of_a_shard_travel(source: Path, slow: Slow, way: str | None) -> None:
    """An eighth of every tensor is at most 1.3 eighths of the file, and a constant for its head."""
    state = {f"{i}": torch.zeros(512, 4000 + i, dtype=torch.uint8) for i in range(16)}
    state["wide"] = torch.zeros(8, 2**21, dtype=torch.uint8)
    slices: dict[str, Any] = {name: slice(192, 256) for name in state}
    slices["wide"] = (slice(None), slice(2**18, 2**19))
    veturboio.save_file(state, source / "large")
    eighth = (source / "large").stat().st_size / 8
    with slow() as mount:
        loaded = veturboio.load(mount.path / "large", slices=slices, way=way)
        assert eighth - MIB <= mount.stats()["bytes"] <= 1.3 * eighth + MIB / 2
        assert_same(loaded, {name: value[slices[name]] for name, value in state.items()})
        before = mount.stats()["bytes"]
        veturboio.load(mount.path / "large", names=["3"], way=way)
        assert mount.stats()["bytes"] - before <= state["3"].nbytes + MIB / 2
        before = mount.stats()["bytes"]
        veturboio.load(mount.path / "large", map_location="meta")
        assert mount.stats()["bytes"] - before <= MIB / 2


def loads(path: Path, way: str) -> list[Callable[[], object]]:
    """A load of the whole, of a part, and into tensors that are there."""
    targets = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in STATE.items()}
    return [
        lambda: veturboio.load(path, way=way, num_thread=1),
        lambda: veturboio.load(path, way=way, num_thread=4),
        lambda: veturboio.load(path, way=way, slices={"large": slice(10, None)}),
        lambda: veturboio.load(path, way=way, state_dict=targets),
    ]


@every_way
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE], ids=["EIO", "ESTALE"])
def test_a_byte_that_cannot_be_read(slow: Slow, way: str, number: int) -> None:
    with slow(fail_at=11 * MIB, errno=number) as mount:
        path = mount.path / "model"
        for load in loads(path, way):
            with nothing_left(path):
                with pytest.raises(OSError) as refusal:
                    load()
                assert refusal.value.filename == str(path)
                assert str(path) in str(refusal.value)
                assert refusal.value.errno == number
        assert veturboio.load(path, way=way, slices={"large": slice(5)})["large"].numel() == 5


@every_way
@pytest.mark.parametrize("end", [0, 4096, 5 * MIB + 7])
def test_a_file_that_is_cut_short_while_it_is_read(slow: Slow, way: str, end: int) -> None:
    for number in range(4):
        # The header is read, and then the end goes.
        with slow(truncate_after=3, truncate_to=end) as mount:
            path = mount.path / "model"
            with nothing_left(path):
                with pytest.raises(veturboio.FormatError) as refusal:
                    loads(path, way)[number]()
                said = str(refusal.value)
                assert said == f"read {path}: file became shorter while it was read"


@every_way
def test_memory_of_a_load_that_fails_is_given_back(slow: Slow, way: str) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with slow(fail_at=16 * MIB) as mount:
        grown = []
        for _ in range(6):
            with suppress(OSError, veturboio.FormatError):
                veturboio.load(mount.path / "model", way=way, num_thread=2)
                raise AssertionError("it was not refused")
            grown.append(resident())
        assert grown[-1] - grown[0] < 2 * 16 * MIB


def test_a_mount_that_dies(slow: Slow) -> None:
    with slow(delay_ms=10) as mount:
        path = mount.path / "model"
        assert_same(veturboio.load(path), STATE)
        mount.process.kill()
        mount.process.wait()
        with pytest.raises(OSError) as refusal:
            veturboio.load(path)
        assert refusal.value.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT)
