"""Ranges of files by SFTP, many at a time: asyncssh's client, with the keys and the settings of the user's own ssh.

Those are ssh's agent, `~/.ssh/config` and the keys beside it; a password is never asked for. A server is talked to only
if its key is among the known hosts. In SFTP only size and time, in seconds, distinguish versions of a file: they are
looked at behind the last read of each request, as a server has to answer for one file in the order of the requests.
"""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
import stat
from collections import OrderedDict
from contextlib import contextmanager, suppress
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vhdkit.extras import load_extra
from vhdkit.storage import transport
from vhdkit.storage.transport import CHANGED, EXTRA, Listed, PassingError, Transport, Version

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator, Sequence

    from vhdkit.storage.remote_paths import RemotePlace

# Reads that are on the way at once, and the bytes of each, whatever a server says of its limits.
_READS_AT_ONCE = 64
_LEAST_READ_BYTES = 4 << 10
_MOST_READ_BYTES = 255 << 10
# Files that are held open at a server while nothing is read of them.
_MOST_IDLE = 64
_DEFAULT_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_SYSTEM_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts",)


class SftpConnection:
    """A connection to one server as one user, and the files that are open there."""

    def __init__(self, connection: Any, client: Any) -> None:  # noqa: ANN401
        """Take asyncssh's connection, and the client of SFTP on it."""
        self._connection = connection
        self.client = client
        # Counted as they arrive, so that a slow server is not taken for one that has stopped.
        self.answers = 0
        self._idle: OrderedDict[tuple[str, Version], Any] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def is_closed(self) -> bool:
        """Whether it has ended, or been given up."""
        return bool(self._connection.is_closed())

    def abort(self) -> None:
        """End it, without waiting for the server."""
        self._connection.abort()

    async def close(self) -> None:
        """End it, and wait until nothing is left of it."""
        self.abort()
        await self._connection.wait_closed()

    async def answered(self, request: Awaitable[Any]) -> Any:  # noqa: ANN401
        """Wait for an answer as long as any answers come; where none does, the connection is given up."""
        task = asyncio.ensure_future(request)
        try:
            while not task.done():
                before = self.answers
                await asyncio.wait({task}, timeout=transport.STALL_SECONDS)
                if not task.done() and self.answers == before:
                    self.abort()
                    raise PassingError(f"no answer came for {transport.STALL_SECONDS:g} seconds")
            self.answers += 1
            return task.result()
        finally:
            task.cancel()

    async def file(self, place: RemotePlace, version: Version) -> Any:  # noqa: ANN401
        """Take a file that is open already, or open it; no other thread reads from it until it is put back."""
        known = self._idle.pop((place.path, version), None)
        # A read is one request: without a block size it would be cut into several, each in a task of its own.
        return known or await self.answered(self.client.open(os.fsencode(place.path), "rb", block_size=0))

    def put_back(self, place: RemotePlace, version: Version, file: Any) -> None:  # noqa: ANN401
        """Keep a file open for the next request."""
        self.release(place, version)
        self._idle[place.path, version] = file
        if len(self._idle) > _MOST_IDLE:
            self.discard(self._idle.popitem(last=False)[1])

    def release(self, place: RemotePlace, version: Version) -> None:
        """Close a file, unless a request reads of it."""
        known = self._idle.pop((place.path, version), None)
        if known is not None:
            self.discard(known)

    def discard(self, file: Any) -> None:  # noqa: ANN401
        """Close a file without waiting for it."""

        async def close() -> None:
            # Where the connection has ended, so has the file.
            with suppress(Exception):
                await file.close()

        task = asyncio.ensure_future(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class SftpTransport(Transport):
    """The transport of `sftp://[USER@]HOST[:PORT]/PATH`, with one connection for each user of a host."""

    def __init__(self) -> None:
        super().__init__()
        self._asyncssh = load_extra("asyncssh", EXTRA, "reading files by SFTP")
        self._connections: dict[str, SftpConnection] = {}

    def version(self, place: RemotePlace) -> Version:
        """Return what a file is now; see `Transport`. Links are not followed."""

        async def ask(connection: SftpConnection) -> Version:
            with self._translated(place):
                found = await connection.answered(connection.client.lstat(os.fsencode(place.path)))
            # Opening a pipe at the server would wait there for ever.
            if found.permissions is not None and not stat.S_ISREG(found.permissions):
                raise OSError(errno.EINVAL, "not a regular file", place.url)
            if found.size is None:
                raise OSError(errno.EIO, "the server does not say how long it is", place.url)
            return _version(found)

        asked: list[Version] = self._together(place, [ask])
        return asked[0]

    def ranges(self, place: RemotePlace, version: Version, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of ranges [start, stop) of a file; see `Transport`."""
        # What an attempt got is not asked for again by the next: the last look at the version is behind all of it.
        found: dict[tuple[int, int], bytes] = {}

        async def ask(connection: SftpConnection) -> int:
            with self._translated(place):
                step = _read_bytes(connection.client.limits.max_read_len)
                pieces = [piece for start, stop in ranges for piece in _pieces(start, stop, step)]
                await _read(connection, place, version, pieces, found)
                return step

        step: int = self._together(place, [ask])[0]
        return [b"".join(found[piece] for piece in _pieces(start, stop, step)) for start, stop in ranges]

    def real(self, place: RemotePlace) -> RemotePlace:
        """Return where a file is with every link followed, as far as the server can; see `Transport`."""

        async def ask(connection: SftpConnection) -> bytes:
            try:
                with self._translated(place):
                    found: bytes = await connection.answered(connection.client.realpath(os.fsencode(place.path)))
                    return found
            except OSError:
                # Of what is not there, or is closed to this user, opening says so.
                return os.fsencode(place.path)

        asked: list[bytes] = self._together(place, [ask])
        return place._replace(path="/" + posixpath.normpath(os.fsdecode(asked[0])).lstrip("/"))

    def listing(self, place: RemotePlace) -> list[Listed]:
        """Return the regular files and the folders in a folder; see `Transport`. Links are left out."""

        async def entries(connection: SftpConnection) -> list[Listed]:
            found = []
            async for each in connection.client.scandir(os.fsencode(place.path)):
                connection.answers += 1
                kind = stat.S_IFMT(each.attrs.permissions or 0)
                if kind in {stat.S_IFREG, stat.S_IFDIR}:
                    found.append(Listed(os.fsdecode(each.filename), each.attrs.size or 0, kind == stat.S_IFDIR))
                transport.check_length(len(found), place)
            return found

        async def ask(connection: SftpConnection) -> list[Listed]:
            with self._translated(place):
                listed: list[Listed] = await connection.answered(entries(connection))
                return listed

        asked: list[list[Listed]] = self._together(place, [ask])
        return asked[0]

    def release(self, place: RemotePlace, version: Version) -> None:
        """Close a file at the server."""
        connection = self._connections.get(place.authority)
        if connection is not None:
            self.loop.call_soon_threadsafe(connection.release, place, version)

    def close(self) -> None:
        """Close the connections."""

        async def close() -> None:
            for connection in self._connections.values():
                await connection.close()
            self._connections.clear()

        self._asyn.sync(self.loop, close)

    async def _session(self, place: RemotePlace) -> SftpConnection:
        known = self._connections.get(place.authority)
        if known is None or known.is_closed:
            try:
                with self._translated(place):
                    known = self._connections[place.authority] = await self._connected(place.authority)
            except ValueError as error:
                raise OSError(errno.EINVAL, f"the settings of ssh cannot be used: {error}", place.url) from None
        return known

    async def _connected(self, authority: str) -> SftpConnection:
        parts = urlsplit(f"sftp://{authority}")
        where: dict[str, Any] = {"host": parts.hostname}
        if parts.port is not None:
            where["port"] = parts.port
        if parts.username is not None:
            where["username"] = parts.username
        # Nothing of this machine is lent to the server.
        where |= {"agent_forwarding": False, "x11_forwarding": False, "x509_trusted_certs": None}
        try:
            async with asyncio.timeout(transport.STALL_SECONDS):
                connection = await self._asyncssh.connect(**where, known_hosts=self._known_hosts(where))
                try:
                    return SftpConnection(connection, await connection.start_sftp_client(path_encoding=None))
                except BaseException:
                    connection.abort()
                    raise
        except OSError as error:
            raise PassingError(str(error) or f"no answer came for {transport.STALL_SECONDS:g} seconds") from None

    def _known_hosts(self, where: dict[str, Any]) -> list[str] | bytes:
        """Return the files with the keys of hosts that the user's settings name, and ssh's own otherwise.

        Left to itself asyncssh talks to any host where the settings say that there is no such file.
        """
        named = self._asyncssh.SSHClientConnectionOptions(**where, config=()).known_hosts
        user = _DEFAULT_KNOWN_HOSTS if named == [] else named or ()
        there = [path for path in map(os.path.expanduser, (*user, *_SYSTEM_KNOWN_HOSTS)) if os.path.isfile(path)]
        return there or b""

    @contextmanager
    def _translated(self, place: RemotePlace) -> Iterator[None]:
        """Raise a failure as the OSError that it is, or let it be tried again."""
        ssh = self._asyncssh
        try:
            yield
        except ssh.HostKeyNotVerifiable as error:
            message = f"the server's key is not the one in known_hosts: {error.reason.lower()}"
            raise OSError(errno.EACCES, message, place.url) from None
        except (ssh.PermissionDenied, ssh.IllegalUserName):
            message = "the server accepts no key of the agent's, or of those that ssh is set to use"
            raise OSError(errno.EACCES, message, place.url) from None
        except (ssh.SFTPNoSuchFile, ssh.SFTPNoSuchPath, ssh.SFTPNotADirectory):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), place.url) from None
        except ssh.SFTPPermissionDenied:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), place.url) from None
        except (ssh.KeyExchangeFailed, ssh.SFTPOpUnsupported, ssh.SFTPBadMessage) as error:
            raise OSError(errno.EIO, f"the server answers: {error.reason}", place.url) from None
        except ssh.Error as error:
            raise PassingError(error.reason or type(error).__name__) from None
        except OSError as error:
            # One without a name is of the connection.
            if error.filename is not None:
                raise
            raise PassingError(str(error)) from None


async def _read(
    connection: SftpConnection,
    place: RemotePlace,
    version: Version,
    pieces: list[tuple[int, int]],
    found: dict[tuple[int, int], bytes],
) -> None:
    """Read what is missing of a file, and refuse it if the file is another one behind the last read."""
    file = await connection.file(place, version)
    missing = [piece for piece in pieces if piece not in found]

    async def read(start: int, stop: int) -> None:
        body = await file.read(stop - start, start)
        connection.answers += 1
        if len(body) == stop - start:
            found[start, stop] = body

    try:
        while len(missing) > _READS_AT_ONCE:
            await connection.answered(asyncio.gather(*(read(*piece) for piece in missing[:_READS_AT_ONCE])))
            del missing[:_READS_AT_ONCE]
        # They are sent in this order.
        *_, now = await connection.answered(asyncio.gather(*(read(*piece) for piece in missing), file.stat()))
        if _version(now) != version:
            raise OSError(errno.ESTALE, CHANGED, place.url)
        if any(piece not in found for piece in pieces):
            raise PassingError("fewer bytes came than were asked for")
    except BaseException:
        connection.discard(file)
        raise
    connection.put_back(place, version, file)


def _read_bytes(limit: int) -> int:
    """Return how many bytes are asked for at once; a server that gives fewer has its reads fail.

    >>> _read_bytes(0), _read_bytes(1 << 15), _read_bytes(1 << 62)
    (4096, 32768, 261120)
    """
    return min(max(limit, _LEAST_READ_BYTES), _MOST_READ_BYTES)


def _pieces(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Cut a range into parts that a server answers at once."""
    return ((at, min(at + step, stop)) for at in range(start, stop, step))


def _version(found: Any) -> Version:  # noqa: ANN401
    return Version(found.size or 0, "", "" if found.mtime is None else formatdate(found.mtime, usegmt=True))
