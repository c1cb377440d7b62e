"""Several checkpoints in one go: files, directories, and what becomes of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from probe import assert_same
from test_convert import convert, refused

import veturboio


def state(value: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3, 4), value), "b": torch.full((2,), float(value))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four checkpoints, one of every suffix, and what is none."""
    folder = tmp_path / "folder"
    (folder / "inner.pt").mkdir(parents=True)
    torch.save(state(9), folder / "inner.pt" / "deeper.pt")
    for value, name in enumerate(["a.pt", "b.pth", "c.bin", "d.ckpt"]):
        torch.save(state(value), folder / name)
    for name in ("readme.md", "config.json", "e.onnx"):
        (folder / name).write_text("not a checkpoint")
    return folder


def assert_converted(directory: Path, names: str = "abcd") -> None:
    assert sorted(path.stem for path in directory.glob("*.safetensors")) == sorted(names)
    for name in names:
        loaded = veturboio.load(directory / f"{name}.safetensors")
        assert_same(loaded, state("abcd".index(name)))


def test_a_directory(folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    said = convert("-i", folder).stdout
    assert_converted(folder)
    added = {f"{name}.safetensors" for name in "abcd"}
    assert {path.name for path in folder.iterdir()} == before | added
    assert said.count("converted ") == 4
    assert [path.name for path in (folder / "inner.pt").iterdir()] == ["deeper.pt"]


@pytest.mark.parametrize("there", [True, False])
def test_a_directory_for_the_results(folder: Path, tmp_path: Path, there: bool) -> None:
    output = tmp_path / "output"
    if there:
        output.mkdir()
    convert("-i", folder, "-o", output)
    assert_converted(output)
    assert list(folder.glob("*.safetensors")) == []


def test_a_directory_of_one_file(tmp_path: Path) -> None:
    """The output of a directory is a directory, however many files it has."""
    (tmp_path / "in").mkdir()
    torch.save(state(0), tmp_path / "in" / "a.pt")
    convert("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert_converted(tmp_path / "out", "a")


def test_an_output_that_ends_in_a_slash_is_a_directory(folder: Path, tmp_path: Path) -> None:
    convert("-i", folder / "a.pt", "-o", f"{tmp_path}/out/")
    assert_converted(tmp_path / "out", "a")


@pytest.mark.parametrize("repeated", [True, False], ids=["-i a -i b", "-i a b"])
def test_several_files(folder: Path, tmp_path: Path, repeated: bool) -> None:
    a, c = folder / "a.pt", folder / "c.bin"
    inputs = ["-i", a, "-i", c] if repeated else ["-i", a, c]
    convert(*inputs)
    assert_converted(folder, "ac")
    convert(*inputs, "-o", tmp_path / "out")
    assert_converted(tmp_path / "out", "ac")


def test_a_file_named_twice_is_converted_once(folder: Path) -> None:
    said = convert("-i", folder / "a.pt", folder / "a.pt", folder).stdout
    assert said.count("converted ") == 4
    assert_converted(folder)


def test_dry_run_makes_nothing(folder: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    said = convert("-i", folder, "-o", tmp_path / "out", "--dry-run").stdout
    assert said.count("would convert ") == 4
    assert f"{tmp_path / 'out' / 'a.safetensors'}" in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_the_others_are_converted_where_one_fails(folder: Path, options: list[str]) -> None:
    (folder / "b.pth").write_bytes(b"no checkpoint at all")
    done = convert("-i", folder, *options, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"convert {folder / 'b.pth'}: " in done.stderr
    assert done.stdout.count("\n") == 3
    if not options:
        assert_converted(folder, "acd")


def test_a_missing_file_does_not_stop_the_others(folder: Path) -> None:
    missing = folder / "missing.pt"
    assert str(missing) in refused("-i", missing, folder / "a.pt")
    assert_converted(folder, "a")


def test_existing_outputs_are_kept_unless_told(folder: Path) -> None:
    (folder / "a.safetensors").write_bytes(b"precious")
    assert "--overwrite" in refused("-i", folder)
    assert (folder / "a.safetensors").read_bytes() == b"precious"
    (folder / "a.safetensors").unlink()
    assert_converted(folder, "bcd")
    convert("-i", folder, "--overwrite")
    assert_converted(folder)


@pytest.mark.parametrize("options", [[], ["--overwrite"], ["--dry-run"]])
def test_two_files_do_not_take_one_output(tmp_path: Path, options: list[str]) -> None:
    """Nor does the second replace the first's, though replacing is allowed."""
    for value, name in enumerate(["a.pt", "a.pth"]):
        torch.save(state(value), tmp_path / name)
    reason = refused("-i", tmp_path, *options)
    assert str(tmp_path / "a.pt") in reason
    assert f"convert {tmp_path / 'a.pth'}: " in reason
    if "--dry-run" not in options:
        assert_converted(tmp_path, "a")


def test_two_files_of_one_name_do_not_take_one_output(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    torch.save(state(5), tmp_path / "other" / "a.pt")
    refused("-i", folder / "a.pt", tmp_path / "other" / "a.pt", "-o", tmp_path / "out")
    assert_converted(tmp_path / "out", "a")


def test_links_are_converted_under_their_own_names(tmp_path: Path) -> None:
    """As in a cache of downloads, where every name is a link to a blob."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "names").mkdir()
    torch.save(state(0), tmp_path / "blobs" / "0a1b2c")
    for name in "a", "b":
        (tmp_path / "names" / f"{name}.bin").symlink_to("../blobs/0a1b2c")
    convert("-i", tmp_path / "names")
    for name in "a", "b":
        assert_same(veturboio.load(tmp_path / "names" / f"{name}.safetensors"), state(0))
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == ["0a1b2c"]


def test_directories_without_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "model.txt").touch()
    reason = refused("-i", tmp_path)
    assert all(suffix in reason for suffix in (".pt", ".pth", ".bin", ".ckpt"))


def test_an_output_that_is_no_directory(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    assert str(tmp_path / "file") in refused("-i", folder, "-o", tmp_path / "file", "--overwrite")
    assert (tmp_path / "file").read_bytes() == b"precious"
    assert "No such file" in refused("-i", folder, "-o", tmp_path / "no" / "such")


def test_options_hold_for_every_file(tmp_path: Path) -> None:
    for value, name in enumerate("ab"):
        checkpoint = {"ema": {**state(value), "note": "x"}, "model": state(value + 1)}
        torch.save(checkpoint, tmp_path / f"{name}.pt")
    options = ["--key", "ema", "--enable-to-valid-state-dict", "--validate-result"]
    said = convert("-i", tmp_path, *options).stdout
    assert_converted(tmp_path, "ab")
    assert said.count("'ema.note' (str)") == 2
    assert said.count("compared bit for bit") == 2
