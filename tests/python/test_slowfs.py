"""The slow file system itself: what other tests and the benchmarks take for granted of it."""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slowfs import PATIENCE, Mount, is_mounted, mounted, unavailable

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

MIB = 2**20
CONTENT = random.Random(0).randbytes(2 * MIB + 4321)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Holds ``model`` and ``below/nested``."""
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "model").write_bytes(CONTENT)
    (source / "below" / "nested").write_bytes(b"nested")
    return source


@pytest.fixture
def point(tmp_path: Path) -> Path:
    point = tmp_path / "mount"
    point.mkdir()
    return point


def opened(path: Path, read: Callable[[int], object], flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        read(descriptor)
    finally:
        os.close(descriptor)


def in_threads(count: int, work: Callable[[int], object]) -> None:
    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("direct_io", [False, True])
def test_the_tree_and_the_bytes_are_those_of_the_source(
    source: Path, point: Path, direct_io: bool
) -> None:
    (source / "link").symlink_to(source / "below")
    with mounted(source, point, direct_io=direct_io) as mount:
        assert sorted(path.name for path in point.iterdir()) == ["below", "link", "model"]
        assert (point / "link" / "nested").read_bytes() == b"nested"
        assert (point / "model").stat().st_size == len(CONTENT)
        assert (point / "model").read_bytes() == CONTENT
        with pytest.raises(FileNotFoundError):
            (point / "nothing").stat()
        with pytest.raises(OSError) as refused:
            (point / "model").write_bytes(b"")
        assert refused.value.errno == errno.EROFS

        def at_odd_offsets(descriptor: int) -> None:
            for offset in [0, 1, 4095, 4097, MIB - 3, len(CONTENT) - 5, len(CONTENT), 2**40]:
                for length in [1, 4096, 131073]:
                    there = CONTENT[offset : offset + length]
                    assert os.pread(descriptor, length, offset) == there

        opened(point / "model", at_odd_offsets)
        assert mount.stats()["bytes"] >= len(CONTENT)


def test_reads_wait_side_by_side(source: Path, point: Path) -> None:
    with (source / "large").open("wb") as file:
        file.truncate(32 * MIB)
    with mounted(source, point, delay_ms=50) as mount:
        opened(
            point / "large",
            lambda descriptor: in_threads(32, lambda index: os.pread(descriptor, MIB, index * MIB)),
        )
        assert mount.stats()["max_in_flight"] >= 8


def test_one_read_after_the_other_is_one_in_flight(source: Path, point: Path) -> None:
    with mounted(source, point, direct_io=True) as mount:
        opened(
            point / "model",
            lambda descriptor: [os.pread(descriptor, 1000, at) for at in range(0, 10**5, 1000)],
        )
        stats = {"reads": 100, "bytes": 10**5, "max_in_flight": 1, "largest_read": 1000}
        assert mount.stats() == stats


@pytest.mark.parametrize(
    "options",
    [{"delay_ms": 100}, {"bytes_per_second": 10 * MIB}, {"total_bytes_per_second": 10 * MIB}],
    ids=lambda options: next(iter(options)),
)
def test_what_slows_a_read(source: Path, point: Path, options: dict[str, int]) -> None:
    with mounted(source, point, direct_io=True, **options):
        start = time.monotonic()
        opened(point / "model", lambda descriptor: os.pread(descriptor, MIB, 0))
        assert time.monotonic() - start >= 0.1


def test_the_total_speed_is_shared(source: Path, point: Path) -> None:
    with mounted(source, point, direct_io=True, total_bytes_per_second=20 * MIB):
        start = time.monotonic()
        opened(
            point / "model",
            lambda descriptor: in_threads(4, lambda _: os.pread(descriptor, MIB, 0)),
        )
        assert time.monotonic() - start >= 0.2


def test_the_kernel_cuts_reads_to_the_largest(source: Path, point: Path) -> None:
    with mounted(source, point, direct_io=True, max_read=65536) as mount:
        assert (point / "model").read_bytes() == CONTENT
        assert mount.stats()["largest_read"] == 65536


@pytest.mark.parametrize(("no_async_dio", "in_flight"), [(True, 1), (False, 2)])
def test_the_pieces_of_a_direct_read(
    source: Path, point: Path, no_async_dio: bool, in_flight: int
) -> None:
    options = {"no_async_dio": no_async_dio, "delay_ms": 50, "max_read": MIB}
    with mounted(source, point, **options) as mount, mmap.mmap(-1, 2 * MIB) as buffer:
        opened(point / "model", lambda opened: os.preadv(opened, [buffer], 0), os.O_DIRECT)
        assert buffer[:] == CONTENT[: 2 * MIB]
        assert mount.stats()["max_in_flight"] == in_flight


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_byte_that_cannot_be_read(source: Path, point: Path, number: int) -> None:
    def fails(descriptor: int) -> None:
        assert os.pread(descriptor, 10, MIB - 10) == CONTENT[MIB - 10 : MIB]
        assert os.pread(descriptor, 10, MIB + 1) == CONTENT[MIB + 1 : MIB + 11]
        with pytest.raises(OSError) as failure:
            os.pread(descriptor, 10, MIB - 5)
        assert failure.value.errno == number

    with mounted(source, point, direct_io=True, fail_at=MIB, errno=number):
        opened(point / "model", fails)


def test_a_page_that_cannot_be_read(source: Path, point: Path) -> None:
    """Through the page cache, what precedes the page is still read."""
    with mounted(source, point, fail_at=MIB), (point / "model").open("rb", buffering=0) as file:
        assert len(file.read(MIB)) == MIB
        with pytest.raises(OSError) as failure:
            file.read(1)
        assert failure.value.errno == errno.EIO


@pytest.mark.parametrize("direct_io", [False, True])
def test_a_file_that_is_truncated_while_it_is_read(
    source: Path, point: Path, direct_io: bool
) -> None:
    options = {"truncate_after": 1, "truncate_to": 5000, "direct_io": direct_io}

    def loses_its_end(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size == len(CONTENT)
        assert os.pread(descriptor, 10, 0) == CONTENT[:10]
        assert os.fstat(descriptor).st_size == 5000
        assert os.pread(descriptor, 100, 4990) == CONTENT[4990:5000]
        assert os.pread(descriptor, 100, MIB) == b""

    with mounted(source, point, **options):
        opened(point / "model", loses_its_end)
        assert (point / "model").read_bytes() == CONTENT[:5000]


def test_the_stats_do_not_count_themselves(source: Path, point: Path, tmp_path: Path) -> None:
    file = tmp_path / "stats.json"
    nothing = {"reads": 0, "bytes": 0, "max_in_flight": 0, "largest_read": 0}
    with mounted(source, point, stats=file) as mount:
        assert mount.stats() == mount.stats() == nothing
        assert json.loads(file.read_text()) == nothing
        assert (point / "below" / "nested").read_bytes() == b"nested"
    assert json.loads(file.read_text())["bytes"] == len(b"nested")


def test_nothing_stays_mounted(source: Path, point: Path) -> None:
    with mounted(source, point) as mount:
        assert is_mounted(point)
    assert mount.process.returncode == 0
    assert not is_mounted(point)
    assert list(point.iterdir()) == []


def test_nothing_stays_mounted_that_is_in_use(source: Path, point: Path) -> None:
    with mounted(source, point) as mount:
        descriptor = os.open(point / "model", os.O_RDONLY)
    assert mount.process.returncode == 0
    assert not is_mounted(point)
    with pytest.raises(OSError):
        os.close(descriptor)


def killed(mount: Mount) -> None:
    mount.process.kill()


def left_alone(mount: Mount) -> None:
    """What the system does when the process that mounted is no more."""
    assert mount.process.stdin is not None
    mount.process.stdin.close()


@pytest.mark.parametrize("end", [killed, left_alone])
def test_nothing_stays_mounted_of_a_process_that_dies(
    source: Path, point: Path, end: Callable[[Mount], None]
) -> None:
    with mounted(source, point) as mount:
        end(mount)
        mount.process.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while is_mounted(point) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_mounted(point)


def test_mistakes_are_told_in_words(source: Path, point: Path) -> None:
    with pytest.raises(RuntimeError, match="invalid digit"), mounted(source, point, delay_ms="x"):
        pass
    with pytest.raises(RuntimeError, match="No such file"), mounted(source / "no", point):
        pass
    with pytest.raises(RuntimeError, match="lies in the other"), mounted(source, source / "below"):
        pass
    assert not is_mounted(point)
