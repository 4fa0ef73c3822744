"""Files of other machines as paths: a URL outside, and a rooted path inside, with which paths can be reckoned.

    http://nas:8080/vms/my%20disk.avhd        //http/nas:8080/vms/my disk.avhd
    s3://backups/vms/disk.avhd                //s3/backups/vms/disk.avhd
    sftp://root@xen:2222/srv/disk.avhd        //sftp/root@xen:2222/srv/disk.avhd

No path of this machine begins with two slashes, and a path inside never leads from one scheme, host, bucket or user to
another: what may be opened as a parent is below a folder, and two of them have none in common.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vhdkit.errors import ReadOnlyImageError

SCHEMES = ("http", "https", "s3", "sftp")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# The settings of ssh may hand names to a shell, as ProxyCommand does: ssh itself takes no others either.
_SSH_AUTHORITY = re.compile(
    r"(?:[A-Za-z0-9_.][A-Za-z0-9_.+@-]*@)?(?:[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?"
)
_ROOTED = re.compile(rf"//({'|'.join(SCHEMES)})/([^/]+)(/.*)?$", re.DOTALL)


class RemotePlace(NamedTuple):
    """Where a remote file is: `authority` is the host, with the port and the user if they are named, or the bucket."""

    scheme: str
    authority: str
    path: str

    @property
    def url(self) -> str:
        """The URL, with nothing secret in it: there is none in a place."""
        from urllib.parse import quote  # noqa: PLC0415 - paths are reckoned with long before any URL is met

        return f"{self.scheme}://{self.authority}{quote(self.path, errors='surrogateescape')}"

    @property
    def rooted(self) -> str:
        """The path that is reckoned with."""
        return f"//{self.scheme}/{self.authority}{self.path}"


def is_remote(path: str) -> bool:
    """Whether a path is a URL, or the rooted path of one."""
    return (path[:2] == "//" and _ROOTED.match(path) is not None) or (":" in path and _URL.match(path) is not None)


def remote_place(path: str) -> RemotePlace:
    """Return the place that a URL, or a rooted path, names.

    Raises:
        ValueError: it has a scheme that is not read here, or parts that no file has.

    """
    from urllib.parse import unquote, urlsplit  # noqa: PLC0415

    rooted = _ROOTED.match(path)
    if rooted is not None:
        return _checked(RemotePlace(rooted[1], rooted[2], rooted[3] or "/"))
    parts = urlsplit(path)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"{parts.scheme}:// is not read here: expected http://, https://, s3:// or sftp://")
    if parts.query or parts.fragment or not parts.hostname:
        place = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
        raise ValueError(f"{place}: expected a host and a path, and nothing else")
    user, at, host = parts.netloc.rpartition("@")
    # A part `..` that is written with escapes must not climb either.
    inner = posixpath.normpath(unquote(parts.path, errors="surrogateescape") or "/")
    return _checked(RemotePlace(parts.scheme, f"{user}{at}{host.lower()}", "/" + inner.lstrip("/")))


def _checked(place: RemotePlace) -> RemotePlace:
    """Return a place whose authority is one of its scheme; what is refused is not repeated, as it may be secret."""
    user, at, host = place.authority.rpartition("@")
    where = f"{place.scheme}://{host}"
    if ":" in user:
        raise ValueError(f"{where}: passwords do not belong into a URL")
    if at and place.scheme != "sftp":
        raise ValueError(f"{where}: names of users do not belong into a URL of {place.scheme}")
    if place.scheme == "sftp" and _SSH_AUTHORITY.fullmatch(place.authority) is None:
        raise ValueError("expected sftp://[USER@]HOST[:PORT]/PATH, with names of letters, digits and -_.+")
    return place


def refusal_to_write(place: RemotePlace) -> ReadOnlyImageError:
    """Return the error about a remote file that should be written."""
    from vhdkit.errors import ReadOnlyImageError  # noqa: PLC0415 - paths are reckoned with before any error

    message = "files of other machines are only read: copy it here, or work at it there"
    return ReadOnlyImageError(message, path=place.url)
