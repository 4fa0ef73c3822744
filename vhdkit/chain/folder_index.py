"""What lies in the folders that a search for parents goes through, each read once for as many searches as share it.

Of a chain whose layers name no parent every layer has the whole folder looked through for an id: 400 of them read
each other 400 times otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vhdkit.chain.catalog import Cataloged, read_entries
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.storage.protocols import Folder

# Hyper-V's own layout: snapshots lie in one folder, and what they stand on in the other one beside it.
_LAYOUT = {"Snapshots": "Virtual Hard Disks", "Virtual Hard Disks": "Snapshots"}


def layout_folders(folder: Folder, directory: str) -> tuple[str, ...]:
    """Return the directory that belongs to one of Hyper-V's own layout, if it is there and no link; else none."""
    other = _LAYOUT.get(paths.basename(directory))
    if other is None:
        return ()
    beside = paths.join(paths.dirname(directory), other)
    return (beside,) if folder.real(beside) == beside and folder.exists(beside) else ()


class Known(NamedTuple):
    """An image as a folder's index knows it."""

    path: str
    identity: tuple[int, int]


class FolderIndex:
    """The images of folders by their ids, and the folders' names by their lower case.

    It is as old as its first question: what is opened because of it has to be looked at again. `unlisted` are the
    directories that could not be listed, and why.
    """

    def __init__(self, folder: Folder) -> None:
        self.unlisted: dict[str, OSError] = {}
        self._folder = folder
        self._by_id: dict[tuple[str, bool], dict[bytes, list[Known]]] = {}
        self._by_name: dict[str, dict[str, list[str]]] = {}

    def with_id(self, directory: str, unique_id: bytes, *, deep: bool) -> Sequence[Known]:
        """Return the images in a directory, and with `deep` below it, that have an id."""
        place = directory, deep
        if place not in self._by_id:
            known = self._by_id[place] = {}
            walk = self._folder.walk(directory, deep=deep)
            for found in read_entries(self._folder, walk):
                if isinstance(found, Cataloged):
                    known.setdefault(found.unique_id, []).append(Known(found.path, found.identity))
            self.unlisted.update(walk.unlisted)
        return self._by_id[place].get(unique_id, ())

    def alike(self, directory: str, name: str) -> Sequence[str]:
        """Return the names in a directory that differ from one in case at most."""
        if directory not in self._by_name:
            known = self._by_name[directory] = {}
            for other in self._folder.names(directory):
                known.setdefault(other.lower(), []).append(other)
        return self._by_name[directory].get(name.lower(), ())
