"""``save_pt``: PyTorch files that are whole or not there at all, wherever they go."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Run
from forked import Child
from probe import assert_same, open_files

import veturboio
from veturboio import _ops

STATE = {
    "a": torch.arange(1000),
    "half": torch.rand(40).bfloat16(),
    "byte": torch.rand(9).to(torch.float8_e4m3fn),
    "turned": torch.rand(4, 6).t(),
    "empty": torch.empty(0, 3),
}
OTHER = {"a": torch.zeros(9)}


def assert_whole(path: Path, state: dict[str, torch.Tensor] = STATE) -> None:
    assert_same(torch.load(path, weights_only=True), state)
    assert_same(veturboio.load(path), state)


def test_both_readers_read_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    veturboio.save_pt(STATE, path)
    assert_whole(path)
    assert [each.name for each in tmp_path.iterdir()] == ["model.pt"]


def test_what_is_saved_is_what_torch_save_writes(tmp_path: Path) -> None:
    """Nested values and all; nor does the file tell the temporary sibling's name."""
    weight = torch.rand(3)
    state = OrderedDict(model={"a": weight, "b": weight}, epoch=3, names=["x"])
    veturboio.save_pt(state, tmp_path / "ours")
    with (tmp_path / "theirs").open("wb") as file:
        torch.save(state, file)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("spell", [str, os.fsencode, Path])
def test_kinds_of_paths(tmp_path: Path, spell: Callable[[Path], object]) -> None:
    veturboio.save_pt(STATE, spell(tmp_path / "é"))
    assert_whole(tmp_path / "é")
    name = os.fsencode(tmp_path) + b"/\xff"
    veturboio.save_pt(STATE, name)
    assert_same(veturboio.load(name), STATE)


def test_a_relative_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    veturboio.save_pt(STATE, "model.pt")
    assert_whole(tmp_path / "model.pt")


def test_saving_over_the_file_that_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    veturboio.save_pt(STATE, path)
    loaded = veturboio.load(path)
    veturboio.save_pt({**loaded, "more": torch.ones(5000)}, path)
    assert_same(loaded, STATE)
    assert_whole(path, {**STATE, "more": torch.ones(5000)})
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_mode_follows_the_umask(run: Run, tmp_path: Path, umask: int) -> None:
    code = f"""
import os, torch, veturboio
os.umask({umask})
veturboio.save_pt({{"a": torch.ones(2)}}, "model.pt")
assert os.umask(0) == {umask}, "the umask was changed"
"""
    run(code)
    assert stat.S_IMODE((tmp_path / "model.pt").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("there", [True, False])
def test_symlinks_are_followed(tmp_path: Path, there: bool) -> None:
    (tmp_path / "x").mkdir()
    real = tmp_path / "x" / "real"
    if there:
        veturboio.save_pt(OTHER, real)
    (tmp_path / "x" / "second").symlink_to("real")
    (tmp_path / "first").symlink_to("x/second")
    veturboio.save_pt(STATE, tmp_path / "first")
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "x" / "second").is_symlink()
    assert not real.is_symlink()
    assert_whole(real)
    assert sorted(path.name for path in real.parent.iterdir()) == ["real", "second"]


def same_refusal(target: str) -> Exception:
    """How ``save_file`` and ``save_pt`` refuse a target: in the same words."""
    refusals = []
    for save in (veturboio.save_file, veturboio.save_pt):
        with pytest.raises((OSError, ValueError)) as refusal:
            save(OTHER, target)
        refusals.append(refusal.value)
    ours, theirs = refusals[1], refusals[0]
    assert type(ours) is type(theirs)
    assert str(ours) == str(theirs)
    for name in ("errno", "filename"):
        assert getattr(ours, name, None) == getattr(theirs, name, None)
    return ours


NAMES = ["", ".", "..", "/", "sub", "sub/", "sub/.", "new/", "new/.", "no/file", "nul\0", "pipe"]
LINKS = {"to sub": "sub", "to new": "new/", "round": "round", "astray": "no/file"}


@pytest.mark.parametrize("name", [*NAMES, *LINKS, "/dev/null"])
def test_targets_are_refused_as_save_file_refuses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    os.mkfifo("pipe")
    for link, target in LINKS.items():
        os.symlink(target, link)  # noqa: PTH211 - a Path forgets a slash at the end
    before = sorted(tmp_path.rglob("*"))
    files = open_files()
    refusal = same_refusal(name)
    assert str(refusal).removeprefix(f"[Errno {getattr(refusal, 'errno', 0)}] ").startswith("save ")
    assert sorted(tmp_path.rglob("*")) == before
    assert open_files() == files


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_that_is_not_ours_to_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "model").write_bytes(b"old")
    (tmp_path / "model").chmod(0o444)
    code = """
import os, torch, veturboio
os.setuid(65534)
try:
    veturboio.save_pt({"a": torch.ones(9)}, "model")
except PermissionError as error:
    assert error.filename == "model", error
else:
    raise SystemExit("it was not refused")
"""
    # Not under the directory of the test's user, which others may not enter.
    descriptor = os.open(tmp_path, os.O_RDONLY)
    done = Child(code, cwd=Path(f"/proc/{os.getpid()}/fd/{descriptor}")).wait()
    os.close(descriptor)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_no_room_for_what_is_to_be_sent(
    mount: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = mount("size=4m")
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    address, files = f"file://{tmp_path}/model.pt", open_files()
    with pytest.raises(OSError, match="a temporary file") as refusal:
        veturboio.save_pt({"a": torch.rand(2**22)}, address)
    assert refusal.value.errno == errno.ENOSPC
    assert address in str(refusal.value)
    assert list(disk.iterdir()) == []
    assert not (tmp_path / "model.pt").exists()
    assert open_files() == files


@pytest.mark.parametrize("size", [100, 2**22], ids=["in the buffer", "past the buffer"])
def test_full_disk(mount: Callable[[str], Path], size: int) -> None:
    disk = mount("size=8k" if size == 100 else "size=4m")
    target = disk / "model.pt"
    target.write_bytes(b"old")
    files = open_files()
    state = {f"{i}": torch.rand(size) for i in range(16)}
    with pytest.raises(OSError) as refusal:
        veturboio.save_pt(state, target)
    assert refusal.value.errno == errno.ENOSPC
    assert refusal.value.filename == str(target)
    assert str(target) in str(refusal.value)
    assert target.read_bytes() == b"old"
    assert list(disk.iterdir()) == [target]
    assert open_files() == files


class Unpicklable:
    def __reduce__(self) -> tuple:
        raise pickle.PicklingError("not me")


class Interrupting:
    def __reduce__(self) -> tuple:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("value", "error"),
    [(Unpicklable(), pickle.PicklingError), (Interrupting(), KeyboardInterrupt)],
)
def test_a_value_that_cannot_be_saved(
    tmp_path: Path, value: object, error: type[BaseException]
) -> None:
    target = tmp_path / "model.pt"
    veturboio.save_pt(STATE, target)
    files = open_files()
    with pytest.raises(error):
        veturboio.save_pt({"a": torch.ones(5), "culprit": value}, target)
    assert_whole(target)
    assert list(tmp_path.iterdir()) == [target]
    assert open_files() == files


@pytest.mark.parametrize("value", [None, [torch.ones(1)], torch.ones(1), "a"], ids=repr)
def test_what_is_no_state_dict(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match="state_dict is not a dict"):
        veturboio.save_pt(value, tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [None, 3, ["a"]], ids=repr)
def test_paths_of_the_wrong_kind(path: object) -> None:
    with pytest.raises(TypeError):
        veturboio.save_pt(STATE, path)


def test_encryption_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model.pt"
    with pytest.raises(NotImplementedError, match="use_cipher"):
        veturboio.save_pt(STATE, target, use_cipher=True)
    monkeypatch.setenv("VETURBOIO_USE_CIPHER", "1")
    for asked in ({}, {"use_cipher": False}, {"use_cipher": None}):
        with pytest.raises(NotImplementedError, match="use_cipher"):
            veturboio.save_pt(STATE, target, **asked)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("VETURBOIO_USE_CIPHER", "0")
    veturboio.save_pt(STATE, target)
    assert_whole(target)


def test_whoever_was_faster_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"

    class Slow(dict[str, int]):
        """Values that somebody else's file overtakes while they are being written."""

        def __reduce__(self) -> tuple[type[dict[str, int]], tuple[()]]:
            path.write_bytes(b"theirs")
            return dict, ()

    with pytest.raises(FileExistsError, match=r"model\.pt: File exists"):
        veturboio.save_pt({"slow": Slow()}, path, overwrite=False)
    assert path.read_bytes() == b"theirs"
    assert [each.name for each in tmp_path.iterdir()] == ["model.pt"]


def test_parameters_without_a_shape_are_saved_as_torch_save_does(tmp_path: Path) -> None:
    model = torch.nn.LazyLinear(3)
    veturboio.save_pt(model.state_dict(), tmp_path / "model.pt")
    with (tmp_path / "theirs").open("wb") as file:
        torch.save(model.state_dict(), file)
    assert (tmp_path / "model.pt").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_file_that_is_not_committed_goes(tmp_path: Path) -> None:
    new = _ops.NewFile(str(tmp_path / "model"), overwrite=True)
    os.write(new.fileno(), b"bytes")
    assert len(list(tmp_path.iterdir())) == 1
    files = open_files()
    del new
    assert list(tmp_path.iterdir()) == []
    assert len(open_files()) < len(files)
    new = _ops.NewFile(str(tmp_path / "model"), overwrite=True)
    os.write(new.fileno(), b"bytes")
    new.commit()
    assert (tmp_path / "model").read_bytes() == b"bytes"
    new.abort()
    assert new.fileno() == -1
    with pytest.raises(veturboio.ArgumentError, match="committed or aborted already"):
        new.commit()


class Unreadable:
    """A value that fails as it is pickled, in a way that has nothing to do with the file."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> str:
        raise self.error


@pytest.mark.parametrize("target", ["path", "address"])
@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(2, "a shard"), OSError(28, "a disk"), KeyboardInterrupt(), RuntimeError()],
    ids=lambda error: type(error).__name__,
)
def test_what_a_value_raises_is_raised_as_it_is(
    tmp_path: Path, error: BaseException, target: str
) -> None:
    path = tmp_path / "model.pt"
    veturboio.save_pt(STATE, path)
    name = path if target == "path" else "s3://bucket/model.pt"
    with pytest.raises(type(error)) as raised:
        veturboio.save_pt({**STATE, "value": Unreadable(error), "more": STATE}, name)
    assert raised.value is error
    assert_whole(path)
    assert list(tmp_path.iterdir()) == [path]
