"""Ranges of files by HTTP, many at a time: fsspec's client, with its loop and its connections.

What fails for a while is asked for again: connections that are closed, bodies that are short, time-outs, and the
statuses that say so (429, 5xx). A file that has changed is never mixed with what it was: each request says of which
version it is (If-Match, or If-Unmodified-Since where the server has no ETag). Redirections are refused, as they lead
elsewhere.
"""

from __future__ import annotations

import asyncio
import errno
import os
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from vhdkit.extras import load_extra

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

EXTRA = "remote"
ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.1
# Without a byte for so long a request is given up, and asked again.
STALL_SECONDS = 20.0
_MOST_AT_ONCE = 32
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_STATUS_ERRORS = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 410: errno.ENOENT, 412: errno.ESTALE}


class Version(NamedTuple):
    """What a file is at one time: its size, its ETag ("" if the server has none), and its date ("" likewise)."""

    size: int
    etag: str
    date: str

    @property
    def mtime(self) -> float:
        """The date in Unix seconds; 0.0 if there is none."""
        try:
            return parsedate_to_datetime(self.date).timestamp()
        except ValueError:
            return 0.0

    @property
    def condition(self) -> dict[str, str]:
        """The header that refuses a file that is another one by now."""
        if self.etag and not self.etag.startswith("W/"):
            return {"If-Match": self.etag}
        return {"If-Unmodified-Since": self.date} if self.date else {}


class PassingError(Exception):
    """What may be better when it is tried again."""


class HttpTransport:
    """Requests of one process; threads may ask at once."""

    def __init__(self) -> None:
        purpose = "reading files of other machines"
        self._fsspec_asyn = load_extra("fsspec.asyn", EXTRA, purpose)
        self._aiohttp = load_extra("aiohttp", EXTRA, purpose)
        http = load_extra("fsspec.implementations.http", EXTRA, purpose)
        self._system = http.HTTPFileSystem(skip_instance_cache=True)

    def version(self, url: str) -> Version:
        """Return what a file is now.

        Raises:
            OSError: it is not there, or the server does not say.

        """

        async def ask(session: Any) -> Version:  # noqa: ANN401
            async with session.head(url, **self._settings({})) as answer:
                self._check(answer.status, url)
                if "Content-Length" not in answer.headers:
                    raise OSError(errno.EIO, "the server does not say how long it is", url)
                headers = answer.headers
                size = int(headers["Content-Length"])
                return Version(size, headers.get("ETag", ""), headers.get("Last-Modified", ""))

        found: list[Version] = self._all([ask], url)
        return found[0]

    def ranges(self, url: str, version: Version, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of ranges [start, stop) of a file, which are asked for together.

        Raises:
            OSError: ESTALE if the file is another one by now; what the server says otherwise.

        """

        def request(start: int, stop: int) -> Callable[[Any], Awaitable[bytes]]:
            async def ask(session: Any) -> bytes:  # noqa: ANN401
                wanted = {"Range": f"bytes={start}-{stop - 1}", **version.condition}
                async with session.get(url, **self._settings(wanted)) as answer:
                    self._check(answer.status, url)
                    if answer.status != 206:
                        raise OSError(errno.EOPNOTSUPP, "the server does not answer for parts of a file", url)
                    _check_part(answer.headers, version, start, stop, url)
                    return await read_body(answer.content, stop - start)

            return ask

        found: list[bytes] = self._all([request(start, stop) for start, stop in ranges], url)
        return found

    def _settings(self, headers: dict[str, str]) -> dict[str, Any]:
        timeout = self._aiohttp.ClientTimeout(total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
        plain = {"Accept-Encoding": "identity", **headers}
        return {"headers": plain, "allow_redirects": False, "timeout": timeout}

    def _check(self, status: int, url: str) -> None:
        if status in _PASSING:
            raise PassingError(f"the server answers {status}")
        if 300 <= status < 400:
            raise OSError(errno.EREMOTE, f"the server answers {status} and sends elsewhere, which is not followed", url)
        if status >= 400:
            number = _STATUS_ERRORS.get(status, errno.EIO)
            raise OSError(number, CHANGED if status == 412 else f"the server answers {status}", url)

    def _all(self, requests: Sequence[Callable[[Any], Awaitable[Any]]], url: str) -> list[Any]:
        """Do requests together, each again if that may help."""

        async def done() -> list[Any]:
            session = await self._system.set_session()
            turn = asyncio.Semaphore(_MOST_AT_ONCE)
            return await asyncio.gather(*(self._tried(session, each, turn, url) for each in requests))

        found: list[Any] = self._fsspec_asyn.sync(self._system.loop, done)
        return found

    async def _tried(
        self,
        session: Any,  # noqa: ANN401
        request: Callable[[Any], Awaitable[Any]],
        turn: asyncio.Semaphore,
        url: str,
    ) -> Any:  # noqa: ANN401
        pause, last = FIRST_PAUSE_SECONDS, ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(pause)
                pause *= 2
            try:
                async with turn:
                    return await request(session)
            except (TimeoutError, self._aiohttp.ClientError, PassingError) as error:
                last = str(error) or type(error).__name__
        raise OSError(errno.EIO, f"it was asked for {ATTEMPTS} times in vain: {last}", url)


def _check_part(headers: Mapping[str, str], version: Version, start: int, stop: int, url: str) -> None:
    """Refuse an answer that is of another version, or of another part than was asked for.

    Not every server heeds the conditions of a request: what it says of its answer is looked at as well.
    """
    # Without an ETag the date alone shows a change.
    same = headers.get("ETag", version.etag) == version.etag
    same &= bool(version.etag) or headers.get("Last-Modified", version.date) == version.date
    if not same:
        raise OSError(errno.ESTALE, CHANGED, url)
    check_range(headers.get("Content-Range", ""), version, start, stop, url)


def check_range(answered: str, version: Version, start: int, stop: int, url: str) -> None:
    """Refuse an answer whose Content-Range is of a file of another size, or another part than was asked for."""
    part, _, size = answered.rpartition("/")
    if size != str(version.size):
        raise OSError(errno.ESTALE, CHANGED, url)
    if part.split() != ["bytes", f"{start}-{stop - 1}"]:
        raise OSError(errno.EIO, "the server answers with another part than it was asked for", url)


async def read_body(content: Any, length: int) -> bytes:  # noqa: ANN401
    """Return the bytes of an answer, of which no more are read; one read gives what has come so far.

    Raises:
        PassingError: there are fewer, or more.

    """
    body = bytearray()
    while len(body) <= length and (piece := await content.read(length + 1 - len(body))):
        body += piece
    if len(body) != length:
        raise PassingError(f"{len(body)} of {length} bytes came")
    return bytes(body)


CHANGED = "it has changed since it was opened"


@cache
def _transport(scheme: str, _process: int) -> HttpTransport:
    if scheme == "s3":
        from vhdkit.storage.s3_transport import S3Transport  # noqa: PLC0415 - it takes a second to load

        return S3Transport()
    return HttpTransport()


def transport_for(scheme: str) -> HttpTransport:
    """Return the transport of this process for a scheme; a forked one must not use its parent's connections."""
    return _transport(scheme, os.getpid())


def forget_transports() -> None:
    """Make new ones from now on: the settings or the libraries are others."""
    _transport.cache_clear()
