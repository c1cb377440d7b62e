"""Where a save goes: modes, links, odd names, and targets that are no plain file."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest
import torch
from conftest import Run
from probe import maps_of

import veturboio

STATE = {"a": torch.arange(1000), "b": torch.ones(3)}
OTHER = {"a": torch.arange(1000) * 2, "b": torch.zeros(30)}


def whole(path: Path, state: dict[str, torch.Tensor] = STATE) -> bool:
    loaded = veturboio.load(path)
    return all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o000, 0o027])
def test_mode_follows_the_umask(run: Run, tmp_path: Path, umask: int) -> None:
    code = f"""
import os, torch, veturboio
os.umask({umask})
veturboio.save_file({{"a": torch.ones(2)}}, "model.safetensors")
assert os.umask(0) == {umask}, "the umask was changed"
"""
    run(code)
    mode = stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode)
    assert mode == 0o666 & ~umask


def test_saving_over_the_file_that_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    veturboio.save_file(STATE, path)
    old = veturboio.load(path)
    veturboio.save_file(OTHER, path)
    assert torch.equal(old["a"], STATE["a"])
    assert torch.equal(old["b"], STATE["b"])
    assert whole(path, OTHER)
    half = {"a": old["a"], "b": veturboio.load(path)["b"]}
    veturboio.save_file(half, path)
    assert whole(path, half)
    del old, half
    assert maps_of(path) == []
    assert list(tmp_path.iterdir()) == [path]


def test_a_loaded_file_saved_onto_itself_many_times(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    veturboio.save_file(STATE, path)
    first = path.read_bytes()
    for _ in range(20):
        veturboio.save_file(veturboio.load(path), path)
    assert path.read_bytes() == first


@pytest.mark.parametrize("where", ["same", "deeper", "absolute"])
def test_a_symlink_stays_and_its_target_is_replaced(tmp_path: Path, where: str) -> None:
    (tmp_path / "deeper").mkdir()
    real = tmp_path / ("real" if where == "same" else "deeper/real")
    veturboio.save_file(OTHER, real)
    link = tmp_path / "link"
    link.symlink_to(real if where == "absolute" else real.relative_to(tmp_path))
    veturboio.save_file(STATE, link)
    assert link.is_symlink()
    assert not real.is_symlink()
    assert whole(link)
    assert whole(real)
    assert sorted(path.name for path in real.parent.iterdir() if path.name != "deeper") == sorted(
        {"link", "real"} if where == "same" else {"real"}
    )


def test_a_chain_of_symlinks(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    veturboio.save_file(OTHER, tmp_path / "x" / "real")
    (tmp_path / "x" / "second").symlink_to("real")
    (tmp_path / "first").symlink_to("x/second")
    veturboio.save_file(STATE, tmp_path / "first")
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "x" / "second").is_symlink()
    assert whole(tmp_path / "x" / "real")


def test_a_symlink_to_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("new")
    veturboio.save_file(STATE, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert whole(tmp_path / "new")


def test_a_chain_of_symlinks_to_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "second").symlink_to("new")
    (tmp_path / "first").symlink_to("x/second")
    veturboio.save_file(STATE, tmp_path / "first")
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "x" / "second").is_symlink()
    assert whole(tmp_path / "x" / "new")


def test_a_symlink_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "round").symlink_to("round")
    for act in (veturboio.load, lambda path: veturboio.save_file(STATE, path)):
        with pytest.raises(OSError) as refusal:
            act(tmp_path / "round")
        assert refusal.value.errno == errno.ELOOP
    (tmp_path / "astray").symlink_to("missing/file")
    with pytest.raises(FileNotFoundError):
        veturboio.save_file(STATE, tmp_path / "astray")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["astray", "round"]


NAMES = [
    "né \U0001f600",
    "line\nfeed",
    "%s{}",
    "a" * 255,
    "é" * 127,
    ".hidden",
    "-",
    "x.tmp",
    "a\\b",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_that_are_hard_to_spell(tmp_path: Path, name: str) -> None:
    """The longest name leaves no room for a suffix on the temporary sibling."""
    veturboio.save_file(STATE, tmp_path / name)
    veturboio.save_file(STATE, tmp_path / name)
    assert whole(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe"
    veturboio.save_file(STATE, path)
    assert whole(path)
    with pytest.raises(FileNotFoundError):
        veturboio.save_file(STATE, os.fsencode(tmp_path) + b"/\xff/\xfe")


def test_relative_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    for name in ["plain", "./dotted", "../upwards", "../sub/sideways", ".//twice"]:
        veturboio.save_file(STATE, name)
        assert whole(Path(name))
    assert sorted(path.name for path in Path().iterdir()) == [
        "dotted",
        "plain",
        "sideways",
        "twice",
    ]


def test_a_directory_that_is_gone(tmp_path: Path, run: Run) -> None:
    code = """
import os, torch, veturboio
os.mkdir("gone")
os.chdir("gone")
os.rmdir("../gone")
for act in (veturboio.load, lambda name: veturboio.save_file({"a": torch.ones(9)}, name)):
    try:
        act("model.safetensors")
    except FileNotFoundError:
        continue
    raise SystemExit("it was not refused")
"""
    run(code)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "/", "sub", "sub/", "sub/.", "new/", "new/."])
def test_names_that_name_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A name that ends in a slash is a directory's; it must not be trimmed to a file's."""
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError):
        veturboio.save_file(STATE, name)
    assert list(tmp_path.rglob("*")) == [tmp_path / "sub"]


@pytest.mark.parametrize("name", ["model\0", "model\0.safetensors", "\0"])
def test_a_nul_byte_does_not_cut_the_name(tmp_path: Path, name: str) -> None:
    veturboio.save_file(STATE, tmp_path / "model")
    for act in (veturboio.load, lambda path: veturboio.save_file(OTHER, path)):
        with pytest.raises((ValueError, OSError)):
            act(f"{tmp_path}/{name}")
    assert whole(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_directory_keeps_what_is_in_it(tmp_path: Path) -> None:
    target = tmp_path / "directory"
    target.mkdir()
    for full in (False, True):
        with pytest.raises(IsADirectoryError) as refusal:
            veturboio.save_file(STATE, target)
        assert refusal.value.errno == errno.EISDIR
        assert list(tmp_path.iterdir()) == [target]
        assert [path.name for path in target.iterdir()] == (["inside"] if full else [])
        (target / "inside").touch()


SPECIAL = ["/dev/null", "/dev/full", "/dev/zero", "/proc/self/mem", "/sys/kernel/profiling"]


@pytest.mark.parametrize("name", [name for name in SPECIAL if Path(name).exists()])
def test_special_files_are_neither_replaced_nor_read(run: Run, name: str) -> None:
    """Refused in a process of its own, with little memory: /dev/zero has no end."""
    before = os.stat(name)  # noqa: PTH116 - the same call as below
    code = """
import resource, sys, torch, veturboio
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
for act in (veturboio.load, lambda name: veturboio.save_file({"a": torch.ones(9)}, name)):
    try:
        act(sys.argv[1])
    except (OSError, ValueError) as error:
        assert sys.argv[1] in str(error), error
    else:
        raise SystemExit("it was not refused")
"""
    run(code, name)
    after = os.stat(name)  # noqa: PTH116
    assert (before.st_ino, before.st_mode, before.st_rdev) == (
        after.st_ino,
        after.st_mode,
        after.st_rdev,
    )


def test_a_pipe_does_not_hang(tmp_path: Path, run: Run) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = """
import sys, torch, veturboio
for act in (veturboio.load, lambda name: veturboio.save_file({"a": torch.ones(9)}, name)):
    try:
        act(sys.argv[1])
    except (OSError, ValueError) as error:
        assert sys.argv[1] in str(error), error
    else:
        raise SystemExit("it was not refused")
"""
    run(code, pipe)
    assert pipe.is_fifo()


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for act in (veturboio.load, lambda path: veturboio.save_file(STATE, path)):
            with pytest.raises((OSError, ValueError), match="socket"):
                act("socket")
        assert Path("socket").is_socket()


def test_saves_to_one_name_at_the_same_time(tmp_path: Path) -> None:
    """Each save is whole, so whichever comes last the file is whole, and nothing else remains."""
    path = tmp_path / "model.safetensors"
    failures = []

    def save(value: int) -> None:
        try:
            for _ in range(10):
                veturboio.save_file({"a": torch.full((50_000 + value,), value)}, path)
                loaded = veturboio.load(path)["a"]
                assert len(loaded) == 50_000 + loaded[0]
                assert bool((loaded == loaded[0]).all())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=save, args=[value]) for value in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(tmp_path.iterdir()) == [path]
