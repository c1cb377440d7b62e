"""Saves and loads that cannot end well, or are stopped: what was there stays, nothing is left."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import slowfs
import torch
from circumstances import nothing_left
from conftest import Run
from forked import Child
from probe import assert_same, open_files

import veturboio

Mount = Callable[[str], Path]

SMALL = {"a": torch.arange(1000)}
BIG = {f"{i}": torch.full((2**20,), i, dtype=torch.int32) for i in range(16)}

needs_slowfs = pytest.mark.skipif(
    slowfs.unavailable() is not None, reason=str(slowfs.unavailable())
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture(autouse=True)
def heed_control_c() -> Iterator[None]:
    """Where the tests run in the background, a shell has them ignore it, and Python then does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_full_disk(mount: Mount) -> None:
    disk = mount("size=8m")
    target = disk / "model.safetensors"
    veturboio.save_file(SMALL, target)
    before, files = target.read_bytes(), open_files()
    for threads in (1, 32):
        with pytest.raises(OSError) as refusal:
            torch_save(BIG, target, threads)
        assert refusal.value.errno == errno.ENOSPC
        assert refusal.value.filename == str(target)
        assert "No space left on device" in str(refusal.value)
        assert target.read_bytes() == before
        assert list(disk.iterdir()) == [target]
        assert open_files() == files
    veturboio.save_file({"a": BIG["1"]}, target)
    assert torch.equal(veturboio.load(target)["a"], BIG["1"])


def torch_save(state: dict[str, torch.Tensor], target: Path, threads: int) -> None:
    """Saves through Python, with the number of threads that the operator offers."""
    if threads == 32:
        veturboio.save_file(state, target)
        return
    try:
        torch.ops.veturboio.save(state, str(target), num_thread=threads)
    except RuntimeError as error:
        assert "No space left on device" in str(error)
        raise OSError(errno.ENOSPC, str(error), str(target)) from error


def test_disk_with_room_for_the_header_alone(mount: Mount) -> None:
    disk = mount("size=4k")
    with pytest.raises(OSError) as refusal:
        veturboio.save_file({"a": torch.ones(5000)}, disk / "model.safetensors")
    assert refusal.value.errno == errno.ENOSPC
    assert list(disk.iterdir()) == []


def test_disk_without_room_for_another_name(mount: Mount) -> None:
    disk = mount("size=8m,nr_inodes=2")
    target = disk / "model.safetensors"
    target.write_bytes(b"old")
    with pytest.raises(OSError) as refusal:
        veturboio.save_file(SMALL, target)
    assert refusal.value.errno == errno.ENOSPC
    assert target.read_bytes() == b"old"
    assert list(disk.iterdir()) == [target]


def test_read_only_file_system(mount: Mount) -> None:
    disk = mount("ro")
    with pytest.raises(OSError) as refusal:
        veturboio.save_file(SMALL, disk / "model.safetensors")
    assert refusal.value.errno == errno.EROFS
    assert refusal.value.filename == str(disk / "model.safetensors")


def test_tensor_larger_than_any_disk(mount: Mount) -> None:
    """Four tebibytes of one expanded number: refused before the disk is filled."""
    disk = mount("size=64m")
    with pytest.raises(OSError) as refusal:
        veturboio.save_file({"a": torch.ones(1).expand(2**40)}, disk / "model.safetensors")
    assert refusal.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert list(disk.iterdir()) == []


def test_limit_of_the_file_size(tmp_path: Path, run: Run) -> None:
    target = tmp_path / "model.safetensors"
    veturboio.save_file(SMALL, target)
    before = target.read_bytes()
    code = """
import errno, resource, torch, veturboio
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    veturboio.save_file({"a": torch.ones(2**22)}, "model.safetensors")
except OSError as error:
    assert error.errno == errno.EFBIG, error
    assert "File too large" in str(error), error
else:
    raise SystemExit("it was not refused")
veturboio.save_file({"a": torch.ones(9)}, "small.safetensors")
"""
    run(code)
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [target.name, "small.safetensors"]


def test_no_descriptor_left(tmp_path: Path, run: Run) -> None:
    veturboio.save_file(SMALL, tmp_path / "model.safetensors")
    code = """
import errno, os, resource, torch, veturboio
veturboio.load("model.safetensors")
taken = os.open("/dev/null", os.O_RDONLY)
resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 1, taken + 1))
for act in (veturboio.load, lambda name: veturboio.save_file({"a": torch.ones(9)}, name)):
    try:
        act("model.safetensors")
    except OSError as error:
        assert error.errno == errno.EMFILE, error
    else:
        raise SystemExit("it was not refused")
os.close(taken)
veturboio.load("model.safetensors")
"""
    run(code)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_no_address_space_left(tmp_path: Path, run: Run) -> None:
    """A file larger than the process may map: an error, not an abort."""
    size = 2**32
    header = b'{"a":{"dtype":"U8","shape":[4294967296],"data_offsets":[0,4294967296]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, path.stat().st_size + size)
    code = """
import resource, veturboio
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
try:
    veturboio.load("model.safetensors")
except (OSError, MemoryError, RuntimeError) as error:
    assert "model.safetensors" in str(error), error
else:
    raise SystemExit("it was not refused")
assert veturboio.load("model.safetensors", map_location="meta")["a"].shape == (2**32,)
"""
    run(code)


def test_signals_do_not_cut_reads_and_writes_short(run: Run) -> None:
    """A timer's signal every half millisecond interrupts system calls of every thread."""
    code = """
import os, signal, torch, veturboio
torch.set_num_threads(1)
state = {f"{i}": torch.full((2**20,), i) for i in range(8)}
state["t"] = torch.rand(1000, 1500).t()
signal.signal(signal.SIGALRM, lambda *_: None)
for _ in range(3):
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    veturboio.save_file(state, "model.safetensors")
    descriptor = os.open("model.safetensors", os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    loaded = veturboio.load("model.safetensors")
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.close(descriptor)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
"""
    run(code)


BECOME_NOBODY = """
import os
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
"""


@needs_root
def test_no_thread_to_be_had(tmp_path: Path, run: Run) -> None:
    """Where no thread can start the work is done by the caller, or refused in words."""
    veturboio.save_file(BIG, tmp_path / "model.safetensors")
    tmp_path.chmod(0o777)
    code = f"""
import resource, threading, torch, veturboio
torch.set_num_threads(1)
{BECOME_NOBODY}
os.chdir("/")
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    threading.Thread(target=print).start()
except RuntimeError:
    print("limited")
folder = {str(tmp_path)!r}
try:
    loaded = veturboio.load(folder + "/model.safetensors")
    assert all(bool((loaded[str(i)] == i).all()) for i in range(16))
    veturboio.save_file(loaded, folder + "/again.safetensors")
except (RuntimeError, OSError) as error:
    assert "panic" not in str(error), error
"""
    with reachable(tmp_path):
        assert "limited" in run(code)


@needs_root
def test_directory_that_may_not_be_written(tmp_path: Path, run: Run) -> None:
    target = tmp_path / "model.safetensors"
    veturboio.save_file(SMALL, target)
    secret = tmp_path / "secret.safetensors"
    veturboio.save_file(SMALL, secret)
    secret.chmod(0o600)
    tmp_path.chmod(0o755)
    before = target.read_bytes()
    code = f"""
import errno, sys, torch, veturboio
{BECOME_NOBODY}
def refused(act):
    try:
        act()
    except PermissionError as error:
        assert error.errno == errno.EACCES, error
        assert "Permission denied" in str(error), error
        return error.filename
    raise SystemExit("it was not refused")
target, secret, new = sys.argv[1:]
state = {{"a": torch.ones(9)}}
veturboio.load(target)
assert refused(lambda: veturboio.save_file(state, target)) == target
assert refused(lambda: veturboio.save_file(state, new)) == new
assert refused(lambda: veturboio.load(secret)) == secret
"""
    with reachable(tmp_path):
        run(code, target, secret, tmp_path / "new.safetensors")
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [target.name, secret.name]


class reachable:  # noqa: N801 - reads as a statement
    """Lets another user walk down to a directory of root's for a while."""

    def __init__(self, directory: Path) -> None:
        self.modes = [(path, path.stat().st_mode) for path in [directory, *directory.parents]]

    def __enter__(self) -> None:
        for path, mode in self.modes:
            if not mode & 0o001:
                path.chmod(mode | 0o001)

    def __exit__(self, *_: object) -> None:
        for path, mode in self.modes:
            if path.stat().st_mode != mode:
                path.chmod(mode)


SAVE_FOREVER = """
import itertools, torch, veturboio
torch.set_num_threads(1)
for value in itertools.count(1):
    state = {f"{i}": torch.full((2**21,), value) for i in range(8)}
    veturboio.save_file(state, "model.safetensors")
"""


def wait_for_save_under_way(directory: Path, after: int) -> bool:
    """Waits until ``after`` saves have ended and a temporary file of the next one has bytes."""
    target, seen = directory / "model.safetensors", set()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in directory.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if path == target:
                seen.add(status.st_mtime_ns)
            elif len(seen) >= after and status.st_size > 0:
                return True
    return False


def assert_one_whole_save(path: Path) -> None:
    loaded = veturboio.load(path)
    values = {int(value) for tensor in loaded.values() for value in (tensor.min(), tensor.max())}
    assert len(loaded) == 8
    assert len(values) == 1


@pytest.mark.parametrize("saves", range(1, 5))
def test_killed_in_the_middle(tmp_path: Path, saves: int) -> None:
    """kill -9 while a temporary file grows: the file at the target is one of the whole ones."""
    child = Child(SAVE_FOREVER, cwd=tmp_path)
    try:
        assert wait_for_save_under_way(tmp_path, saves)
    finally:
        child.signal(signal.SIGKILL)
    assert child.wait().returncode == -signal.SIGKILL
    assert_one_whole_save(tmp_path / "model.safetensors")
    assert len(list(tmp_path.iterdir())) <= 2


def test_interrupted_by_the_user(tmp_path: Path) -> None:
    """Control-C during a save: it ends or is undone, and then KeyboardInterrupt arrives."""
    child = Child(SAVE_FOREVER, cwd=tmp_path)
    try:
        assert wait_for_save_under_way(tmp_path, 1)
    finally:
        child.signal(signal.SIGINT)
    assert "KeyboardInterrupt" in child.wait().stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert_one_whole_save(tmp_path / "model.safetensors")


#: Seconds from a signal to the end of the load that it stops, on a busy machine.
AT_ONCE = 15

#: The same of a save: a disk under load was seen to take seconds for a single write.
SOON = 60


class Strike:
    """Sends this process a signal as soon as bytes are said to move."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.number = number
        self.at: float | None = None

    def __call__(self, done: int, total: int) -> None:
        if self.at is None and total:
            self.at = time.monotonic()
            os.kill(os.getpid(), self.number)

    def seconds_ago(self) -> float:
        assert self.at is not None, "it never struck"
        return time.monotonic() - self.at


@contextlib.contextmanager
def handled(number: int, handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.fixture
def slow_model(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[slowfs.Mount]:
    """``model``, of 64 MiB, on a mount that takes seconds for it where a thread reads it alone."""
    source, point = tmp_path / "source", tmp_path / "mount"
    source.mkdir()
    point.mkdir()
    veturboio.save_file(BIG, source / "model")
    delay_ms = getattr(request, "param", 50)
    with slowfs.mounted(source, point, delay_ms=delay_ms, no_async_dio=True) as mounted:
        yield mounted


@needs_slowfs
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("way", "slow_model"),
    # Through the page cache, the kernel asks for much less at a time.
    [(None, 100), ("direct", 100), ("uring", 100), ("map", 10), ("read", 10)],
    indirect=["slow_model"],
)
def test_control_c_stops_a_load(slow_model: slowfs.Mount, way: str | None, threads: int) -> None:
    path, strike = slow_model.path / "model", Strike()
    with nothing_left(path):
        with pytest.raises(KeyboardInterrupt):
            veturboio.load(path, way=way, num_thread=threads, progress=strike)
        assert strike.seconds_ago() < AT_ONCE
        assert slow_model.stats()["bytes"] < path.stat().st_size
    loaded = veturboio.load(path, names=["3"])
    assert torch.equal(loaded["3"], BIG["3"])


@needs_slowfs
def test_control_c_stops_a_load_into_tensors_and_of_a_part(slow_model: slowfs.Mount) -> None:
    path = slow_model.path / "model"
    targets = {name: torch.empty_like(value) for name, value in BIG.items()}
    slices = {name: slice(1, None) for name in BIG}
    options: list[dict[str, Any]] = [{"state_dict": targets}, {"slices": slices}]
    for option in options:
        strike = Strike()
        with nothing_left(path):
            with pytest.raises(KeyboardInterrupt):
                veturboio.load(path, num_thread=2, progress=strike, **option)
            assert strike.seconds_ago() < AT_ONCE
    assert slow_model.stats()["bytes"] < 2 * path.stat().st_size


@pytest.mark.parametrize("durable", [True, False])
def test_control_c_stops_a_save(tmp_path: Path, durable: bool) -> None:
    """Four gigabytes of one expanded number: the old file stays, and nothing beside it."""
    target, strike = tmp_path / "model.safetensors", Strike()
    veturboio.save_file(SMALL, target)
    before = target.read_bytes()
    large = {"a": torch.ones(1).expand(2**30)}
    with nothing_left(tmp_path):
        with pytest.raises(KeyboardInterrupt):
            veturboio.save_file(large, target, durable=durable, progress=strike)
        assert strike.seconds_ago() < SOON
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


class Enough(Exception):  # noqa: N818 - raised by a handler, and no error
    pass


@needs_slowfs
def test_what_a_handler_raises_comes_out(slow_model: slowfs.Mount, tmp_path: Path) -> None:
    def handler(number: int, _: FrameType | None) -> None:
        raise Enough(number)

    path = slow_model.path / "model"
    acts: list[Callable[[Strike], object]] = [
        lambda strike: veturboio.load(path, num_thread=1, progress=strike),
        lambda strike: veturboio.save_file(
            {"a": torch.ones(1).expand(2**30)}, tmp_path / "new", progress=strike
        ),
    ]
    with handled(signal.SIGUSR1, handler):
        for act in acts:
            strike = Strike(signal.SIGUSR1)
            with pytest.raises(Enough) as raised:
                act(strike)
            assert strike.seconds_ago() < SOON
            assert raised.value.args == (signal.SIGUSR1,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mount", "source"]


@needs_slowfs
def test_a_handler_that_raises_nothing_stops_nothing(slow_model: slowfs.Mount) -> None:
    """It runs while the load goes on, and not after it."""
    path, moved = slow_model.path / "model", []
    with handled(signal.SIGUSR1, lambda *_: moved.append(slow_model.stats()["bytes"])):
        loaded = veturboio.load(path, num_thread=2, progress=Strike(signal.SIGUSR1))
    assert_same(loaded, BIG)
    assert len(moved) == 1
    assert moved[0] < path.stat().st_size // 2


@needs_slowfs
@pytest.mark.parametrize("way", ["direct", "uring"])
def test_a_handler_can_save_and_load(
    slow_model: slowfs.Mount, tmp_path: Path, capfd: pytest.CaptureFixture[str], way: str
) -> None:
    """A last checkpoint when a machine is about to be taken away."""
    last = {"a": torch.arange(5_000_000), "turned": torch.rand(1000, 1500).t()}
    loads, moved = [], []

    def handler(*_: object) -> None:
        veturboio.save_file(last, tmp_path / "last")
        loads.append(veturboio.load(tmp_path / "last", way=way))
        moved.append(slow_model.stats()["bytes"])

    with handled(signal.SIGTERM, handler):
        loaded = veturboio.load(
            slow_model.path / "model", way=way, num_thread=2, progress=Strike(signal.SIGTERM)
        )
    assert_same(loaded, BIG)
    assert len(loads) == 1
    assert_same(loads[0], last)
    assert moved[0] < 64 * 2**20  # it was done before the load was
    assert capfd.readouterr().err == ""


@needs_slowfs
def test_a_signal_stops_nothing_on_other_threads(slow_model: slowfs.Mount, tmp_path: Path) -> None:
    """Python handles signals on the main thread: what goes on elsewhere goes on."""
    path, loads = slow_model.path / "model", []
    other = threading.Thread(target=lambda: loads.append(veturboio.load(path, num_thread=2)))
    other.start()
    save = veturboio.save_file(BIG, tmp_path / "new", wait=False)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        other.join()
    assert save is not None
    save.result()
    other.join()
    assert_same(loads[0], BIG)
    assert_same(veturboio.load(tmp_path / "new"), BIG)


@torch.jit.script
def load_by_script(file: str, threads: int) -> dict[str, torch.Tensor]:
    return torch.ops.veturboio.load(file, num_thread=threads)


@needs_slowfs
def test_control_c_in_torchscript(slow_model: slowfs.Mount) -> None:
    """Which keeps of an exception but its text; and no later load hears of it."""
    path = slow_model.path / "model"
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with nothing_left(path):
        with pytest.raises(RuntimeError, match=f"{path}: interrupted"):
            load_by_script(str(path), 1)
        assert time.monotonic() - start < AT_ONCE
        timer.join()
    assert veturboio.load(path, names=["1"])["1"].sum() == 2**20
    with pytest.raises(FileNotFoundError):
        veturboio.load(path.parent / "nothing")
