"""Files that are no paths: content in bytes and buffers, and objects that are open for reading."""

from __future__ import annotations

import array
import bz2
import codecs
import contextlib
import ctypes
import gzip
import http.server
import io
import lzma
import mmap
import os
import pickle
import socket
import tarfile
import tempfile
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probe import assert_same, maps_of, open_files

import veturboio

STATE = {"a": torch.arange(1000.0), "b": torch.ones(3, dtype=torch.int8), "c": torch.zeros(0)}

FORMATS: dict[str, Callable[[Path], object]] = {
    "safetensors": lambda path: veturboio.save_file(STATE, path, metadata={"k": "v"}),
    "zip": lambda path: torch.save(STATE, path),
    "legacy": lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
}


@pytest.fixture(params=FORMATS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    FORMATS[request.param](tmp_path / "model")
    return tmp_path / "model"


class OnlyRead:
    """The least there is: a few bytes at a time, and no way back."""

    def __init__(self, content: bytes) -> None:
        self._rest = content

    def read(self, size: int = -1) -> bytes:
        size = min(size, 1000) if size >= 0 else len(self._rest)
        chunk, self._rest = self._rest[:size], self._rest[size:]
        return chunk


class Reversed(io.BytesIO):
    """Reads what its buffer does not have: only ``read`` may be believed."""

    def read(self, size: int | None = -1) -> bytes:
        return bytes(byte ^ 0xFF for byte in super().read(size))


def buffers(content: bytes) -> dict[str, Any]:
    shaped = content + bytes(-len(content) % 8)
    every_other = np.zeros((len(content), 2), dtype=np.uint8)
    every_other[:, 0] = np.frombuffer(content, dtype=np.uint8)
    return {
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "memoryview of parts": memoryview(b"xy" + content)[2:],
        "array": array.array("B", content),
        "numpy": np.frombuffer(content, dtype=np.uint8),
        "numpy with gaps": every_other[:, 0],
        "numpy of shape": np.frombuffer(content, dtype=np.uint8).reshape(1, -1, 1),
        "ctypes": (ctypes.c_uint8 * len(content)).from_buffer_copy(content),
        "pickle": pickle.PickleBuffer(content),
        **(
            {
                "words": memoryview(shaped).cast("Q"),
                "big endian": np.frombuffer(shaped, dtype=">u4"),
            }
            if shaped == content
            else {}
        ),
    }


@contextlib.contextmanager
def objects(content: bytes, path: Path) -> Iterator[dict[str, Any]]:
    """Everything that reads the content."""
    folder = path.parent / "more"
    folder.mkdir()
    with contextlib.ExitStack() as stack:

        def opened(name: str, write: Callable[[Any], Any], read: Callable[[Path], Any]) -> Any:
            write(folder / name)
            return stack.enter_context(read(folder / name))

        def packed(open_with: Any) -> tuple[Callable[[Path], Any], Callable[[Path], Any]]:
            def write(target: Path) -> None:
                with open_with(target, "wb") as file:
                    file.write(content)

            return write, lambda target: open_with(target, "rb")

        def archived(target: Path) -> None:
            with tarfile.open(target, "w:gz") as archive:
                archive.add(path, "member")

        def zipped(target: Path) -> None:
            with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("member", content)

        made: dict[str, Any] = {
            "BytesIO": io.BytesIO(content),
            "file": stack.enter_context(path.open("rb")),
            "unbuffered": stack.enter_context(path.open("rb", buffering=0)),
            "updated": stack.enter_context(path.open("r+b")),
            "gzip": opened("gz", *packed(gzip.open)),
            "bz2": opened("bz2", *packed(bz2.open)),
            "lzma": opened("xz", *packed(lzma.open)),
            "only read": OnlyRead(content),
            "subclass": Reversed(bytes(byte ^ 0xFF for byte in content)),
            "buffered": io.BufferedReader(io.BytesIO(content)),
            "mmap": stack.enter_context(
                mmap.mmap(made_fd(stack, path), 0, access=mmap.ACCESS_READ)
            ),
        }
        tar = opened("tar", archived, tarfile.open)
        made["tar member"] = tar.extractfile("member")
        archive = opened("zip", zipped, zipfile.ZipFile)
        made["zip member"] = stack.enter_context(archive.open("member"))
        made["temporary"] = stack.enter_context(tempfile.TemporaryFile())
        made["named temporary"] = stack.enter_context(tempfile.NamedTemporaryFile())
        made["spooled in memory"] = stack.enter_context(tempfile.SpooledTemporaryFile(1 << 30))
        made["spooled on disk"] = stack.enter_context(tempfile.SpooledTemporaryFile(10))
        for name in list(made)[-4:]:
            made[name].write(content)
            made[name].seek(0)
        yield made


def made_fd(stack: contextlib.ExitStack, path: Path) -> int:
    return stack.enter_context(path.open("rb")).fileno()


def test_buffers(path: Path) -> None:
    files = open_files()
    for name, source in buffers(path.read_bytes()).items():
        assert_same(veturboio.load(source), STATE)
        assert open_files() == files, name
    assert list(veturboio.load(path.read_bytes(), names=["b"])) == ["b"]


def test_objects(path: Path) -> None:
    with objects(path.read_bytes(), path) as made:
        files = open_files()
        for name, source in made.items():
            assert_same(veturboio.load(source), STATE)
            assert source.read(1) == b"", f"{name} does not stand at its end"
            assert open_files() == files, name


def test_objects_are_read_from_where_they_stand(path: Path) -> None:
    content = b"some bytes before" + path.read_bytes()
    path.write_bytes(content)
    with objects(content, path) as made:
        for name, source in made.items():
            source.read(len(b"some bytes before"))
            assert_same(veturboio.load(source), STATE)
            assert source.read(1) == b"", name


def test_fsspec(path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/folder/model", path.read_bytes())
    with memory.open("/folder/model", "rb") as file:
        assert_same(veturboio.load(file), STATE)
    assert_same(veturboio.load(fsspec.open("memory://folder/model")), STATE)
    assert_same(veturboio.load(fsspec.open(f"file://{path}")), STATE)
    with pytest.raises(TypeError, match="file is open as text"):
        veturboio.load(fsspec.open("memory://folder/model", "r"))
    with fsspec.open(f"file://{path}", "rb") as file:
        assert_same(veturboio.load(file), STATE)
        assert maps_of(path) == []
    with fsspec.open(f"file://{path}", "rb") as file:
        file.seek(0)
        assert_same(veturboio.load(file, names=["a"], way="map"), {"a": STATE["a"]})
    with gzip.open(path.with_suffix(".gz"), "wb") as packed:
        packed.write(path.read_bytes())
    with fsspec.open(f"file://{path}.gz", "rb", compression="gzip") as file:
        assert_same(veturboio.load(file), STATE)


def test_connections(path: Path) -> None:
    content = path.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/model"
        with urllib.request.urlopen(address) as response:
            assert_same(veturboio.load(response), STATE)
        server.shutdown()
    ours, theirs = socket.socketpair()
    with ours, theirs.makefile("rb") as file, theirs:
        thread = threading.Thread(target=lambda: (ours.sendall(content), ours.close()))
        thread.start()
        assert_same(veturboio.load(file), STATE)
        thread.join()
    read, write = os.pipe()
    with os.fdopen(read, "rb") as pipe, os.fdopen(write, "wb") as other:
        thread = threading.Thread(target=lambda: (other.write(content), other.close()))
        thread.start()
        assert_same(veturboio.load(pipe), STATE)
        thread.join()


def test_a_file_of_the_system_is_mapped(path: Path) -> None:
    with path.open("rb") as file:
        loaded = veturboio.load(file, way="map")
    assert maps_of(path) != []
    loaded["a"].zero_()
    assert_same(veturboio.load(path), STATE)
    del loaded
    assert maps_of(path) == []


def test_a_file_is_the_one_that_was_opened(path: Path) -> None:
    with path.open("rb") as file:
        path.unlink()
        path.write_bytes(b"another")
        assert_same(veturboio.load(file), STATE)


def test_what_was_written_and_not_flushed_is_read(path: Path) -> None:
    content = path.read_bytes()
    with path.with_name("new").open("w+b", buffering=1 << 20) as file:
        file.write(content)
        file.seek(0)
        assert_same(veturboio.load(file), STATE)


def test_tensors_are_their_own(path: Path) -> None:
    """Whatever becomes of the buffer, and whatever is written to the tensors."""
    content = bytearray(path.read_bytes())
    kept, stream = bytes(content), io.BytesIO(content)
    for source in (content, stream):
        loaded = veturboio.load(source)
        loaded["a"].zero_()
        assert bytes(content) == kept and stream.getvalue() == kept
    content.clear()  # would be refused while something looks at it
    stream.truncate(0)
    assert loaded["b"].sum() == 3


def test_every_other_function(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    assert veturboio.explain(content).startswith("<bytes>: ")
    assert veturboio.explain(io.BytesIO(content), names=["a"]).startswith("<BytesIO>: ")
    with path.open("rb") as file:
        assert veturboio.explain(file).startswith(f"{path}: ")
    shmem = veturboio.load_to_shmem(io.BytesIO(content))
    assert bytes(shmem.buf[: len(content)]) == content
    shmem.close()
    shmem.unlink()
    module = torch.nn.Module()
    module.register_buffer("a", torch.zeros(1000))
    veturboio.load_model(module, io.BytesIO(content), strict=False)
    assert torch.equal(module.a, STATE["a"])
    targets = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    veturboio.load(bytearray(content), state_dict=targets)
    assert_same(targets, STATE)
    if veturboio.load(content)["a"].untyped_storage() and content[:2] not in (b"PK", b"\x80\x02"):
        metadata = veturboio.metadata(content)
        assert metadata == veturboio.metadata(io.BytesIO(content)) == {"format": "pt", "k": "v"}


def test_bytes_are_a_path_unless_they_cannot_be(tmp_path: Path) -> None:
    veturboio.save_file(STATE, tmp_path / "model")
    assert_same(veturboio.load(os.fsencode(tmp_path / "model")), STATE)
    for missing in (b"", b"nowhere", b"x" * 200, b"\xff\xfe"):
        with pytest.raises(OSError):
            veturboio.load(missing)
    for content in (b"\0", b"PK\x03\x04", b"\x80\x02\x8a\n", b"x" * 4096, bytes(100)):
        with pytest.raises(veturboio.FormatError, match="read <bytes>: "):
            veturboio.load(content)
    for empty in (bytearray(), memoryview(b""), io.BytesIO()):
        with pytest.raises(veturboio.FormatError, match="read <"):
            veturboio.load(empty)


def test_messages_name_the_object(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(bytes(100))
    with (tmp_path / "bad").open("rb") as file:
        with pytest.raises(veturboio.FormatError) as refused:
            veturboio.load(file)
        assert str(refused.value).startswith(f"read {tmp_path / 'bad'}: ")
        assert refused.value.file == str(tmp_path / "bad")
    for source, name in (
        (io.BytesIO(bytes(100)), "<BytesIO>"),
        (bytes(100), "<bytes>"),
        (bytearray(100), "<bytearray>"),
        (OnlyRead(bytes(100)), "<OnlyRead>"),
    ):
        with pytest.raises(veturboio.FormatError) as refused:
            veturboio.load(source)
        assert str(refused.value).startswith(f"read {name}: ")
        assert "/proc/" not in str(refused.value) + refused.value.reason + refused.value.file
        with pytest.raises(ValueError, match=f"load {name}: num_thread must be"):
            veturboio.load(source, num_thread=0)


def test_what_cannot_be_read_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "model"
    veturboio.save_file(STATE, path)
    with path.open() as text, pytest.raises(TypeError, match="model: file is open as text"):
        veturboio.load(text)  # type: ignore[arg-type]
    decoded = codecs.getreader("latin-1")(io.BytesIO(path.read_bytes()))
    for text in (decoded, io.StringIO("text")):
        with pytest.raises(TypeError, match="file is open as text"):
            veturboio.load(text)  # type: ignore[arg-type]
    with (tmp_path / "new").open("wb") as file, pytest.raises(OSError, match="not open for read"):
        veturboio.load(file)
    file = path.open("rb")
    file.close()
    with pytest.raises(ValueError, match="closed file"):
        veturboio.load(file)
    for nothing in (5, None, {}, object(), torch.ones(3)):
        with pytest.raises(TypeError, match=r"expected str, bytes or os\.PathLike object"):
            veturboio.load(nothing)  # type: ignore[arg-type]

    class Failing(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, _buffer: Any) -> int:
            raise ConnectionResetError("gone")

    files = open_files()
    with pytest.raises(ConnectionResetError, match="gone"):
        veturboio.load(Failing())  # type: ignore[arg-type]
    assert open_files() == files


def test_a_plain_path_is_sfcs_and_an_open_file_is_not(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VETURBOIO_USE_SFCS_SDK", "1")
    monkeypatch.setenv("LIBCFS_PATH", "/nowhere/libcloudfs.so")
    with pytest.raises(ValueError, match="SFCS needs the variables"):
        veturboio.load(path)
    with path.open("rb") as file:
        assert_same(veturboio.load(file), STATE)
    assert_same(veturboio.load(path.read_bytes()), STATE)


def test_threads_share_a_buffer(path: Path) -> None:
    content, loaded = path.read_bytes(), []
    threads = [
        threading.Thread(target=lambda: loaded.append(veturboio.load(content))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 8
    for one in loaded:
        assert_same(one, STATE)
