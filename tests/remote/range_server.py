"""A web server of a folder that answers for parts of files, and has faults when a test asks for them."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RANGE = re.compile(r"bytes=(\d+)-(\d+)$")


class RangeServer(ThreadingHTTPServer):
    """`fault` is called with (how often the same was asked for, the path) and returns the name of a fault, or None.

    `before_answer` is called with the path before a request is answered.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.fault: Callable[[int, str], str | None] = lambda _count, _path: None
        self.before_answer: Callable[[str], None] = lambda _path: None
        self.has_etags = True
        self.heeds_conditions = True
        self.requests: list[str] = []
        self.asked: Counter[tuple[str, str, str]] = Counter()
        self.bytes_sent: Counter[str] = Counter()
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self._etags: dict[tuple[str, int], str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def etag(self, path: Path) -> str:
        """Return what the content of a file is known by, worked out anew when the file has another time."""
        known = (str(path), path.stat().st_mtime_ns)
        if known not in self._etags:
            self._etags[known] = f'"{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"'
        return self._etags[known]

    def handle_error(self, *_arguments: object) -> None:
        """Say nothing of clients that have gone."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer is one write: in two, the second would wait for the client to acknowledge the first.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: RangeServer

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        server = self.server
        name = unquote(self.path)
        with server.lock:
            server.requests.append(name)
            same = (self.command, name, self.headers.get("Range", ""))
            server.asked[same] += 1
            fault = server.fault(server.asked[same], name)
        server.before_answer(name)
        path = server.folder / name.lstrip("/")
        if fault == "close":
            self.close_connection = True
            self.connection.close()
            return
        if fault == "stall":
            server.stopping.wait(30)
            self.close_connection = True
            return
        if fault is not None and fault.isdecimal():
            self._send(int(fault), {"Location": "http://127.0.0.1:9/"} if fault.startswith("3") else {}, b"")
            return
        if not path.is_file():
            self._send(404, {}, b"")
            return
        size = path.stat().st_size
        etag = server.etag(path)
        date = formatdate(path.stat().st_mtime, usegmt=True)
        headers = {"Last-Modified": date} | ({"ETag": etag} if server.has_etags else {})
        is_other = self.headers.get("If-Match", etag) != etag or self.headers.get("If-Unmodified-Since", date) != date
        if is_other and server.heeds_conditions:
            self._send(412, headers, b"")
            return
        found = RANGE.match(self.headers.get("Range", ""))
        if found is None or fault == "whole":
            self._send(200, headers, path.read_bytes() if with_body else bytes(size), with_body=with_body)
            return
        start, stop = int(found[1]), int(found[2]) + 1
        if fault == "shifted":
            start, stop = start + 1, min(stop + 1, size)
        with path.open("rb") as file:
            file.seek(start)
            part = file.read(stop - start)
        server.bytes_sent[name] += len(part)
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{size}"
        self._send(206, headers, part, sent=len(part) // 2 if fault == "short" else None)

    def _send(
        self, status: int, headers: dict[str, str], body: bytes, *, with_body: bool = True, sent: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body if sent is None else body[:sent])
        if sent is not None:
            self.close_connection = True
