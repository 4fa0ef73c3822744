"""Who may talk to a scheduler: whatever it is sent it runs, so that away from the loopback only TLS is accepted."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vhdkit.errors import FleetError
from vhdkit.extras import load_extra

if TYPE_CHECKING:
    from types import ModuleType

_SCHEMES = ("tcp", "tls")


def distributed() -> ModuleType:
    """Return Dask's `distributed`.

    Raises:
        MissingExtraError: it is not installed.

    """
    return load_extra("distributed", "fleet", "a scheduler of many machines")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The PEM files of a cluster: its own certificate authority, and a certificate of that with its key."""

    ca: str
    cert: str
    key: str

    def security(self) -> Any:  # noqa: ANN401 - distributed ships no types
        """Return these as Dask takes them, for every part that this process may play."""
        roles = {f"tls_{role}_{part}": getattr(self, part) for role in ("client", "worker") for part in ("cert", "key")}
        return distributed().Security(tls_ca_file=self.ca, require_encryption=True, **roles)


def check_scheduler_address(address: str, tls: TlsFiles | None) -> str:
    """Return the address of a scheduler as Dask takes it: with TLS, or on the loopback of this machine.

    >>> check_scheduler_address("127.0.0.1:8786", None)
    'tcp://127.0.0.1:8786'

    Raises:
        FleetError: it is elsewhere and would be talked to in the clear, or is no address.

    """
    text = address if "://" in address else f"{'tcp' if tls is None else 'tls'}://{address}"
    scheme, host = _taken_apart(address, text)
    if tls is None and (scheme == "tls" or not is_loopback(host)):
        message = f"{address}: a scheduler runs what it is sent: away from this machine it is reached by TLS only"
        raise FleetError(f"{message}, with the certificate of the cluster's authority, one of that, and its key")
    if tls is not None and scheme != "tls":
        raise FleetError(f"{address}: with the files of TLS the address of the scheduler begins with tls://")
    return text


def _taken_apart(address: str, text: str) -> tuple[str, str]:
    """Return the scheme and the host of an address."""
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in _SCHEMES or not parts.hostname or port is None:
        raise FleetError(f"{address} is no address of a scheduler: expected tls://HOST:PORT")
    return parts.scheme, parts.hostname


def is_loopback(host: str) -> bool:
    """Whether a host is this machine whatever the network says: a name may lead anywhere, but for the one.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("10.0.0.1")
    (True, True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
