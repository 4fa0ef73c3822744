"""What `Folder` does, of files of other machines: they have names as files here have, and are only read."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vhdkit.storage.protocols import Entry, Walk
from vhdkit.storage.remote_file import RemoteStorage, remote_identity
from vhdkit.storage.remote_paths import refusal_to_write, remote_place
from vhdkit.storage.transports import transport_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.storage.protocols import Storage
    from vhdkit.storage.remote_paths import RemotePlace
    from vhdkit.storage.transport import Listed

# A tree of images is not so deep; what is deeper may have no end.
_MOST_DEPTH = 64


def open_remote(path: str, *, writable: bool) -> Storage:
    """Open a file; see `Folder.open`."""
    place = remote_place(path)
    if writable:
        raise refusal_to_write(place)
    return RemoteStorage(place)


def exists(path: str) -> bool:
    """Whether the path leads to anything."""
    place = remote_place(path)
    return transport_for(place.scheme).exists(place)


def real(path: str) -> str:
    """Return the rooted path, with every link followed where the server has links."""
    place = remote_place(path)
    return transport_for(place.scheme).real(place).rooted


def check_listing(path: str) -> None:
    """Raise the OSError that listing a folder would."""
    _listing(remote_place(path))


def walk(directory: str, *, deep: bool) -> Walk:
    """Walk through the regular files in a folder, and with `deep` below it, where the protocol has listings."""
    unlisted: dict[str, OSError] = {}
    return Walk(_entries(directory, deep=deep, unlisted=unlisted), unlisted)


def _entries(directory: str, *, deep: bool, unlisted: dict[str, OSError]) -> Iterator[Entry]:
    todo = [(remote_place(directory), 0)]
    while todo:
        here, depth = todo.pop()
        try:
            listed = _listing(here)
        except OSError as error:
            if error.errno == errno.E2BIG:
                raise
            unlisted[here.rooted] = error
            continue
        below = []
        for name, size, is_folder in listed:
            place = here._replace(path=f"{here.path.rstrip('/')}/{name}")
            if is_folder:
                below.append((place, depth + 1))
            else:
                yield Entry(path=place.rooted, size=size, identity=remote_identity(place))
        if deep and depth < _MOST_DEPTH:
            todo += reversed(below)


def _listing(place: RemotePlace) -> list[Listed]:
    """Return what is in a folder, in order; names that lead elsewhere are left out, whatever a server calls them."""
    listed = transport_for(place.scheme).listing(place)
    return sorted(each for each in listed if each.name not in {"", ".", ".."} and not set(each.name) & {"/", "\0"})
