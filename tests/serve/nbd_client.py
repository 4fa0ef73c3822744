"""A client of the NBD protocol, as plain as can be: one request at a time, simple replies."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from types import TracebackType

MAGIC, OPTION, FIXED_NEWSTYLE_NO_ZEROES = b"NBDMAGIC", b"IHAVEOPT", 3
EXPORT_NAME = 1
REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6


class Refused(Exception):  # noqa: N818 - what the server answers with
    def __init__(self, number: int) -> None:
        super().__init__(f"error {number}")
        self.number = number


class NbdClient:
    def __init__(self, uri: str) -> None:
        where = urlsplit(uri)
        if where.scheme == "nbd+unix":
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(parse_qs(where.query)["socket"][0])
        else:
            self.socket = socket.create_connection((where.hostname or "", where.port or 0))
        self.socket.settimeout(30)
        greeting = self._received(18)
        assert greeting[:16] == MAGIC + OPTION
        self.socket.sendall(struct.pack(">I", FIXED_NEWSTYLE_NO_ZEROES) + OPTION + struct.pack(">II", EXPORT_NAME, 0))
        self.size, self.flags = struct.unpack(">QH", self._received(10))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    @property
    def is_read_only(self) -> bool:
        return bool(self.flags & 2)

    def send(self, operation: int, offset: int, length: int, data: bytes = b"") -> None:
        self.socket.sendall(REQUEST.pack(REQUEST_MAGIC, 0, operation, 7, offset, length) + data)

    def ask(self, operation: int, offset: int, length: int, data: bytes = b"") -> bytes:
        self.send(operation, offset, length, data)
        magic, error, handle = REPLY.unpack(self._received(REPLY.size))
        assert (magic, handle) == (REPLY_MAGIC, 7)
        if error:
            raise Refused(error)
        return self._received(length) if operation == READ else b""

    def read(self, offset: int, length: int) -> bytes:
        return self.ask(READ, offset, length)

    def write(self, offset: int, data: bytes) -> None:
        self.ask(WRITE, offset, len(data), data)

    def _received(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            part = self.socket.recv(count - len(parts))
            if not part:
                raise ConnectionResetError
            parts += part
        return parts
