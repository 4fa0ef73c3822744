"""Which transport reads the files of a scheme."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhdkit.storage.transport import Transport

_transports: dict[tuple[str, int], Transport] = {}


def transport_for(scheme: str) -> Transport:
    """Return the transport of this process for a scheme; a forked one must not use its parent's connections."""
    key = "http" if scheme == "https" else scheme, os.getpid()
    found = _transports.get(key)
    # Of two threads that make one at once, both get the one that was noted first.
    return found if found is not None else _transports.setdefault(key, _new(key[0]))


def _new(scheme: str) -> Transport:
    # Each loads the library of its scheme, of which that of S3 takes a second.
    if scheme == "s3":
        from vhdkit.storage.s3_transport import S3Transport  # noqa: PLC0415

        return S3Transport()
    if scheme == "sftp":
        from vhdkit.storage.sftp_transport import SftpTransport  # noqa: PLC0415

        return SftpTransport()
    from vhdkit.storage.http_transport import HttpTransport  # noqa: PLC0415

    return HttpTransport()


def forget_transports(*schemes: str) -> None:
    """Close the connections of schemes, or of all: the settings or the libraries are others from now on."""
    for key in [key for key in _transports if not schemes or key[0] in schemes]:
        transport = _transports.pop(key)
        if key[1] == os.getpid():
            transport.close()
