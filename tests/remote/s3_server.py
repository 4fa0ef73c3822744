"""Moto's S3 on this machine, with the faults that a test asks for."""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

REGION = "us-east-1"


class S3Server:
    """A server as a context manager.

    `fault` is called with (how often the same was asked for, the path), and names a fault or is None. `before_answer`
    is called with the path before a request is answered.
    """

    def __init__(self) -> None:
        moto = pytest.importorskip("moto.moto_server.werkzeug_app", reason="needs moto")
        serving = pytest.importorskip("werkzeug.serving", reason="needs moto")
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self.fault: Callable[[int, str], str | None] = lambda _count, _path: None
        self.before_answer: Callable[[str], None] = lambda _path: None
        self.requests: list[str] = []
        self.stopping = threading.Event()
        self._asked: Counter[tuple[str, str, str]] = Counter()
        self._app = moto.DomainDispatcherApplication(moto.create_backend_app)
        self._server = serving.make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def forget(self) -> None:
        """Let the next test begin anew."""
        self.fault = lambda _count, _path: None
        self.before_answer = lambda _path: None
        self.requests.clear()
        self._asked.clear()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        same = environ["REQUEST_METHOD"], path, environ.get("HTTP_RANGE", "")
        self._asked[same] += 1
        self.requests.append(path)
        fault = self.fault(self._asked[same], path)
        self.before_answer(path)
        if fault == "stall":
            self.stopping.wait(30)
        if fault in {"stall", "close"}:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            start_response("200 OK", [])
            return []
        if fault is not None and fault.isdecimal():
            start_response(f"{fault} Fault", [("Content-Type", "application/xml")])
            return [b"" if environ["REQUEST_METHOD"] == "HEAD" else b"<Error><Code>Fault</Code></Error>"]
        answer: Iterable[bytes] = self._app(environ, start_response)
        return _half(b"".join(answer), environ["werkzeug.socket"]) if fault == "short" else answer


def _half(content: bytes, client: socket.socket) -> Iterator[bytes]:
    """Yield half of a body that was announced as longer, and hang up."""
    yield content[: len(content) // 2]
    client.shutdown(socket.SHUT_RDWR)
