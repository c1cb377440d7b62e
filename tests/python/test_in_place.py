"""Targets that can be written but not replaced: written in place, once all bytes are safe."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from forked import Child
from probe import assert_same, maps_of, open_files
from refusing import as_nobody, library
from test_background import begin_later

import veturboio

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make such targets")

Run = Callable[..., str]
State = dict[str, torch.Tensor]

STATE = {"a": torch.arange(100_000), "b": torch.rand(3, 5)}
TOLD = r"save .*: the file cannot be replaced, and was written in place: a crash"

SAVES = {"save_file": veturboio.save_file, "save_pt": veturboio.save_pt}


@pytest.fixture(params=SAVES)
def save(request: pytest.FixtureRequest) -> Callable[[State, Path], None]:
    return SAVES[request.param]


Save = Callable[[State, Path], None]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file that another one is mounted on."""
    target = tmp_path / "target"
    for name in ("target", "source"):
        (tmp_path / name).touch()
    command = ["mount", "--bind", str(tmp_path / "source"), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
    yield target
    subprocess.run(["umount", "--lazy", str(target)], check=True)


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(".veturboio")]


def test_a_file_that_is_a_mount_point(mounted: Path, save: Save) -> None:
    mounted.chmod(0o640)
    for state in (STATE, {"a": torch.ones(3)}, STATE):
        with pytest.warns(UserWarning, match=TOLD):
            save(state, mounted)
        assert_same(veturboio.load(mounted), state)
        assert_same(veturboio.load(mounted.parent / "source"), state)
    assert mounted.stat().st_mode & 0o777 == 0o640
    assert leftovers(mounted.parent) == []


def test_in_the_background_and_by_the_operator(mounted: Path) -> None:
    saving = veturboio.save_file(STATE, mounted, wait=False)
    with pytest.warns(UserWarning, match=TOLD):
        saving.result()
    assert_same(veturboio.load(mounted), STATE)
    torch.ops.veturboio.save({"a": torch.ones(3)}, str(mounted))
    assert_same(veturboio.load(mounted), {"a": torch.ones(3)})


@pytest.mark.filterwarnings("ignore:save")
def test_the_last_save_called_remains(mounted: Path) -> None:
    for _ in range(3):
        first = veturboio.save_file({"a": torch.zeros(2**20)}, mounted, wait=False)
        veturboio.save_file({"a": torch.ones(3)}, mounted)
        first.result()
        assert_same(veturboio.load(mounted), {"a": torch.ones(3)})


@pytest.mark.filterwarnings("ignore:save")
@pytest.mark.parametrize("first", ["target", "source", "second"])
def test_the_last_save_called_remains_whichever_mount_it_went_to(
    mounted: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    second = mounted.parent / "second"
    second.touch()
    subprocess.run(["mount", "--bind", str(mounted), str(second)], check=True)
    try:
        with monkeypatch.context() as patch:
            begin = begin_later(patch)
            veturboio.save_file({"a": torch.zeros(3)}, mounted.parent / first, wait=False)
        last = mounted if first == "second" else second
        veturboio.save_file({"a": torch.ones(3)}, last)
        begin().result()
        for path in (mounted, second, mounted.parent / "source"):
            assert_same(veturboio.load(path), {"a": torch.ones(3)})
    finally:
        subprocess.run(["umount", "--lazy", str(second)], check=True)


@pytest.mark.filterwarnings("ignore:save")
def test_tensors_that_are_mapped_from_the_very_file(mounted: Path) -> None:
    """They are saved as they are, and stay so, though the file changes under them."""
    veturboio.save_file(STATE, mounted)
    loaded = veturboio.load(mounted, way="map")
    assert maps_of(mounted) or maps_of(mounted.parent / "source")
    loaded["b"][1, 2] = 7
    kept = {name: tensor.clone() for name, tensor in loaded.items()}
    # The other way round, and larger: every byte of the file is another one.
    state = {"c": loaded["a"].flip(0), "a": loaded["b"], "b": loaded["a"]}
    saved = {name: tensor.clone() for name, tensor in state.items()}
    veturboio.save_file(state, mounted)
    assert_same(loaded, kept)
    assert_same(veturboio.load(mounted), saved)


@pytest.mark.filterwarnings("ignore:save")
def test_a_loop_that_loads_changes_and_saves(mounted: Path) -> None:
    veturboio.save_file({"step": torch.tensor([0]), **STATE}, mounted)
    for number in range(1, 4):
        state = veturboio.load(mounted, way="map")
        state["step"] += 1
        veturboio.save_file(state, mounted)
        assert int(state["step"]) == number
    assert_same(veturboio.load(mounted), {"step": torch.tensor([3]), **STATE})


@pytest.mark.filterwarnings("ignore:save")
def test_a_shorter_file_would_take_mapped_pages_away(mounted: Path) -> None:
    veturboio.save_file(STATE, mounted)
    before = mounted.read_bytes()
    loaded = veturboio.load(mounted, way="map")
    for save in SAVES.values():
        with pytest.raises(OSError, match=r'mapped from it: .*way="read"') as refusal:
            save({"b": loaded["b"]}, mounted)
        assert refusal.value.errno == errno.EBUSY
    assert mounted.read_bytes() == before
    assert_same(loaded, STATE)
    del loaded, refusal  # whose traceback holds the tensors too
    veturboio.save_file({"b": STATE["b"]}, mounted)
    assert_same(veturboio.load(mounted), {"b": STATE["b"]})


def test_overwrite_false_never_writes_in_place(mounted: Path, save: Save) -> None:
    mounted.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        save(STATE, mounted, overwrite=False)  # type: ignore[call-arg]
    assert mounted.read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, mount: Callable[[str], Path], save: Save
) -> None:
    """The bytes find their place beside, and then none in the file."""
    disk = mount("size=256k")
    (disk / "source").write_bytes(b"old")
    target = tmp_path / "target"
    target.touch()
    subprocess.run(["mount", "--bind", str(disk / "source"), str(target)], check=True)
    try:
        files = open_files()
        with pytest.raises(OSError) as refusal:
            save(STATE, target)
        assert refusal.value.errno == errno.ENOSPC
        assert str(target) in str(refusal.value)
        assert target.read_bytes() == b"old"
        assert leftovers(tmp_path) == []
        assert open_files() == files
    finally:
        subprocess.run(["umount", "--lazy", str(target)], check=True)


BOTH = """
import warnings
state = {"a": torch.arange(100_000)}
for save, name in ((veturboio.save_file, "f"), (veturboio.save_pt, "f.pt")):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        save(state, PATH + name)
    assert len(told) == 1 and "written in place" in str(told[0].message), told
    assert torch.equal(veturboio.load(PATH + name)["a"], state["a"])
"""


def files_of_root(directory: Path, mode: int) -> None:
    directory.mkdir()
    directory.chmod(mode)
    for name in ("f", "f.pt"):
        (directory / name).touch()
        (directory / name).chmod(0o666)


@pytest.mark.parametrize("mode", [0o755, 0o1777, 0o1775, 0o555], ids=oct)
def test_directories_that_belong_to_somebody_else(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(0o755)
    files_of_root(tmp_path / "theirs", mode)
    inodes = [path.stat().st_ino for path in sorted((tmp_path / "theirs").iterdir())]
    as_nobody(tmp_path, BOTH.replace("PATH", '"theirs/"'))
    files = sorted((tmp_path / "theirs").iterdir())
    assert [path.name for path in files] == ["f", "f.pt"]
    assert [path.stat().st_ino for path in files] == inodes
    assert [path.stat().st_mode & 0o777 for path in files] == [0o666] * 2


def test_a_new_file_needs_a_directory_that_takes_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    files_of_root(tmp_path / "theirs", 0o755)
    as_nobody(
        tmp_path,
        "for save in (veturboio.save_file, veturboio.save_pt):\n"
        "    try:\n        save({'a': torch.ones(3)}, 'theirs/new')\n"
        "    except PermissionError as error:\n        assert error.filename == 'theirs/new'\n"
        "    else:\n        raise SystemExit('it was not refused')\n",
    )
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir()) == ["f", "f.pt"]


READ_ONLY = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def mount(source, target, flags):
    if libc.mount(source.encode(), target.encode(), None, flags, None):
        raise SystemExit(f"SKIP {os.strerror(ctypes.get_errno())}")
BIND, REMOUNT, READ_ONLY, PRIVATE = 0x1000, 0x20, 1, 0x44000
if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, PRIVATE, None):
    raise SystemExit("SKIP no mount namespace")
here = os.getcwd()
mount(here, here, BIND)
os.chdir(here)
for name in ("f", "f.pt"):
    mount(f"{here}/{name}", f"{here}/{name}", BIND)
mount(here, here, BIND | REMOUNT | READ_ONLY)
"""


@pytest.mark.parametrize("temporary", ["a directory", "none"])
def test_a_file_that_is_mounted_on_a_system_that_is_read_only(
    tmp_path: Path, temporary: str
) -> None:
    """As containers have it; without a place for temporary files, the bytes wait in memory."""
    for name in ("f", "f.pt"):
        (tmp_path / name).touch()
    elsewhere = "/dev/shm" if temporary == "a directory" else str(tmp_path)
    code = f"import torch, veturboio\n{READ_ONLY}{BOTH.replace('PATH', 'here + chr(47)')}"
    done = Child(code, cwd=tmp_path, environment={"TMPDIR": elsewhere}).wait()
    if done.stderr.startswith("SKIP"):
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert leftovers(tmp_path) == []


def test_files_without_a_name(tmp_path: Path, save: Save) -> None:
    """A file that was removed, and memory, are reached by their descriptors alone."""
    with (tmp_path / "removed").open("w+b") as file:
        (tmp_path / "removed").unlink()
        for descriptor in (file.fileno(), os.memfd_create("veturboio-test")):
            path = Path(f"/proc/self/fd/{descriptor}")
            with pytest.warns(UserWarning, match=TOLD):
                save(STATE, path)
            assert_same(veturboio.load(path), STATE)
    os.close(descriptor)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:save")
def test_a_descriptor_is_not_the_file_that_its_link_happens_to_name(
    tmp_path: Path, save: Save
) -> None:
    other = tmp_path / "removed (deleted)"
    other.write_bytes(b"another file")
    with (tmp_path / "removed").open("w+b") as file:
        (tmp_path / "removed").unlink()
        path = Path(f"/proc/self/fd/{file.fileno()}")
        assert os.readlink(path) == str(other)  # noqa: PTH115
        save(STATE, path)
        assert_same(veturboio.load(path), STATE)
    assert other.read_bytes() == b"another file"
    assert list(tmp_path.iterdir()) == [other]


def test_settings_of_the_kernel_are_no_files(tmp_path: Path, save: Save) -> None:
    setting = Path("/proc/self/comm")
    before = setting.read_bytes()
    with pytest.raises(OSError):
        save(STATE, setting)
    assert setting.read_bytes() == before


REFUSING = """
import errno, os, torch, veturboio, warnings
def refuse(**calls):
    os.environ["REFUSE"] = " ".join(f"{name}={number}" for name, number in calls.items())
state = {"a": torch.arange(1000)}
"""


def refusing(code: str, tmp_path: Path, run_anew: Run, **environment: str) -> str:
    made = library(tmp_path)
    return run_anew(REFUSING + code, LD_PRELOAD=str(made), REFUSE="", **environment)


def test_file_systems_that_rename_nothing(tmp_path: Path, run_anew: Run) -> None:
    code = """
for number in (errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV):
    for save in (veturboio.save_file, veturboio.save_pt):
        for overwrite in (True, False):
            refuse(renameat=number, renameat2=number, linkat=number)
            save(state, "model", overwrite=overwrite)
            assert torch.equal(veturboio.load("model")["a"], state["a"])
            try:
                save({}, "model", overwrite=False)
            except FileExistsError:
                pass
            else:
                raise SystemExit("it was not refused")
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                save({"b": torch.ones(3)}, "model")
            assert len(told) == 1 and "written in place" in str(told[0].message), told
            assert list(veturboio.load("model")) == ["b"]
            os.unlink("model")
assert sorted(os.listdir()) == ["refuse.so"], os.listdir()
"""
    refusing(code, tmp_path, run_anew)


def test_a_new_file_needs_any_of_three_ways(tmp_path: Path, run_anew: Run) -> None:
    """A rename that replaces nothing, a hard link, or a name that is taken first and replaced."""
    code = """
warnings.simplefilter("error")
for calls in ({}, {"renameat2": errno.EINVAL}, {"renameat2": errno.ENOSYS, "linkat": errno.EPERM}):
    for save in (veturboio.save_file, veturboio.save_pt):
        refuse(**calls)
        save(state, "model", overwrite=False)
        assert torch.equal(veturboio.load("model")["a"], state["a"])
        class Slow(dict):
            def __reduce__(self):
                with open("theirs", "wb") as file:
                    file.write(b"theirs")
                return dict, ()
        try:
            veturboio.save_pt({"slow": Slow()}, "theirs", overwrite=False)
        except FileExistsError:
            pass
        else:
            raise SystemExit("it was replaced")
        assert open("theirs", "rb").read() == b"theirs"
        os.unlink("model"), os.unlink("theirs")
assert os.listdir() == ["refuse.so"]
"""
    refusing(code, tmp_path, run_anew)


def test_what_the_system_refuses_for_another_reason_is_told(tmp_path: Path, run_anew: Run) -> None:
    code = """
for save in (veturboio.save_file, veturboio.save_pt):
    for overwrite, call in ((True, "renameat"), (False, "renameat2")):
        for there in (True, False) if overwrite else (False,):
            if there:
                open("model", "wb").close()
            refuse(**{call: errno.EIO})
            try:
                save(state, "model", overwrite=overwrite)
            except OSError as error:
                assert error.errno == errno.EIO and error.filename == "model"
            else:
                raise SystemExit("it was not refused")
            refuse()
            assert os.path.exists("model") == there
            if there:
                os.unlink("model")
assert os.listdir() == ["refuse.so"]
"""
    refusing(code, tmp_path, run_anew)


def test_a_directory_that_cannot_be_synced(tmp_path: Path, run_anew: Run) -> None:
    """Some file systems do not; a disk that fails is another matter."""
    code = """
for save in (veturboio.save_file, veturboio.save_pt):
    for number in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
        refuse(dirsync=number)
        save(state, "model")
    refuse(dirsync=errno.EIO)
    try:
        save(state, "model")
    except OSError as error:
        assert error.errno == errno.EIO
    else:
        raise SystemExit("it was not told")
"""
    refusing(code, tmp_path, run_anew)


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, run_anew: Run) -> None:
    """The file is synced while it has its temporary name, its directory once it has its own."""
    log = tmp_path / "log"
    code = """
for save in (veturboio.save_file, veturboio.save_pt):
    for overwrite in (True, False):
        save(state, save.__name__ + str(overwrite), overwrite=overwrite)
    refuse(fsync=errno.EIO)
    try:
        save(state, "never")
    except OSError as error:
        assert error.errno == errno.EIO and not os.path.exists("never")
    else:
        raise SystemExit("the file was not synced")
    refuse()
veturboio.save_file(state, "later", durable=False)
"""
    refusing(code, tmp_path, run_anew, REFUSE_LOG=str(log))
    steps = [line.split(" ", 1) for line in log.read_text().splitlines()]
    steps = [(call, "temporary" if name.endswith(".tmp") else name) for call, name in steps]
    expected = []
    for save in SAVES:
        for overwrite in (True, False):
            rename = "renameat" if overwrite else "renameat2"
            expected += [("fsync", "temporary"), (rename, f"{save}{overwrite}")]
            expected.append(("dirsync", tmp_path.name))
        expected.append(("fsync", "temporary"))
    assert steps == [*expected, ("renameat", "later")]


def test_a_directory_that_may_be_written_and_not_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "drop").mkdir()
    (tmp_path / "drop").chmod(0o333)
    as_nobody(
        tmp_path,
        "veturboio.save_file({'a': torch.ones(3)}, 'drop/a')\n"
        "veturboio.save_pt({'a': torch.ones(3)}, 'drop/b')\n",
    )
    assert sorted(path.name for path in (tmp_path / "drop").iterdir()) == ["a", "b"]


LINKS = Path("/proc/sys/fs/protected_symlinks")
FILES = Path("/proc/sys/fs/protected_regular")


@pytest.fixture
def protected() -> Iterator[Callable[[Path, int], None]]:
    """Sets one of the kernel's rules for a test; skips it where that is not permitted."""
    before: list[tuple[Path, str]] = []

    def set_to(rule: Path, value: int) -> None:
        try:
            old = rule.read_text()
            rule.write_text(str(value))
        except OSError as error:
            pytest.skip(f"{rule} cannot be set: {error}")
        before.append((rule, old))

    yield set_to
    for rule, old in reversed(before):
        rule.write_text(old)


REFUSED = """
for save in (veturboio.save_file, veturboio.save_pt):
    try:
        save({"a": torch.ones(3)}, "shared/link")
    except PermissionError as error:
        assert (error.errno, error.filename) == (13, "shared/link"), error
    else:
        raise SystemExit("the link was followed")
"""


def shared_directory(directory: Path) -> Path:
    directory.chmod(0o777)
    shared = directory / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (directory / "mine").mkdir()
    (directory / "mine").chmod(0o777)
    return shared


@pytest.mark.parametrize("there", [True, False], ids=["there", "dangling"])
@pytest.mark.parametrize("kind", ["link", "chain"])
def test_links_that_the_kernel_would_not_follow(
    tmp_path: Path, protected: Callable[[Path, int], None], there: bool, kind: str
) -> None:
    """Somebody else's in a directory that all may write to."""
    shared = shared_directory(tmp_path)
    target = tmp_path / "mine/model"
    if there:
        target.write_bytes(b"old")
        target.chmod(0o666)
    (shared / ("link" if kind == "link" else "second")).symlink_to("../mine/model")
    if kind == "chain":
        (shared / "link").symlink_to("second")
        os.chown(shared / "link", 65534, 65534, follow_symlinks=False)
    name = "link" if kind == "link" else "second"
    os.chown(shared / name, 1000, 1000, follow_symlinks=False)
    protected(LINKS, 1)
    as_nobody(tmp_path, REFUSED)
    assert target.exists() == there
    assert not there or target.read_bytes() == b"old"
    protected(LINKS, 0)
    as_nobody(
        tmp_path, REFUSED.replace("raise SystemExit", "print").replace("except P", "except 0 and P")
    )
    assert list(veturboio.load(target)) == ["a"]


@pytest.mark.parametrize("owner", [65534, 0], ids=["our own", "of the directory's owner"])
def test_links_that_the_kernel_follows(
    tmp_path: Path, protected: Callable[[Path, int], None], owner: int
) -> None:
    shared = shared_directory(tmp_path)
    (shared / "link").symlink_to("../mine/model")
    os.chown(shared / "link", owner, owner, follow_symlinks=False)
    protected(LINKS, 1)
    as_nobody(tmp_path, "veturboio.save_file({'a': torch.ones(3)}, 'shared/link')")
    assert list(veturboio.load(tmp_path / "mine/model")) == ["a"]


def test_a_link_within_a_path_is_followed_as_the_kernel_does(
    tmp_path: Path, protected: Callable[[Path, int], None]
) -> None:
    """Its rule is about the last name alone."""
    shared = shared_directory(tmp_path)
    (shared / "to").symlink_to("../mine")
    os.chown(shared / "to", 1000, 1000, follow_symlinks=False)
    protected(LINKS, 1)
    as_nobody(
        tmp_path,
        "open('shared/to/plain', 'wb').close()\n"
        "veturboio.save_file({'a': torch.ones(3)}, 'shared/to/model')",
    )
    assert list(veturboio.load(tmp_path / "mine/model")) == ["a"]


def test_files_that_the_kernel_would_not_open_for_making(
    tmp_path: Path, protected: Callable[[Path, int], None]
) -> None:
    """Somebody else's file in a directory that all may write to: torch.save does not write it."""
    shared = shared_directory(tmp_path)
    for name in ("link", "other"):
        (shared / name).write_bytes(b"old")
        (shared / name).chmod(0o666)
        os.chown(shared / name, 1000, 1000)
    protected(FILES, 1)
    as_nobody(tmp_path, REFUSED)
    assert (shared / "link").read_bytes() == b"old"
    assert leftovers(shared) == []
