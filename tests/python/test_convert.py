"""``python -m veturboio.convert``: from torch.save's files to safetensors."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from forked import Child, Done
from probe import DTYPES, assert_same, header_of, random_tensor

import veturboio
import veturboio.convert as veturboio_convert
from veturboio import _ops

STATE = {
    "layer.weight": torch.rand(40, 30),
    "layer.bias": torch.rand(30).bfloat16(),
    "transposed": torch.rand(4, 6).t(),
    "steps": torch.tensor(3),
    "mask": torch.tensor([True, False]),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.save(STATE, path)
    return path


MAIN = """
import runpy
runpy.run_module("veturboio.convert", run_name="__main__", alter_sys=True)
"""


def convert(*arguments: object, check: bool = True) -> Done:
    done = Child(MAIN, *arguments, cwd=Path.cwd()).wait()
    assert not check or done.returncode == 0, done.stderr
    return done


def refused(*arguments: object) -> str:
    """The reason that a refused conversion gives: exit code 1, and no traceback."""
    done = convert(*arguments, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()
    return done.stderr


def test_given_output(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.safetensors"
    convert("-i", source, "-o", target)
    assert_same(veturboio.load(target), STATE)
    long = tmp_path / "long.safetensors"
    convert("--input", source, "--output", long)
    assert long.read_bytes() == target.read_bytes()


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "pytorch_model.v2.pth", "model"])
def test_default_output_lies_beside_the_input(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder.pt"
    folder.mkdir()
    torch.save(STATE, folder / name)
    convert("-i", folder / name)
    expected = (folder / name).with_suffix(".safetensors")
    assert sorted(path.name for path in folder.iterdir()) == sorted([name, expected.name])
    assert_same(veturboio.load(expected), STATE)


def test_an_existing_output_is_kept_unless_told(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"precious")
    assert str(target) in refused("-i", source)
    assert "overwrite" in refused("-i", source, "-o", target)
    assert target.read_bytes() == b"precious"
    convert("-i", source, "-o", target, "--overwrite")
    assert_same(veturboio.load(target), STATE)


def test_dry_run_writes_nothing(source: Path, tmp_path: Path) -> None:
    for option in ("--dry-run", "-d"):
        convert("-i", source, option)
        assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_dry_run_finds_what_would_fail(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "epoch": 3}, tmp_path / "model.pt")
    assert "epoch" in refused("-i", tmp_path / "model.pt", "--dry-run")


def test_dry_run_says_what_would_be_done(source: Path, tmp_path: Path) -> None:
    said = convert("-i", source, "-d").stdout
    size = sum(tensor.nbytes for tensor in STATE.values())
    target = tmp_path / "model.safetensors"
    assert said == f"would convert {source} to {target}: {len(STATE)} tensors, {size} bytes\n"


def test_validated_result(source: Path, tmp_path: Path) -> None:
    convert("-i", source, "--validate-result")
    assert_same(veturboio.load(tmp_path / "model.safetensors"), STATE)


def test_a_result_that_differs_is_found_only_if_validated(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As a disk would that gives back other bytes: one bit is not what it was."""
    save = _ops.save

    def save_badly(tensors: dict[str, torch.Tensor], file: str, **options: object) -> None:
        save(tensors, file, **options)
        with Path(file).open("r+b") as written:
            written.seek(-1, os.SEEK_END)
            last = written.read(1)[0]
            written.seek(-1, os.SEEK_END)
            written.write(bytes([last ^ 1]))

    monkeypatch.setattr(_ops, "save", save_badly)
    assert veturboio_convert.main(["-i", str(source)]) == 0
    assert veturboio_convert.main(["-i", str(source), "--overwrite", "--validate-result"]) == 1
    assert "'mask'" in capsys.readouterr().err


def test_the_input_is_never_the_output(source: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    refused("-i", source, "-o", source)
    (tmp_path / "link").symlink_to(source)
    refused("-i", source, "-o", tmp_path / "link", "--overwrite")
    refused("-i", source, "-o", source, "--overwrite")
    assert source.read_bytes() == before


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    weight = torch.rand(5, 3)
    torch.save({"embed": weight, "head": weight, "other": torch.ones(2)}, tmp_path / "model.pt")
    convert("-i", tmp_path / "model.pt", "--validate-result")
    loaded = veturboio.load(tmp_path / "model.safetensors")
    assert_same(loaded, {"embed": weight, "head": weight, "other": torch.ones(2)})
    assert loaded["embed"].data_ptr() == loaded["head"].data_ptr()


def test_a_modules_state_dict(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    assert isinstance(model.state_dict(), OrderedDict)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    convert("-i", tmp_path / "model.pt")
    assert_same(veturboio.load(tmp_path / "model.safetensors"), dict(model.state_dict()))


def test_parameters(tmp_path: Path) -> None:
    torch.save({"w": torch.nn.Parameter(torch.ones(3))}, tmp_path / "model.pt")
    convert("-i", tmp_path / "model.pt", "--validate-result")
    assert torch.equal(veturboio.load(tmp_path / "model.safetensors")["w"], torch.ones(3))


def test_data_that_is_no_tensor_is_named(tmp_path: Path) -> None:
    state = {"w": torch.ones(1), "epoch": 3, "config": {"lr": 0.1}, "note": "x"}
    torch.save(state, tmp_path / "model.pt")
    reason = refused("-i", tmp_path / "model.pt")
    assert all(key in reason for key in ("epoch", "config", "note"))
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("content", [[torch.ones(1)], torch.ones(3), 5, None, {1: torch.ones(1)}])
def test_content_that_is_no_dictionary_of_names(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pt")
    refused("-i", tmp_path / "model.pt")
    assert not (tmp_path / "model.safetensors").exists()


UNSAVABLE = {
    "sparse": torch.eye(3).to_sparse(),
    "complex128": torch.ones(2, dtype=torch.complex128),
    "meta": torch.ones(2, device="meta"),
}


@pytest.mark.parametrize("kind", UNSAVABLE)
def test_tensors_that_safetensors_cannot_hold_are_named(tmp_path: Path, kind: str) -> None:
    torch.save({"w": torch.ones(1), "the culprit": UNSAVABLE[kind]}, tmp_path / "model.pt")
    assert "the culprit" in refused("-i", tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_views_take_their_own_size_only(tmp_path: Path) -> None:
    big = torch.rand(100_000)
    torch.save({"a": big[:10], "b": big[5:15]}, tmp_path / "model.pt")
    convert("-i", tmp_path / "model.pt", "--validate-result")
    target = tmp_path / "model.safetensors"
    assert_same(veturboio.load(target), {"a": big[:10], "b": big[5:15]})
    assert target.stat().st_size < 1000


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch pwned",)


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(1), "evil": Evil()}, tmp_path / "model.pt")
    refused("-i", tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_inputs_that_are_no_checkpoint(source: Path, tmp_path: Path) -> None:
    whole = source.read_bytes()
    contents = {"empty": b"", "text": b"hello world", "half": whole[: len(whole) // 2]}
    for name, content in contents.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(content)
        assert str(path) in refused("-i", path)
        assert not path.with_suffix(".safetensors").exists()
    assert "missing" in refused("-i", tmp_path / "missing.pt")
    assert "name" in convert("-i", "", check=False).stderr


def test_an_output_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    assert "No such file or directory" in refused("-i", source, "-o", tmp_path / "no" / "file")
    (tmp_path / "folder").mkdir()
    refused("-i", source, "-o", tmp_path / "folder", "--overwrite")
    assert list((tmp_path / "folder").iterdir()) == []


def test_usage() -> None:
    done = convert("--help")
    for option in (
        *("-i", "--input", "-o", "--output", "-d", "--dry-run", "--overwrite", "--key"),
        *("--enable-to-valid-state-dict", "--validate-result", "--use-direct-io"),
    ):
        assert option in done.stdout
    assert convert(check=False).returncode != 0
    assert convert("--no-such-option", check=False).returncode != 0


def test_progress_goes_to_a_terminal_only(source: Path, tmp_path: Path) -> None:
    """On a terminal something is drawn with carriage returns; into a pipe nothing is."""
    done = convert("-i", source, "-o", tmp_path / "piped.safetensors")
    assert "\r" not in done.stdout + done.stderr
    target = tmp_path / "shown.safetensors"
    command = [sys.executable, "-m", "veturboio.convert", "-i", str(source), "-o", str(target)]
    leader, follower = pty.openpty()
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower) as child:
        os.close(follower)
        shown = b""
        while True:
            try:
                piece = os.read(leader, 4096)
            except OSError:  # the other end of a pty was closed
                break
            if not piece:
                break
            shown += piece
    os.close(leader)
    assert child.returncode == 0, shown
    assert b"\r" in shown.replace(b"\r\n", b"")
    assert b"GB" in shown
    assert_same(veturboio.load(target), STATE)


def test_a_checkpoint_larger_than_a_few_segments(tmp_path: Path) -> None:
    state = {f"{i}": torch.randn(2**20 + i) for i in range(8)}
    torch.save(state, tmp_path / "model.pt")
    convert("-i", tmp_path / "model.pt", "--validate-result")
    assert_same(veturboio.load(tmp_path / "model.safetensors"), state)


def test_every_dtype(tmp_path: Path) -> None:
    state = {name: random_tensor(dtype, 3, 5) for name, dtype in DTYPES.items()}
    state |= {f"{name} turned": value.t() for name, value in state.items() if name != "F4"}
    torch.save(state, tmp_path / "model.pt")
    convert("-i", tmp_path / "model.pt", "--validate-result")
    assert_same(veturboio.load(tmp_path / "model.safetensors"), state)


def test_aliases_stand_in_the_metadata(tmp_path: Path) -> None:
    weight = torch.rand(5, 3)
    torch.save({"a": weight, "b": weight, "turned": weight.t()}, tmp_path / "model.pt")
    convert("-i", tmp_path / "model.pt", "--validate-result")
    header = header_of(tmp_path / "model.safetensors")
    assert header["__metadata__"]["b"] == "a"
    assert sorted(header) == ["__metadata__", "a", "turned"]


def test_a_safetensors_file_is_left_as_it_is(tmp_path: Path) -> None:
    """Its metadata would be lost."""
    veturboio.save_file(STATE, tmp_path / "model.bin", metadata={"format": "pt"})
    assert "safetensors file already" in refused("-i", tmp_path / "model.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]


def test_direct_io_reads_from_the_disk(source: Path, tmp_path: Path) -> None:
    """What the kernel counts as read from the disk is the whole file, though it is cached."""
    torch.save({"w": torch.rand(2**20)}, source)
    code = """
import sys, veturboio
from veturboio import convert
def read():
    return int(open("/proc/self/io").read().split("read_bytes: ")[1].split()[0])
for options in ([], ["--use-direct-io"]):
    before = read()
    assert convert.main([*sys.argv[1:], "--overwrite", *options]) == 0
    print("counted", read() - before)
before = read()
veturboio.load(sys.argv[2], use_direct_io=True)
print("counted", read() - before)
"""
    done = Child(code, "-i", source, cwd=tmp_path).wait()
    assert done.returncode == 0, done.stderr
    counted = [int(line.split()[1]) for line in done.stdout.splitlines() if "counted" in line]
    if counted[2] == 0:
        pytest.skip("the file system knows no direct reads")
    assert counted[0] < 2**20
    assert counted[1] >= 2**22
    assert_same(
        veturboio.load(tmp_path / "model.safetensors"), torch.load(source, weights_only=True)
    )


def test_no_plain_file_where_an_encrypted_one_was_asked_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("VETURBOIO_USE_CIPHER", "1")
    assert veturboio_convert.main(["-i", str(source)]) == 1
    assert "use_cipher" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("turned", [False, True], ids=["contiguous", "transposed"])
def test_memory_is_bounded(tmp_path: Path, turned: bool) -> None:
    """Beyond the page cache, a conversion holds some segments, however large the file.

    The input takes no room on the disk: all of it is holes.
    """
    weight = torch.empty(2**14, 2**13)
    with torch.serialization.skip_data():
        torch.save({"w": weight.t() if turned else weight, "b": weight[0]}, tmp_path / "model.pt")
    code = """
import sys, threading
from veturboio import convert
def anonymous():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) * 1024
def watch():
    while not done.wait(0.002):
        seen.append(anonymous())
done, seen, before = threading.Event(), [], anonymous()
watching = threading.Thread(target=watch)
watching.start()
code = convert.main(sys.argv[1:])
done.set()
watching.join()
assert code == 0
assert len(seen) > 20, seen
print("most", max(seen) - before)
"""
    arguments = ["-i", tmp_path / "model.pt", "--validate-result"]
    done = Child(code, *arguments, cwd=tmp_path).wait()
    assert done.returncode == 0, done.stderr
    assert veturboio.load(tmp_path / "model.safetensors")["w"].shape == (
        (2**13, 2**14) if turned else (2**14, 2**13)
    )
    (tmp_path / "model.safetensors").unlink()
    assert int(done.stdout.split("most ")[1]) < 100 * 2**20
