"""Where a server listens, and the URI that clients are given."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote

# That of NBD by IANA's list.
NBD_PORT = 10809
LOOPBACK = "127.0.0.1"
_MOST_PORT = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixSocket:
    """A socket in the file system, which only those can reach who may write to it."""

    path: str

    @property
    def uri(self) -> str:
        """The server's address as NBD clients take it."""
        return f"nbd+unix:///?socket={quote(self.path)}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """The address as nbdkit takes it."""
        return ("-U", self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpPort:
    """A port of this machine: of its loopback, which no other machine can reach, unless another address is named."""

    port: int = NBD_PORT
    address: str = LOOPBACK

    def __post_init__(self) -> None:
        if not 0 < self.port <= _MOST_PORT:
            raise ValueError(f"the port is {self.port}: expected 1 to {_MOST_PORT}")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            return self.address == "localhost"

    @property
    def uri(self) -> str:
        """The server's address as NBD clients take it."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"nbd://{host}:{self.port}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """The address as nbdkit takes it."""
        return ("-i", self.address, "-p", str(self.port))


Endpoint: TypeAlias = "UnixSocket | TcpPort"
