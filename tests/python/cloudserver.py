"""Stores to test against: SeaweedFS, and a server of our own that can be told to fail."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

#: Seconds after which a server counts as not coming.
PATIENCE = 60


@dataclass(frozen=True)
class Store:
    """A server with a bucket named ``bucket``."""

    endpoint: str
    folder: Path
    key: str = "key"
    secret: str = "secret-of-the-tests"

    @property
    def options(self) -> dict[str, str]:
        """What reaches it, as ``storage_options``."""
        return {
            "aws_endpoint_url": self.endpoint,
            "aws_access_key_id": self.key,
            "aws_secret_access_key": self.secret,
            "retry_timeout": "20",
            "read_timeout": "2s",
        }

    def behave(self, **behaviour: Any) -> None:
        """Tells it how to answer from now on; see ``Behaviour`` in ``tests/cloudserver``."""
        self._control("behave", json.dumps(behaviour).encode())

    def stats(self) -> dict[str, int]:
        """What was counted so far: requests, gets, bytes, connections, open."""
        stats: dict[str, int] = json.loads(self._control("stats"))
        return stats

    def uploads(self) -> list[Path]:
        """What is left of uploads that are neither complete nor aborted."""
        return [path for path in self.folder.rglob(".*upload*") if path.is_file()]

    def request(self, method: str, key: str, content: bytes = b"", query: str = "") -> bytes:
        """Makes one signed request about an object, as its tools would: version 4 of signatures."""
        host, path = self.endpoint.split("://")[1], f"/bucket/{key}".rstrip("/")
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        digest = hashlib.sha256(content).hexdigest()
        headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": now}
        signed = ";".join(headers)
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        canonical = f"{method}\n{path}\n{query}\n{lines}\n{signed}\n{digest}"
        scope = f"{now[:8]}/us-east-1/s3/aws4_request"
        hashed = hashlib.sha256(canonical.encode()).hexdigest()
        signing = f"AWS4{self.secret}".encode()
        for part in [*scope.split("/"), f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashed}"]:
            signing = hmac.digest(signing, part.encode(), "sha256")
        credential = f"Credential={self.key}/{scope}, SignedHeaders={signed}"
        headers["authorization"] = f"AWS4-HMAC-SHA256 {credential}, Signature={signing.hex()}"
        url = f"{self.endpoint}{path}" + (f"?{query}" if query else "")
        request = urllib.request.Request(url, content or None, headers, method=method)
        with urllib.request.urlopen(request) as answer:
            told: bytes = answer.read()
            return told

    def _control(self, what: str, told: bytes = b"") -> bytes:
        with urllib.request.urlopen(f"{self.endpoint}/.control/{what}", told) as answer:
            content: bytes = answer.read()
            return content


@functools.cache
def unavailable() -> str | None:
    """Why our own server cannot be built here, in words; ``None`` if it can."""
    return None if shutil.which("cargo") else "cargo is not on PATH"


@functools.cache
def build() -> Path:
    """Builds our own server, once per process, and returns its path."""
    manifest, target = ROOT / "tests/cloudserver/Cargo.toml", ROOT / "target/cloudserver"
    command = ["cargo", "build", "--locked", "--release", "--quiet"]
    done = subprocess.run(
        [*command, "--manifest-path", str(manifest), "--target-dir", str(target)],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"build cloudserver: {done.stderr.strip()}")
    return target / "release" / "cloudserver"


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Store]:
    """Serves ``folder``, whose directory ``bucket`` is a bucket, until the end of the block."""
    (folder / "bucket").mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        [str(build()), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            yield Store(f"http://127.0.0.1:{port}", folder)
        finally:
            process.terminate()
            process.wait()


def weed() -> str | None:
    """The program of SeaweedFS, if it is installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[Store]:
    """Runs SeaweedFS on ``folder``, with a bucket named ``bucket``."""
    program = weed()
    assert program is not None
    names = ("s3.port", "filer.port", "master.port", "volume.port", "admin.port", "webdav.port")
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    key, secret = "weedkey", "weed-secret-of-the-tests"
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "S3_BUCKET": "bucket",
    }
    command = [program, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    log = folder / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, cwd=folder
        ) as process,
    ):
        try:
            _wait_for(ports["s3.port"], process, log)
            yield Store(f"http://127.0.0.1:{ports['s3.port']}", folder, key, secret)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"weed ended: {log.read_text(errors='replace')[-2000:]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            if b"All enabled components are running" in log.read_bytes():
                return
        time.sleep(0.1)
    raise RuntimeError(f"weed does not listen: {log.read_text(errors='replace')[-2000:]}")


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, nor at their gRPC siblings 10,000 above."""
    ports: list[int] = []
    candidate = 20000 + os.getpid() % 20000
    while len(ports) < count:
        candidate += 7
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", candidate))
            other.bind(("127.0.0.1", candidate + 10000))
            ports.append(candidate)
    return ports
