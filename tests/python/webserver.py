"""A web server of the tests that answers as it is told, request by request."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: A time long past, and one that is later.
THEN = "Mon, 01 Jan 2024 00:00:00 GMT"
NOW = "Tue, 02 Jan 2024 00:00:00 GMT"


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def range(self) -> tuple[int, int] | None:
        """The first byte that is asked for, and the one after the last."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(found[1]), int(found[2]) + 1) if found else None


@dataclass
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    #: How much of the body is sent before the connection ends; all of it by default.
    cut: int | None = None
    #: Without a length: by chunks, or until the connection ends.
    chunked: bool = False
    endless: bool = False


#: What answers; nothing at all ends the connection.
Answering = Callable[[Request], Answer | None]


@dataclass
class Server:
    address: str
    #: What was asked so far.
    requests: list[Request] = field(default_factory=list)
    answer: Answering = field(default=lambda request: Answer(404))

    def since(self, count: int) -> list[Request]:
        """What was asked after the first ``count`` requests."""
        return self.requests[count:]


@dataclass
class File:
    """A file as web servers serve it."""

    content: bytes
    tag: str | None = None
    modified: str | None = None
    date: str | None = NOW
    ranges: bool = True
    has_length: bool = True
    headers: dict[str, str] = field(default_factory=dict)

    def __call__(self, request: Request) -> Answer:
        headers = dict(self.headers)
        told = {"ETag": self.tag, "Last-Modified": self.modified, "Date": self.date}
        headers |= {name: value for name, value in told.items() if value is not None}
        wanted = request.headers.get("if-match")
        if wanted is not None and (wanted != self.tag or wanted.startswith("W/")):
            return Answer(412, headers)
        if self.ranges and request.range is not None:
            first, end = request.range
            end = min(end, len(self.content))
            if first >= end:
                return Answer(416, headers | {"Content-Range": f"bytes */{len(self.content)}"})
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(self.content)}"
            return Answer(206, headers, self.content[first:end])
        return Answer(200, headers, self.content, chunked=not self.has_length)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Threaded

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, body)
        self.server.told.requests.append(request)
        answer = self.server.told.answer(request)
        if answer is None:
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif answer.endless:
            self.close_connection = True
        elif "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(OSError):
            self._send(answer)

    def _send(self, answer: Answer) -> None:
        body = answer.body if answer.cut is None else answer.body[: answer.cut]
        for start in range(0, len(body), 1 << 20):
            piece = body[start : start + (1 << 20)]
            if answer.chunked:
                piece = b"%x\r\n%s\r\n" % (len(piece), piece)
            self.wfile.write(piece)
        if answer.cut is not None:
            self.close_connection = True
        elif answer.chunked:
            self.wfile.write(b"0\r\n\r\n")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - named by the base class

    def log_message(self, *_: object) -> None:
        pass


class _Threaded(ThreadingHTTPServer):
    daemon_threads = True
    told: Server

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@contextlib.contextmanager
def serving(answer: Answering | None = None) -> Iterator[Server]:
    """Runs a server until the end of the block."""
    with _Threaded(("127.0.0.1", 0), _Handler) as listener:
        listener.told = Server(f"http://127.0.0.1:{listener.server_address[1]}")
        if answer is not None:
            listener.told.answer = answer
        thread = threading.Thread(target=listener.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield listener.told
        finally:
            listener.shutdown()
            thread.join()
