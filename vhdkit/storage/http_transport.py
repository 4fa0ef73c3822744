"""Ranges of files by HTTP, many at a time: fsspec's client, with its loop and its connections.

What fails for a while is asked for again: connections that are closed, bodies that are short, time-outs, and the
statuses that say so (429, 5xx). Each request says of which version of the file it is (If-Match, or If-Unmodified-Since
where the server has no ETag). Redirections are refused, as they lead elsewhere.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from vhdkit.extras import load_extra
from vhdkit.storage import transport
from vhdkit.storage.transport import CHANGED, EXTRA, PassingError, Transport, Version

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from vhdkit.storage.remote_paths import RemotePlace

_PASSING = {408, 425, 429, 500, 502, 503, 504}
_STATUS_ERRORS = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 410: errno.ENOENT, 412: errno.ESTALE}


class HttpTransport(Transport):
    """The transport of `http://` and `https://`."""

    def __init__(self) -> None:
        purpose = "reading files of web servers"
        self._aiohttp = load_extra("aiohttp", EXTRA, purpose)
        super().__init__(self._aiohttp.ClientError)
        http = load_extra("fsspec.implementations.http", EXTRA, purpose)
        self._system = http.HTTPFileSystem(skip_instance_cache=True)

    async def _session(self, _place: RemotePlace) -> Any:  # noqa: ANN401
        return await self._system.set_session()

    def version(self, place: RemotePlace) -> Version:
        """Return what a file is now; see `Transport`."""
        url = place.url

        async def ask(session: Any) -> Version:  # noqa: ANN401
            async with session.head(url, **self._settings({})) as answer:
                check_status(answer.status, url)
                if "Content-Length" not in answer.headers:
                    raise OSError(errno.EIO, "the server does not say how long it is", url)
                headers = answer.headers
                size = int(headers["Content-Length"])
                return Version(size, headers.get("ETag", ""), headers.get("Last-Modified", ""))

        found: list[Version] = self._together(place, [ask])
        return found[0]

    def ranges(self, place: RemotePlace, version: Version, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of ranges [start, stop) of a file; see `Transport`."""
        url = place.url

        def request(start: int, stop: int) -> Callable[[Any], Awaitable[bytes]]:
            async def ask(session: Any) -> bytes:  # noqa: ANN401
                wanted = {"Range": f"bytes={start}-{stop - 1}", **_condition(version)}
                async with session.get(url, **self._settings(wanted)) as answer:
                    check_status(answer.status, url)
                    if answer.status != 206:
                        raise OSError(errno.EOPNOTSUPP, "the server does not answer for parts of a file", url)
                    _check_part(answer.headers, version, start, stop, url)
                    return await read_body(answer.content, stop - start)

            return ask

        found: list[bytes] = self._together(place, [request(start, stop) for start, stop in ranges])
        return found

    def _settings(self, headers: dict[str, str]) -> dict[str, Any]:
        seconds = transport.STALL_SECONDS
        timeout = self._aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
        plain = {"Accept-Encoding": "identity", **headers}
        return {"headers": plain, "allow_redirects": False, "timeout": timeout}


def _condition(version: Version) -> dict[str, str]:
    """Return the header that refuses a file that is another one by now."""
    if version.etag and not version.etag.startswith("W/"):
        return {"If-Match": version.etag}
    return {"If-Unmodified-Since": version.date} if version.date else {}


def check_status(status: int, url: str) -> None:
    """Raise what a status says.

    Raises:
        PassingError: it may be better the next time.
        OSError: it will not.

    """
    if status in _PASSING:
        raise PassingError(f"the server answers {status}")
    if 300 <= status < 400:
        raise OSError(errno.EREMOTE, f"the server answers {status} and sends elsewhere, which is not followed", url)
    if status >= 400:
        number = _STATUS_ERRORS.get(status, errno.EIO)
        raise OSError(number, CHANGED if status == 412 else f"the server answers {status}", url)


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
