"""Uploads whose last answer is lost: what stands there then is looked at, not believed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from webserver import THEN, Answer, Request, Server, serving

import veturboio

SMALL = {"a": torch.arange(1000)}
LARGE = {"a": torch.arange(3_000_000)}


@dataclass
class Bucket:
    """As much of S3 as a save needs, over a dict."""

    #: Whether tags are digests, as they are unless objects are encrypted.
    is_plain: bool = True
    objects: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    parts: dict[int, bytes] = field(default_factory=dict)
    is_open: bool = False
    #: Answers to requests that make an object which are lost, and what another writes then.
    lost: int = 1
    another: bytes | None = None
    #: Whether it is lost before anything is done.
    undone: bool = False
    readable: bool = True

    def tag(self, text: bytes, suffix: str = "") -> str:
        digest = hashlib.md5 if self.is_plain else hashlib.blake2s
        return f'"{digest(text).hexdigest()[:32]}{suffix}"'

    def __call__(self, request: Request) -> Answer | None:
        url = urlsplit(request.path)
        query = parse_qs(url.query, keep_blank_values=True)
        match request.method, sorted(query.keys() & {"uploads", "uploadId"}):
            case "POST", ["uploads"]:
                self.is_open = True
                return xml("InitiateMultipartUploadResult", UploadId="one")
            case "PUT", ["uploadId"]:
                self.parts[int(query["partNumber"][0])] = request.body
                return Answer(200, {"ETag": self.tag(request.body)})
            case "POST", ["uploadId"]:
                return self.complete(request, url.path)
            case "DELETE", _:
                self.is_open = False
                return Answer(204)
            case "PUT", _:
                return self.make(request, url.path, request.body, self.tag(request.body))
        return self.read(request, url.path)

    def complete(self, request: Request, path: str) -> Answer | None:
        if not self.is_open:
            return Answer(404, body=b"<Error><Code>NoSuchUpload</Code></Error>")
        numbers = [int(n) for n in re.findall(rb"<PartNumber>(\d+)", request.body)]
        whole = b"".join(self.parts[number] for number in numbers)
        digests = b"".join(hashlib.md5(self.parts[number]).digest() for number in numbers)
        return self.make(request, path, whole, self.tag(digests, f"-{len(numbers)}"))

    def make(self, request: Request, path: str, content: bytes, tag: str) -> Answer | None:
        if request.headers.get("if-none-match") == "*" and path in self.objects:
            return Answer(412)
        lost, self.lost = self.lost > 0, self.lost - 1
        if lost and self.undone:
            return None
        self.objects[path] = content, tag
        self.is_open = False
        if not lost:
            return (
                xml("CompleteMultipartUploadResult", ETag=tag)
                if tag.count("-")
                else Answer(200, {"ETag": tag})
            )
        if self.another is not None:
            self.objects[path] = self.another, self.tag(b"another", "-2" if "-" in tag else "")
        return None

    def read(self, request: Request, path: str) -> Answer:
        if path not in self.objects:
            return Answer(404)
        if not self.readable:
            return Answer(403)
        content, tag = self.objects[path]
        headers = {"ETag": tag, "Last-Modified": THEN}
        if request.range is None:
            return Answer(200, headers, content)
        first, end = request.range
        end = min(end, len(content))
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
        return Answer(206, headers, content[first:end])


def xml(name: str, **values: str) -> Answer:
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in values.items())
    return Answer(200, body=f"<{name}>{inner}</{name}>".encode())


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def options(server: Server) -> dict[str, str]:
    return {
        "aws_endpoint_url": server.address,
        "aws_access_key_id": "key",
        "aws_secret_access_key": "very-secret",
        "retry_timeout": "3",
    }


def save(server: Server, state: dict[str, torch.Tensor], **arguments: Any) -> None:
    veturboio.save_file(state, "s3://bucket/model", storage_options=options(server), **arguments)


@pytest.fixture(params=[SMALL, LARGE], ids=["whole", "in parts"])
def saved(request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = request.param
    return state


def content_of(state: dict[str, torch.Tensor], folder: Path) -> bytes:
    veturboio.save_file(state, folder / "content")
    return (folder / "content").read_bytes()


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("undone", [True, False])
def test_what_was_sent_is_recognised(
    server: Server,
    saved: dict[str, torch.Tensor],
    overwrite: bool,
    plain: bool,
    undone: bool,
    tmp_path: Path,
) -> None:
    bucket = Bucket(is_plain=plain, undone=undone)
    server.answer = bucket
    save(server, saved, overwrite=overwrite)
    assert bucket.objects["/bucket/model"][0] == content_of(saved, tmp_path)
    makes = [r for r in server.requests if r.method in ("PUT", "POST") and "partN" not in r.path]
    assert len(makes) >= 2


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
def test_another_object_of_the_same_length_is_not_taken_for_it(
    server: Server, plain: bool, overwrite: bool, tmp_path: Path
) -> None:
    content = bytearray(content_of(LARGE, tmp_path))
    content[-1] ^= 1
    bucket = Bucket(is_plain=plain, another=bytes(content))
    server.answer = bucket
    with pytest.raises(OSError, match=r"s3://bucket/model: .*another object stands there now"):
        save(server, LARGE, overwrite=overwrite)
    assert bucket.objects["/bucket/model"][0] == bytes(content)


@pytest.mark.parametrize("plain", [True, False])
def test_another_small_object_is_not_taken_for_it(
    server: Server, plain: bool, tmp_path: Path
) -> None:
    content = bytearray(content_of(SMALL, tmp_path))
    content[-1] ^= 1
    bucket = Bucket(is_plain=plain, another=bytes(content))
    server.answer = bucket
    with pytest.raises(FileExistsError, match="s3://bucket/model"):
        save(server, SMALL, overwrite=False)
    assert bucket.objects["/bucket/model"][0] == bytes(content)


def test_what_cannot_be_told_is_said(server: Server) -> None:
    bucket = Bucket(is_plain=False, readable=False)
    server.answer = bucket
    with pytest.raises(PermissionError, match="may be in place or not, since it cannot be read"):
        save(server, LARGE)
    assert "/bucket/model" in bucket.objects


def test_an_upload_that_is_lost_is_no_success(server: Server) -> None:
    bucket = Bucket(undone=True, lost=1)

    def answer(request: Request) -> Answer | None:
        told = bucket(request)
        if told is None:
            bucket.is_open = False  # and the upload with it
        return told

    server.answer = answer
    with pytest.raises(OSError, match="the object is not in place"):
        save(server, LARGE)
    assert bucket.objects == {}
