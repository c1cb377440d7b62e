"""``load_to_shmem``: a segment that other processes load from, gone when it should be gone."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from forked import PATIENCE
from probe import assert_same, maps_of, open_files

import veturboio
from veturboio import _ops, _segment

STATE = {"weight": torch.arange(3_000_000), "half": torch.randn(33).bfloat16()}
SEGMENTS = Path("/dev/shm")


@pytest.fixture(params=[veturboio.save_file, torch.save], ids=["safetensors", "zip"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param(STATE, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names that segments of this process were given, none of which is left."""
    given: list[str] = []
    new_name = _segment._new_name

    def record() -> str:
        given.append(new_name())
        return given[-1]

    monkeypatch.setattr(_segment, "_new_name", record)
    yield given
    assert [name for name in given if (SEGMENTS / name).exists()] == []


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("threads", [1, 32])
def test_the_segment_is_the_file(model: Path, direct: bool, threads: int) -> None:
    shmem = veturboio.load_to_shmem(model, num_thread=threads, use_direct_io=direct)
    try:
        assert bytes(shmem.buf) == model.read_bytes()
        loaded = veturboio.load(SEGMENTS / shmem.name)
        assert_same(loaded, STATE)
        assert maps_of(SEGMENTS / shmem.name) != []
    finally:
        shmem.close()
        shmem.unlink()
    assert_same(loaded, STATE)


def test_the_segment_has_one_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is replaced by a shorter one as soon as its length is known."""
    path, shorter = tmp_path / "model", tmp_path / "shorter"
    veturboio.save_file(STATE, path)
    veturboio.save_file({"half": STATE["half"]}, shorter)
    content, byte_len = path.read_bytes(), _ops.byte_len

    def and_replaced(*arguments: Any, **options: Any) -> int:
        length = byte_len(*arguments, **options)
        shorter.replace(path)
        return length

    monkeypatch.setattr(_ops, "byte_len", and_replaced)
    shmem = veturboio.load_to_shmem(path)
    try:
        assert bytes(shmem.buf) == content
    finally:
        shmem.close()
        shmem.unlink()


def test_other_processes_load_it_by_name(model: Path, run: Run) -> None:
    code = """
import sys, veturboio
loaded = veturboio.load("/dev/shm/" + sys.argv[1])
loaded["weight"].add_(1)
print(int(loaded["weight"].sum()))
"""
    wanted = str(int((STATE["weight"] + 1).sum()))
    shmem = veturboio.load_to_shmem(model)
    try:
        with ThreadPoolExecutor() as pool:
            sums = list(pool.map(lambda _: run(code, shmem.name).strip(), range(3)))
        assert sums == [wanted] * 3
        assert_same(veturboio.load(SEGMENTS / shmem.name), STATE)
    finally:
        shmem.close()
        shmem.unlink()


def test_several_at_once(model: Path) -> None:
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda _: veturboio.load_to_shmem(model), range(4)))
    assert len({shmem.name for shmem in made}) == 4
    for shmem in made:
        assert_same(veturboio.load(SEGMENTS / shmem.name), STATE)
        shmem.close()
        shmem.unlink()


def test_a_refused_file_leaves_nothing(tmp_path: Path) -> None:
    for content in (b"", b"short", b"\xff" * 100, b"PK\x03\x04" + b"\0" * 100):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(veturboio.FormatError):
            veturboio.load_to_shmem(tmp_path / "bad")
    with pytest.raises(FileNotFoundError):
        veturboio.load_to_shmem(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        veturboio.load_to_shmem(tmp_path)


def test_other_arguments_that_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="num_thread"):
        veturboio.load_to_shmem(model, num_thread=0)
    with pytest.raises(NotImplementedError, match="use_cipher"):
        veturboio.load_to_shmem(model, use_cipher=True)
    monkeypatch.setenv("VETURBOIO_USE_CIPHER", "1")
    with pytest.raises(NotImplementedError, match="use_cipher"):
        veturboio.load_to_shmem(model)


LOADER = """
import os, signal, sys, veturboio
shmem = veturboio.load_to_shmem(sys.argv[1])
print(shmem.name, flush=True)
"""

#: How the process that made a segment ends, and its exit status.
ENDS = {
    "closed": ("shmem.close()", 0),
    "deleted": ("del shmem", 0),
    "exception": ("raise ValueError", 1),
    "at once": ("os._exit(4)", 4),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "after a fork": ("os.fork() and os.wait(); shmem.close()", 0),
    "with a tracker": (
        "from multiprocessing import resource_tracker; resource_tracker.ensure_running()",
        0,
    ),
}


@pytest.mark.parametrize(("end", "status"), ENDS.values(), ids=ENDS)
def test_it_outlives_the_process_that_made_it(tmp_path: Path, end: str, status: int) -> None:
    """The resource tracker of a process ends a moment after it: whoever holds its pipe waits."""
    veturboio.save_file(STATE, tmp_path / "model")
    command = [sys.executable, "-c", LOADER + end, str(tmp_path / "model")]
    # Its own tracker inherits the pipes, so that reading to their end waits for that as well.
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == status, done.stderr
    name = done.stdout.strip()
    try:
        assert_same(veturboio.load(SEGMENTS / name), STATE)
    finally:
        _segment.Segment(name).unlink()
    assert "leaked" not in done.stderr and "KeyError" not in done.stderr


def use(shmem: SharedMemory, content: bytes) -> None:
    """Runs in another process; one that was forked cannot rely on torch's threads."""
    assert isinstance(shmem, SharedMemory)
    assert bytes(shmem.buf) == content


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_other_processes_get_it_and_end(
    tmp_path: Path, method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    veturboio.save_file(STATE, model)
    context = multiprocessing.get_context(method)
    shmem = veturboio.load_to_shmem(model)
    try:
        children = [context.Process(target=use, args=(shmem, model.read_bytes())) for _ in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join(PATIENCE)
            assert child.exitcode == 0
        assert bytes(shmem.buf) == model.read_bytes()
        assert (SEGMENTS / shmem.name).exists()
    finally:
        shmem.close()
        shmem.unlink()
    assert capfd.readouterr().err == ""


def test_a_copy_is_of_the_same_memory(model: Path) -> None:
    shmem = veturboio.load_to_shmem(model)
    assert repr(shmem).startswith(f"Segment({shmem.name!r}, size=")
    files = open_files()
    copied = pickle.loads(pickle.dumps(shmem))
    assert (copied.name, copied.size) == (shmem.name, shmem.size)
    copied.buf[0] ^= 0xFF
    assert copied.buf[0] == shmem.buf[0]
    copied.close()
    assert open_files() == files
    again = _segment.Segment("/" + shmem.name)
    assert again.name == shmem.name
    again.unlink()
    again.close()
    for act in (shmem.unlink, lambda: pickle.loads(pickle.dumps(shmem))):
        with pytest.raises(FileNotFoundError):
            act()
    shmem.close()
    with pytest.raises(ValueError, match="load_to_shmem"):
        _segment.Segment(create=True, size=10)


def test_it_is_private_to_the_user(model: Path) -> None:
    shmem = veturboio.load_to_shmem(model)
    mode = (SEGMENTS / shmem.name).stat().st_mode
    shmem.close()
    shmem.unlink()
    assert mode & 0o077 == 0


@pytest.fixture(params=[False, True], ids=["without a name", "by name"])
def by_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Also as where a file system knows no files without a name."""
    if request.param:
        monkeypatch.setattr(_segment, "_unnamed", lambda: None)
    return bool(request.param)


@pytest.mark.usefixtures("by_name")
def test_whatever_fails_leaves_nothing(
    model: Path, tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shmem = veturboio.load_to_shmem(model)
    assert bytes(shmem.buf) == model.read_bytes()
    shmem.close()
    shmem.unlink()
    files = open_files()
    names.clear()
    (tmp_path / "bad").write_bytes(b"\xff" * 100)
    with pytest.raises(veturboio.FormatError):
        veturboio.load_to_shmem(tmp_path / "bad")
    with pytest.raises(OSError):
        _segment.filled(2**62, lambda memory: None)

    def refuse(self: object, name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_segment.Segment, "__init__", refuse)
    with pytest.raises(KeyboardInterrupt):
        veturboio.load_to_shmem(model)
    assert names != [] and not any((SEGMENTS / name).exists() for name in names)
    assert open_files() == files


@pytest.mark.usefixtures("by_name")
def test_a_name_that_is_taken_is_left_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = SEGMENTS / _segment._new_name()
    taken.write_bytes(b"another's")
    names = [taken.name, taken.name, _segment._new_name()]
    monkeypatch.setattr(_segment, "_new_name", names.__iter__().__next__)
    try:
        shmem = veturboio.load_to_shmem(model)
        assert shmem.name not in ("", taken.name)
        assert taken.read_bytes() == b"another's"
        shmem.close()
        shmem.unlink()
    finally:
        taken.unlink()


def test_killed_in_the_middle_it_leaves_nothing() -> None:
    if (file := _segment._unnamed()) is None:
        pytest.skip("the system knows no files without a name")
    os.close(file)
    code = """
import os, signal
from veturboio import _segment
_segment.filled(1 << 20, lambda memory: os.kill(os.getpid(), signal.SIGKILL))
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL
