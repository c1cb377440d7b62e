"""A file that is no checkpoint is named by its first bytes, by whatever opens it."""

from __future__ import annotations

import bz2
import gzip
import http.server
import io
import json
import lzma
import pickle
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import veturboio

WEIGHTS = {"a": torch.arange(6.0)}


def saved(write: Callable[[Any], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def checkpoint() -> bytes:
    return saved(lambda file: torch.save(WEIGHTS, file))


def tar(kind: int) -> bytes:
    def write(file: io.BytesIO) -> None:
        with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
            archive.addfile(tarfile.TarInfo("model.pt"), io.BytesIO())

    return saved(write)


def zipped(name: str) -> bytes:
    def write(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, b"content")

    return saved(write)


INDEX = {"metadata": {"total_size": 24}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}

WRONG: dict[str, tuple[bytes, str]] = {
    "git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n",
        "is a git-lfs pointer, not the file itself: run `git lfs pull`",
    ),
    "html": (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", "is an HTML page"),
    "html behind blanks": (b"\r\n\r\n  <HTML><body>404</body></HTML>", "is an HTML page"),
    "index": (json.dumps(INDEX).encode(), "is the index of a checkpoint in several files"),
    "indented index": (json.dumps(INDEX, indent=2).encode(), "is the index of a checkpoint"),
    "marked index": (b"\xef\xbb\xbf" + json.dumps(INDEX).encode(), "is the index of a"),
    "config": (b'{"architectures": ["GPT2"], "model_type": "gpt2"}', "configuration of a model"),
    "error": (b'{"error":"Repository not found"}', "what a server says of an error"),
    "s3 error": (
        b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code></Error>',
        "what a store says of an error, NoSuchKey",
    ),
    "gzip": (gzip.compress(checkpoint()), "is compressed with gzip"),
    "bzip2": (bz2.compress(checkpoint()), "is compressed with bzip2"),
    "xz": (lzma.compress(checkpoint()), "is compressed with xz"),
    "zlib": (zlib.compress(checkpoint()), "is compressed with zlib"),
    "tar": (tar(tarfile.GNU_FORMAT), "is a tar archive"),
    "posix tar": (tar(tarfile.PAX_FORMAT), "is a tar archive"),
    "gguf": (b"GGUF\x03\0\0\0\x23\x01\0\0\0\0\0\0", "is a GGUF file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(90), "is an HDF5 file"),
    "npy": (saved(lambda file: numpy.save(file, numpy.ones(9))), "is an array of numpy"),
    "npz": (saved(lambda file: numpy.savez(file, a=numpy.ones(9))), "numpy (.npz)"),
    "zip of a checkpoint": (zipped("model.safetensors"), "holds checkpoints as files: unpack"),
    "zip of a document": (zipped("[Content_Types].xml"), "a document of an office program"),
    "empty zip": (saved(lambda file: zipfile.ZipFile(file, "w").close()), "it is empty"),
    "part of a zip": (checkpoint()[:300], "cut short"),
    "empty": (b"", "file of 0 bytes is too short for a header: it is empty"),
    "zeros": (bytes(100_000), "has nothing but zeros in its first 65536 bytes"),
    "few zeros": (bytes(9), "has nothing but zeros in its first 9 bytes"),
    "encrypted": (b"Byte3ncryptM0del" + bytes(1000), "use_cipher is not implemented yet"),
    "script": (b"#!/bin/sh\nexec wget model\n", "is a script"),
    "text": (b"Invalid credentials in Authorization header", 'begins "Invalid credentials in'),
    "utf-16": ("{}".encode("utf-16") + bytes(10), "is text in UTF-16"),
    **{
        f"pickle {protocol}": (pickle.dumps({"a": [1.5] * 9}, protocol), "is a plain pickle")
        for protocol in (0, 2, 3, 4, 5)
    },
    **{
        f"numpy in a pickle {protocol}": (
            pickle.dumps(numpy.ones(9), protocol),
            "is a plain pickle",
        )
        for protocol in (0, 2, 4)
    },
}

OPEN: dict[str, Callable[[Any], object]] = {
    "load": veturboio.load,
    "meta": lambda file: veturboio.load(file, map_location="meta"),
    "names": lambda file: veturboio.load(file, names=["a"]),
    "function": lambda file: veturboio.load(file, map_location=lambda _name: "cpu"),
    "fill": lambda file: veturboio.load(file, state_dict={"a": torch.zeros(6)}),
    "explain": veturboio.explain,
    "shmem": veturboio.load_to_shmem,
}


@pytest.mark.parametrize(("content", "words"), WRONG.values(), ids=WRONG)
def test_it_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for open_it in (*OPEN.values(), veturboio.metadata):
        with pytest.raises(veturboio.FormatError) as refused:
            open_it(path)
        assert words in refused.value.reason
        assert str(refused.value).startswith(f"read {path}: ")
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_metadata_of_a_pytorch_file_says_what_it_is(tmp_path: Path) -> None:
    for old in (False, True):
        torch.save(WEIGHTS, tmp_path / "model.pt", _use_new_zipfile_serialization=not old)
        with pytest.raises(veturboio.FormatError, match="file is one of PyTorch, and safetensors"):
            veturboio.metadata(tmp_path / "model.pt")


def test_a_part_of_a_download_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    veturboio.save_file(WEIGHTS, path)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    for open_it in (*OPEN.values(), veturboio.metadata):
        with pytest.raises(veturboio.FormatError, match=r"at byte \d+: it is cut short"):
            open_it(path)


def test_a_conversion_says_it_too(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(WRONG["git-lfs"][0])
    command = [sys.executable, "-m", "veturboio.convert", "-i", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "run `git lfs pull`" in done.stderr


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A web server, and what it has."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files[self.path]
            start, _, end = self.headers["Range"].removeprefix("bytes=").partition("-")
            part = content[int(start) : int(end) + 1]
            self.send_response(206)
            last = int(start) + len(part) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.send_header("ETag", '"1"')
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}", files
        served.shutdown()
        thread.join()


def test_what_a_server_has_is_named_too(server: tuple[str, dict[str, bytes]]) -> None:
    address, files = server
    for name in ("html", "git-lfs", "index", "npz", "gzip"):
        files[f"/{name}"], words = WRONG[name]
        with pytest.raises(veturboio.FormatError) as refused:
            veturboio.load(f"{address}/{name}")
        assert words in refused.value.reason
