"""In a folder with images of a machine but not its manifest: where that is, so that any file of it names the machine.

A signpost leads to a manifest, which then has to tell of the file itself. A manifest's layers elsewhere count only
where a signpost leads back to it: whoever writes a manifest must not be able to have files of other folders changed. It
is put up before the manifest tells of the folder, and taken away when it no longer does.

**Order** of putting up: as any new file: 1 content, sync · 2 name, folder sync. A cut leaves a file with a temporary
name, which goes when the signpost is put up again, or taken away.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from vhdkit.journal.held_names import held_names, names_of
from vhdkit.journal.records import check_keys
from vhdkit.journal.relative_paths import check_path
from vhdkit.storage import paths
from vhdkit.storage.new_file import is_partial, new_file
from vhdkit.storage.protocols import read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.storage.protocols import Folder

SUFFIX = ".vhdkit-snapshots.at"
MANIFEST_SUFFIX = ".vhdkit-snapshots.json"
_KIND: Literal["vhdkit snapshots elsewhere"] = "vhdkit snapshots elsewhere"
_VERSION = 1
# A path of the longest kind, each letter of it escaped.
_MAX_BYTES = 64 << 10


def signpost_path(directory: str, stem: str, machine_id: str) -> str:
    """Return where a machine's signpost stands in a folder; the id is its manifest's.

    >>> signpost_path("/fast", "xp", "0F")
    '/fast/xp_0F.vhdkit-snapshots.at'
    """
    return paths.join(directory, f"{stem}_{machine_id}{SUFFIX}")


class _Signpost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: Literal["vhdkit snapshots elsewhere"]
    version: Literal[1]
    manifest: str


def put_up(folder: Folder, path: str, manifest: str) -> bool:
    """Let a signpost lead to a manifest; return whether it did not already.

    Raises:
        OSError: the folder takes no new file.

    """
    if manifest_at(folder, path) == manifest:
        return False
    take_away(folder, path)
    shown = paths.relpath(manifest, paths.dirname(path)).replace(paths.sep, "/")
    with new_file(folder, path) as storage:
        storage.write_at(0, (json.dumps({"kind": _KIND, "version": _VERSION, "manifest": shown}) + "\n").encode())
    return True


def take_away(folder: Folder, path: str) -> None:
    """Remove a signpost, and what a cut left of it half made."""
    directory = paths.dirname(path)
    with suppress(OSError):
        for name in folder.names(directory):
            leftover = paths.join(directory, name)
            if leftover == path or (name.startswith(f"{paths.basename(path)}.") and is_partial(leftover)):
                folder.remove(leftover)


def manifest_at(folder: Folder, path: str) -> str | None:
    """Return the real path of the manifest that a signpost leads to, None if it is no signpost."""
    found = read_signpost(folder, path)
    return None if found is None else found.manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Signpost:
    """A signpost where it stands: the real path of the manifest that it leads to, and the user who owns it."""

    path: str
    manifest: str
    owner: int


def read_signpost(folder: Folder, path: str) -> Signpost | None:
    """Return what a signpost says, None if it is none."""
    try:
        with folder.open(path) as storage:
            size = storage.size()
            if size > _MAX_BYTES:
                return None
            raw, owner = held_names(read_bytes(storage, 0, size)), storage.owner
        record = msgspec.json.decode(raw, type=_Signpost)
        check_keys(raw)
        manifest = names_of(record.manifest)
        check_path(manifest)
        if not manifest.endswith(MANIFEST_SUFFIX):
            return None
        shown = paths.join(paths.dirname(path), *manifest.split("/"))
        return Signpost(path=path, manifest=folder.real(shown), owner=owner)
    except (OSError, ValueError, RecursionError):
        return None


def signposts(folder: Folder, directory: str) -> Iterator[Signpost]:
    """Yield the signposts in a folder, whether the manifest that each leads to is there or not."""
    for name in folder.names(directory):
        if name.endswith(SUFFIX):
            found = read_signpost(folder, paths.join(directory, name))
            if found is not None:
                yield found


def manifest_paths(folder: Folder, directory: str) -> tuple[str, ...]:
    """Return where the manifests lie that are in a directory, and those to which its signposts lead."""
    there = [paths.join(directory, name) for name in folder.names(directory) if name.endswith(MANIFEST_SUFFIX)]
    shown = [post.manifest for post in signposts(folder, directory) if folder.exists(post.manifest)]
    return tuple(dict.fromkeys((*there, *shown)))
