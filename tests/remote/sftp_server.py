"""A server of SSH on this machine whose files OpenSSH's own sftp-server serves, and whose faults a test asks for."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import struct
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import asyncssh
import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

OPEN, CLOSE, READ, LSTAT, FSTAT, OPENDIR, READDIR, REALPATH, STATUS, HANDLE, DATA = (
    3,
    4,
    5,
    7,
    8,
    11,
    12,
    16,
    101,
    102,
    103,
)
_OF_A_HANDLE, _OF_A_PATH = {CLOSE, READ, FSTAT, READDIR}, {OPEN, LSTAT, OPENDIR, REALPATH}
_STATUS_OF = {"denied": 3, "failure": 4}
_FOLDERS = "/usr/lib/openssh:/usr/libexec/openssh:/usr/lib/ssh:/usr/libexec"


def sftp_server_program() -> str:
    """Return OpenSSH's sftp-server."""
    found = shutil.which("sftp-server", path=_FOLDERS)
    if found is None:
        pytest.skip("needs sftp-server")
    return found


class Packet(NamedTuple):
    """A packet of SFTP: its type, its id, and what follows."""

    kind: int
    number: int
    body: bytes

    def string(self) -> bytes:
        """Return the string that the body begins with."""
        (length,) = struct.unpack_from(">I", self.body)
        return self.body[4 : 4 + length]

    def rest(self) -> bytes:
        """Return what follows that string."""
        return self.body[4 + len(self.string()) :]

    def to_bytes(self) -> bytes:
        return struct.pack(">IBI", 5 + len(self.body), self.kind, self.number) + self.body


class SftpServer:
    """A server as a context manager; its thread is another than the client's.

    `fault` is called with (how often the same was asked for, the type of the request, the path), and names a fault or
    is None. `on_request` is called with the path of each request, and `before_answer`, in a thread, before each answer.
    """

    def __init__(self, authorized_keys: Path) -> None:
        self.fault: Callable[[int, int, str], str | None] = lambda _count, _kind, _path: None
        self.on_request: Callable[[str], None] = lambda _path: None
        self.before_answer: Callable[[], None] | None = None
        self.requests: list[tuple[int, str]] = []
        self.asked: Counter[tuple[int, str, bytes]] = Counter()
        self.users: list[str] = []
        self.open_files: Counter[str] = Counter()
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.program = sftp_server_program()
        self._sessions: list[asyncio.Task[None]] = []
        self._connections: list[asyncssh.SSHServerConnection] = []
        self._authorized_keys = authorized_keys
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    @property
    def session_count(self) -> int:
        return len(self._sessions)

    @property
    def url(self) -> str:
        return f"sftp://127.0.0.1:{self.port}"

    @property
    def known_hosts_line(self) -> str:
        return f"[127.0.0.1]:{self.port} {self.host_key.export_public_key().decode()}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._listener = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)
        self.port = self._listener.get_port()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> asyncssh.SSHAcceptor:
        server = self

        class OfOneClient(asyncssh.SSHServer):
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                self.connection = conn
                server._connections.append(conn)

            def auth_completed(self) -> None:
                server.users.append(self.connection.get_extra_info("username"))

            def session_requested(self) -> Any:
                return self.connection.create_server_channel(encoding=None), _Session(server, self.connection)

        options = {"server_host_keys": [self.host_key], "authorized_client_keys": str(self._authorized_keys)}
        return await asyncssh.listen("127.0.0.1", 0, server_factory=OfOneClient, **options)

    async def _stop(self) -> None:
        self._listener.close()
        for connection in self._connections:
            connection.abort()
            await connection.wait_closed()
        # Each ends with its client.
        await asyncio.gather(*self._sessions, return_exceptions=True)


class _Session(asyncssh.SSHServerSession[bytes]):
    """One client, and its sftp-server."""

    def __init__(self, server: SftpServer, connection: asyncssh.SSHServerConnection) -> None:
        self._server = server
        self._connection = connection
        self._requests: asyncio.Queue[bytes] = asyncio.Queue()
        self._path_of_handle: dict[bytes, str] = {}
        self._asked: dict[int, tuple[Packet, str, str | None]] = {}

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def subsystem_requested(self, subsystem: str) -> bool:
        return subsystem == "sftp"

    def session_started(self) -> None:
        self._server._sessions.append(asyncio.ensure_future(self._run()))  # noqa: SLF001 - its own

    def data_received(self, data: bytes, _datatype: int | None) -> None:
        self._requests.put_nowait(data)

    def eof_received(self) -> bool:
        self._requests.put_nowait(b"")
        return True

    def connection_lost(self, _error: Exception | None) -> None:
        self._requests.put_nowait(b"")

    async def _run(self) -> None:
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(self._server.program, "-R", stdin=pipe, stdout=pipe)
        try:
            await asyncio.gather(self._pass_requests(child), self._pass_answers(child))
        finally:
            self._connection.abort()
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def _pass_requests(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdin is not None
        async for packet in _packets(self._requests.get):
            path, fault = self._path(packet), None
            if packet.kind in _OF_A_HANDLE | _OF_A_PATH:
                same = packet.kind, path, packet.rest()
                self._server.asked[same] += 1
                self._server.requests.append((packet.kind, path))
                self._server.on_request(path)
                fault = self._server.fault(self._server.asked[same], packet.kind, path)
            if fault == "close":
                self._connection.abort()
            self._asked[packet.number] = packet, path, fault
            child.stdin.write(packet.to_bytes())
        child.stdin.close()

    async def _pass_answers(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdout is not None
        read = functools.partial(child.stdout.read, 1 << 16)
        async for packet in _packets(read):
            request, path, fault = self._asked.pop(packet.number, (None, "", None))
            if request is not None and packet.kind == HANDLE:
                self._path_of_handle[packet.string()] = path
                self._server.open_files[path] += 1
            if request is not None and request.kind == CLOSE:
                self._server.open_files[path] -= 1
            if self._server.before_answer is not None and request is not None:
                await asyncio.to_thread(self._server.before_answer)
            if fault != "stall" and not self._channel.is_closing():
                self._channel.write(_with_fault(packet, fault).to_bytes())

    def _path(self, packet: Packet) -> str:
        if packet.kind in _OF_A_HANDLE:
            return self._path_of_handle.get(packet.string(), "")
        return os.fsdecode(packet.string()) if packet.kind in _OF_A_PATH else ""


def _with_fault(packet: Packet, fault: str | None) -> Packet:
    if fault in _STATUS_OF:
        return packet._replace(kind=STATUS, body=struct.pack(">III", _STATUS_OF[fault], 0, 0))
    if fault == "short" and packet.kind == DATA:
        content = packet.string()[: len(packet.string()) // 2]
        return packet._replace(body=struct.pack(">I", len(content)) + content)
    return packet


async def _packets(read: Any) -> AsyncIterator[Packet]:
    """Yield the packets of a stream; the first of each side has no id, and its version in that place."""
    buffer = b""
    while piece := await read():
        buffer += piece
        while len(buffer) >= 4 and len(buffer) >= 4 + (length := struct.unpack_from(">I", buffer)[0]):
            kind, number = struct.unpack_from(">BI", buffer, 4)
            yield Packet(kind, number, buffer[9 : 4 + length])
            buffer = buffer[4 + length :]
