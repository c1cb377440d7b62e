"""Saving over a file: who may do what with it stays, and nobody may do more, not for a moment."""

from __future__ import annotations

import os
import stat
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from refusing import as_nobody

import veturboio

STATE = {"a": torch.arange(1000)}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")

ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An access control list as the kernel takes it."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


#: Bob (1000) may read, whom neither the mode's group nor its others let.
FOR_BOB = acl(
    (USER_OBJ, 6, 0xFFFFFFFF),
    (USER, 4, 1000),
    (GROUP_OBJ, 0, 0xFFFFFFFF),
    (MASK, 4, 0xFFFFFFFF),
    (OTHER, 0, 0xFFFFFFFF),
)


def in_background(state: dict[str, torch.Tensor], path: Path) -> None:
    veturboio.save_file(state, path, wait=False).result()


def by_operator(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.ops.veturboio.save(state, str(path))


SAVES = [veturboio.save_file, in_background, by_operator, veturboio.save_pt]


@pytest.fixture(params=SAVES, ids=lambda save: save.__name__)
def save(request: pytest.FixtureRequest) -> Callable[[dict[str, torch.Tensor], Path], None]:
    return request.param


Save = Callable[[dict[str, torch.Tensor], Path], None]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def set_or_skip(path: Path, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        pytest.skip(f"the file system takes no {name}: {error}")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o604, 0o200, 0o755, 0o666, 0o4755, 0o2664])
def test_the_mode_stays(tmp_path: Path, save: Save, mode: int) -> None:
    path = tmp_path / "model"
    path.touch()
    path.chmod(mode)
    save(STATE, path)
    assert mode_of(path) == mode
    save(STATE, path)
    assert mode_of(path) == mode


def test_a_symbolic_link_passes_on_what_its_file_has(tmp_path: Path, save: Save) -> None:
    (tmp_path / "model").touch(0o600)
    (tmp_path / "link").symlink_to("model")
    save(STATE, tmp_path / "link")
    assert mode_of(tmp_path / "model") == 0o600


@needs_root
def test_owner_and_group_stay(tmp_path: Path, save: Save) -> None:
    path = tmp_path / "model"
    path.touch()
    path.chmod(0o640)
    os.chown(path, 1000, 2000)
    save(STATE, path)
    status = path.stat()
    assert (status.st_uid, status.st_gid, mode_of(path)) == (1000, 2000, 0o640)


def test_extended_attributes_stay(tmp_path: Path, save: Save) -> None:
    path = tmp_path / "model"
    path.touch()
    values = {"user.note": b"of mine", "user.empty": b"", "user.long": b"x" * 2000}
    for name, value in values.items():
        set_or_skip(path, name, value)
    save(STATE, path)
    kept = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    assert {name: value for name, value in kept.items() if name.startswith("user.")} == values


@needs_root
def test_what_belongs_to_the_bytes_does_not_stay(tmp_path: Path, save: Save) -> None:
    """Capabilities are given to a program, not to whatever takes its name."""
    path = tmp_path / "model"
    path.touch()
    set_or_skip(path, "security.capability", struct.pack("<IIIII", 0x02000001, 1, 0, 0, 0))
    save(STATE, path)
    assert "security.capability" not in os.listxattr(path)


def test_access_control_lists_stay(tmp_path: Path, save: Save) -> None:
    path = tmp_path / "model"
    path.touch(0o600)
    set_or_skip(path, ACL, FOR_BOB)
    save(STATE, path)
    assert os.getxattr(path, ACL) == FOR_BOB
    assert mode_of(path) == 0o640


def test_a_directory_gives_its_list_to_new_files_alone(tmp_path: Path, save: Save) -> None:
    (tmp_path / "old").touch(0o600)
    (tmp_path / "old").chmod(0o640)
    set_or_skip(tmp_path, DEFAULT_ACL, FOR_BOB)
    save(STATE, tmp_path / "old")
    assert ACL not in os.listxattr(tmp_path / "old")
    assert mode_of(tmp_path / "old") == 0o640
    save(STATE, tmp_path / "new")
    assert os.getxattr(tmp_path / "new", ACL) == FOR_BOB


@needs_root
@pytest.mark.parametrize(
    ("mode", "left"), [(0o664, 0o644), (0o606, 0o600), (0o666, 0o666), (0o646, 0o644)]
)
def test_a_group_that_cannot_be_kept_gives_nobody_more(
    tmp_path: Path, mode: int, left: int
) -> None:
    """Whoever was of the old group is of the others now, and the other way round."""
    tmp_path.chmod(0o777)
    for name in ("model", "model.pt"):
        (tmp_path / name).touch()
        os.chown(tmp_path / name, 65534, 2000)
        (tmp_path / name).chmod(mode)
    as_nobody(
        tmp_path,
        "veturboio.save_file({'a': torch.ones(9)}, 'model')\n"
        "veturboio.save_pt({'a': torch.ones(9)}, 'model.pt')\n",
    )
    for name in ("model", "model.pt"):
        assert (tmp_path / name).stat().st_gid == 65534
        assert mode_of(tmp_path / name) == left


@needs_root
def test_a_list_is_made_stricter_with_the_group(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    path = tmp_path / "model"
    path.touch()
    os.chown(path, 65534, 2000)
    entries = [(USER_OBJ, 6), (USER, 4), (GROUP_OBJ, 6), (MASK, 6), (OTHER, 4)]
    ids = [1000 if tag == USER else 0xFFFFFFFF for tag, _ in entries]
    given = [(tag, mode, who) for (tag, mode), who in zip(entries, ids, strict=True)]
    set_or_skip(path, ACL, acl(*given))
    as_nobody(tmp_path, "veturboio.save_file({'a': torch.ones(9)}, 'model')")
    given[2] = (GROUP_OBJ, 4, 0xFFFFFFFF)
    assert os.getxattr(path, ACL) == acl(*given)


@needs_root
def test_special_bits_go_with_the_owner(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    path = tmp_path / "model"
    path.touch()
    path.chmod(0o6777)
    as_nobody(tmp_path, "veturboio.save_file({'a': torch.ones(9)}, 'model')")
    assert path.stat().st_uid == 65534
    assert mode_of(path) == 0o777


class Looking:
    """A value that looks at the files beside the one that it is saved to."""

    def __init__(self, directory: Path, seen: list[int]) -> None:
        self.directory, self.seen = directory, seen

    def __reduce__(self) -> tuple[type, tuple[()]]:
        self.seen.extend(mode_of(path) for path in self.directory.glob(".veturboio-*"))
        return dict, ()


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_the_temporary_file_is_its_owners_alone(tmp_path: Path, umask: int) -> None:
    (tmp_path / "model").touch(0o640)
    seen: list[int] = []
    before = os.umask(umask)
    try:
        veturboio.save_pt({"looking": Looking(tmp_path, seen)}, tmp_path / "model")
    finally:
        os.umask(before)
    assert seen == [0o600]


def test_a_permission_that_is_taken_away_meanwhile_stays_away(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.touch(0o644)

    class Taking:
        def __reduce__(self) -> tuple[type, tuple[()]]:
            path.chmod(0o600)
            return dict, ()

    veturboio.save_pt({"taking": Taking()}, path)
    assert mode_of(path) == 0o600


def test_what_is_removed_meanwhile_has_said_how_it_is_to_be(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.touch()
    path.chmod(0o640)

    class Removing:
        def __reduce__(self) -> tuple[type, tuple[()]]:
            path.unlink()
            return dict, ()

    veturboio.save_pt({"removing": Removing()}, path)
    assert mode_of(path) == 0o640


@pytest.mark.parametrize("save", [veturboio.save_file, in_background, veturboio.save_pt])
def test_other_names_of_a_file_are_told_of(tmp_path: Path, save: Save) -> None:
    (tmp_path / "model").write_bytes(b"old")
    os.link(tmp_path / "model", tmp_path / "second")
    with pytest.warns(
        UserWarning, match=r"save .*model: 1 other name of the file \(hard links\)"
    ) as told:
        save(STATE, tmp_path / "model")
    if save is not in_background:
        assert told[0].filename == __file__
    assert (tmp_path / "second").read_bytes() == b"old"
    os.link(tmp_path / "model", tmp_path / "third")
    os.link(tmp_path / "model", tmp_path / "fourth")
    with pytest.warns(UserWarning, match=r"2 other names of the file \(hard links\) keep"):
        save(STATE, tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(STATE, tmp_path / "model")
        save(STATE, tmp_path / "new")
    (tmp_path / "two\nlines").touch()
    os.link(tmp_path / "two\nlines", tmp_path / "fifth")
    with pytest.warns(UserWarning, match=r"save .*two\\nlines: 1 other name"):
        save(STATE, tmp_path / "two\nlines")
