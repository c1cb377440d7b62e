"""``cache_dir``: what is kept is what was downloaded, whatever happened to it meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from webserver import THEN, Answer, File, Request, Server, serving

import veturboio

MIB = 1 << 20


def state(seed: int = 1, mib: int = 8) -> dict[str, torch.Tensor]:
    return {
        "a": torch.arange(seed, seed + mib * MIB // 4, dtype=torch.int32),
        "b": torch.tensor([seed]),
    }


def same(loaded: Any, saved: dict[str, torch.Tensor]) -> bool:
    return loaded.keys() == saved.keys() and all(
        torch.equal(loaded[name], tensor) for name, tensor in saved.items()
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    veturboio.save_file(state(), tmp_path / "saved")
    with serving(File((tmp_path / "saved").read_bytes(), tag='"one"')) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(server: Server, cache: Path, name: str = "model", **arguments: Any) -> Any:
    return veturboio.load(f"{server.address}/{name}", cache_dir=cache, **arguments)


def load_anew(server: Server, cache: Path, *names: str) -> None:
    """Loads in a process that has seen nothing yet, and compares."""
    code = (
        "import sys, torch, veturboio\n"
        "names = sys.argv[3:] or None\n"
        "loaded = veturboio.load(sys.argv[1], cache_dir=sys.argv[2], names=names)\n"
        "if 'a' in loaded:\n"
        "    first = loaded['b'].item() if 'b' in loaded else 1\n"
        "    wanted = torch.arange(first, first + len(loaded['a']), dtype=torch.int32)\n"
        "    assert torch.equal(loaded['a'], wanted)\n"
        "assert 'b' not in loaded or loaded['b'].item() == 1\n"
    )
    command = [sys.executable, "-c", code, f"{server.address}/model", str(cache), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def entry(cache: Path) -> Path:
    (entry,) = cache.iterdir()
    return entry


def test_an_entry_is_for_its_owner_alone(server: Server, cache: Path) -> None:
    before = os.umask(0)
    try:
        assert same(load(server, cache), state())
    finally:
        os.umask(before)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert entry(cache).stat().st_mode & 0o777 == 0o600
    assert len(entry(cache).name.split(".")[0]) == 64
    count = len(server.requests)
    assert same(load(server, cache), state())
    load_anew(server, cache)
    assert len(server.requests) == count + 2


def write(path: Path, content: bytes, offset: int) -> None:
    told = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)
    # As if nobody had written: a disk that fails does not tell.
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))


def replace_by(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


def zeros(path: Path) -> None:
    write(path, bytes(path.stat().st_size), 0)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "zeros": zeros,
    "zeros in the middle": lambda path: write(path, bytes(4096), 3 * MIB),
    "one bit at the end of the object": lambda path: write(path, b"\1", 8 * MIB + 100),
    "digests": lambda path: write(path, b"x", path.stat().st_size - 70),
    "magic": lambda path: write(path, b"x", path.stat().st_size - 1),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "empty": lambda path: os.truncate(path, 0),
    "symbolic link": replace_by(lambda path: path.symlink_to("/dev/zero")),
    "dangling link": replace_by(lambda path: path.symlink_to("/none")),
    "pipe": replace_by(os.mkfifo),
    "directory": replace_by(Path.mkdir),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("anew", [True, False])
def test_a_damaged_entry_is_downloaded_again(
    server: Server, cache: Path, damage: Callable[[Path], Any], anew: bool
) -> None:
    load(server, cache)
    damage(entry(cache))
    count = len(server.requests)
    if anew:
        load_anew(server, cache)
    else:
        assert same(load(server, cache), state())
    assert len(server.requests) > count + 1
    if not entry(cache).is_dir():  # which is not ours to remove
        count = len(server.requests)
        assert same(load(server, cache), state())
        assert len(server.requests) == count + 1


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_parts_of_a_damaged_entry(
    server: Server, cache: Path, damage: Callable[[Path], Any]
) -> None:
    load(server, cache)
    damage(entry(cache))
    for name in "ba":
        assert same(load(server, cache, names=[name]), {name: state()[name]})


def test_a_part_of_a_large_entry_costs_what_it_holds(tmp_path: Path, cache: Path) -> None:
    large = state(1, 80)
    veturboio.save_file(large, tmp_path / "large")
    content = (tmp_path / "large").read_bytes()
    with serving(File(content, tag='"one"')) as server:
        load(server, cache)
        count = len(server.requests)
        # The tensor at the end is not touched by damage before it.
        write(entry(cache), bytes(MIB), 30 * MIB)
        load_anew(server, cache, "b")
        assert len(server.requests) == count + 1
        assert entry(cache).exists()
        cut = load(server, cache, slices={"a": slice(0, 1000)}, names=["a"])
        assert torch.equal(cut["a"], large["a"][:1000])
        assert len(server.requests) == count + 2
        # What is damaged comes from the server, and the entry goes.
        load_anew(server, cache, "a")
        assert len(server.requests) > count + 3
        assert list(cache.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_entries_of_others_are_not_believed(server: Server, cache: Path) -> None:
    load(server, cache)
    path = entry(cache)
    kept = path.read_bytes()
    planted: list[Callable[[], Any]] = [
        lambda: os.chown(path, 12345, 12345),
        lambda: path.chmod(0o602),
        lambda: path.chmod(0o620),
    ]
    for plant in planted:
        path.unlink()
        path.write_bytes(kept)
        path.chmod(0o600)
        plant()
        count = len(server.requests)
        assert same(load(server, cache), state())
        assert len(server.requests) > count + 1


def test_entries_cannot_be_exchanged(server: Server, cache: Path, tmp_path: Path) -> None:
    """One object's entry under another's name, of the same length: the entry says whose it is."""
    veturboio.save_file(state(7), tmp_path / "other")
    files = {"/model": server.answer, "/other": File((tmp_path / "other").read_bytes(), '"one"')}
    server.answer = lambda request: files[request.path](request)
    load(server, cache)
    one = entry(cache)
    load(server, cache, "other")
    (other,) = set(cache.iterdir()) - {one}
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert same(load(server, cache), state())
    assert same(load(server, cache, "other"), state(7))


def test_versions_that_cannot_be_told_apart_are_not_kept(
    server: Server, cache: Path, tmp_path: Path
) -> None:
    content = (tmp_path / "saved").read_bytes()
    for file in (File(content), File(content, 'W/"one"'), File(content, 'W/"one"', date=None)):
        server.answer = file
        assert same(load(server, cache), state())
        assert not cache.exists() or list(cache.iterdir()) == []
    server.answer = File(content, 'W/"one"', modified=THEN)
    assert same(load(server, cache), state())
    veturboio.save_file(state(2), tmp_path / "saved")
    later = "Mon, 01 Jan 2024 00:00:01 GMT"
    server.answer = File((tmp_path / "saved").read_bytes(), 'W/"one"', modified=later)
    assert same(load(server, cache), state(2))
    assert len(list(cache.iterdir())) == 2


UNWRITABLE = "/proc/1/cache"


def test_a_directory_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    assert same(load(server, Path(UNWRITABLE)), state())
    assert same(load(server, Path(UNWRITABLE), names=["b"]), {"b": state()["b"]})
    file = tmp_path / "file"
    file.write_text("")
    for wrong in (file, file / "below"):
        with pytest.raises(OSError, match=f"keep {wrong}: (File exists|Not a directory)"):
            load(server, wrong)


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk(server: Server, cache: Path) -> None:
    with mounted(cache, "size=4m"):
        load_anew(server, cache)
        assert list(cache.iterdir()) == []


def test_a_directory_that_is_read_only(server: Server, cache: Path) -> None:
    with mounted(cache, "size=64m"):
        load(server, cache)
        subprocess.run(["mount", "-o", "remount,ro", str(cache)], check=True)
        count = len(server.requests)
        load_anew(server, cache)
        assert len(server.requests) == count + 1
        assert same(load(server, cache, "another"), state())


def slow(file: Any, begun: threading.Event, go: threading.Event) -> Callable[[Request], Answer]:
    """Answers ranges other than the first once it may."""

    def answer(request: Request) -> Answer:
        if request.range is not None and request.range[0] > 0:
            begun.set()
            go.wait(30)
        answer: Answer = file(request)
        return answer

    return answer


def test_two_loads_download_once(server: Server, cache: Path) -> None:
    """In two processes and two threads of this one; the first holds all others up."""
    begun, go = threading.Event(), threading.Event()
    server.answer = slow(server.answer, begun, go)
    results: list[bool] = []
    loads: list[Callable[[], Any]] = [
        lambda: results.append(same(load(server, cache), state())),
        lambda: results.append(load_anew(server, cache) is None),
        lambda: results.append(same(load(server, cache), state())),
        lambda: results.append(load_anew(server, cache) is None),
    ]
    threads = [threading.Thread(target=each) for each in loads]
    threads[0].start()
    assert begun.wait(30)
    for thread in threads[1:]:
        thread.start()
    firsts = lambda: [r for r in server.requests if r.range is not None and r.range[0] == 0]  # noqa: E731
    deadline = time.monotonic() + 60
    while len(firsts()) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    go.set()
    for thread in threads:
        thread.join()
    assert results == [True] * 4
    ranges = [request.range for request in server.requests]
    assert len(set(ranges)) == len(ranges) - 3
    assert entry(cache).suffix == ".veturboio"


def test_a_killed_download_holds_nobody_up(server: Server, cache: Path) -> None:
    begun, go = threading.Event(), threading.Event()
    plain = server.answer
    server.answer = slow(plain, begun, go)
    code = "import sys, veturboio; veturboio.load(sys.argv[1], cache_dir=sys.argv[2])"
    command = [sys.executable, "-c", code, f"{server.address}/model", str(cache)]
    with subprocess.Popen(command) as process:
        assert begun.wait(30)
        process.send_signal(signal.SIGKILL)
    go.set()
    server.answer = plain
    (left,) = [path for path in cache.iterdir() if path.suffix != ".lock"]
    long_ago = time.time() - 1000
    os.utime(left, (long_ago, long_ago))
    assert same(load(server, cache), state())
    assert entry(cache).suffix == ".veturboio"


def test_who_waits_can_be_interrupted(server: Server, cache: Path) -> None:
    begun, go = threading.Event(), threading.Event()
    server.answer = slow(server.answer, begun, go)
    first = threading.Thread(target=lambda: load(server, cache))
    first.start()
    assert begun.wait(30)
    code = (
        "import signal, sys, veturboio\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('ready', flush=True)\n"
        "try:\n"
        "    veturboio.load(sys.argv[1], cache_dir=sys.argv[2])\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(42)\n"
    )
    count = len(server.requests)
    command = [sys.executable, "-c", code, f"{server.address}/model", str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while len(server.requests) == count:
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 42
    go.set()
    first.join()


def test_nothing_is_written_through_a_map(server: Server, cache: Path, tmp_path: Path) -> None:
    """A full disk would be a signal; and what is renamed is on the disk before."""
    if subprocess.run(["which", "strace"], capture_output=True).returncode:
        pytest.skip("strace is not installed")
    code = "import sys, veturboio; veturboio.load(sys.argv[1], cache_dir=sys.argv[2])"
    trace = tmp_path / "trace"
    calls = "trace=openat,mmap,pwrite64,fsync,rename,renameat,renameat2"
    command = ["strace", "-f", "-y", "-e", calls, "-o", str(trace), sys.executable, "-c", code]
    subprocess.run([*command, f"{server.address}/model", str(cache)], check=True)
    lines = [line for line in trace.read_text().splitlines() if f"{cache}/" in line]
    assert not [line for line in lines if "mmap" in line and "MAP_SHARED" in line]
    synced = next(i for i, line in enumerate(lines) if "fsync" in line)
    renamed = next(i for i, line in enumerate(lines) if "rename" in line)
    written = [i for i, line in enumerate(lines) if "pwrite64" in line]
    assert max(written) < synced < renamed
