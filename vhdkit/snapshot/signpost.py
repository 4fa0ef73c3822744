"""In a folder with images of a machine but not its manifest: where that is, so that any file of it names the machine.

A signpost only leads to a manifest, which then has to tell of the file itself; one that is wrong or lost harms nothing.
It is put up when the manifest tells of the folder, and taken away before it no longer does.

**Order** of putting up: as any new file: 1 content, sync · 2 name, folder sync. A cut leaves a file with a temporary
name, which goes when the signpost is put up again, or taken away.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

from vhdkit.image.create import creating, is_partial
from vhdkit.storage import paths
from vhdkit.storage.reading import read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.storage.seam import Folder

SUFFIX = ".vhdkit-snapshots.at"
MANIFEST_SUFFIX = ".vhdkit-snapshots.json"
_KIND = "vhdkit snapshots elsewhere"
# A path of the longest kind, each letter of it escaped.
_MAX_BYTES = 64 << 10


def signpost_path(directory: str, stem: str, machine_id: str) -> str:
    """Return where a machine's signpost stands in a folder; the id is its manifest's.

    >>> signpost_path("/fast", "xp", "0F")
    '/fast/xp_0F.vhdkit-snapshots.at'
    """
    return paths.join(directory, f"{stem}_{machine_id}{SUFFIX}")


def put_up(folder: Folder, path: str, manifest: str) -> None:
    """Let a signpost lead to a manifest, unless it does.

    A folder that takes no new files has none: the machine is found by its other files all the same.
    """
    if manifest_at(folder, path) == manifest:
        return
    with suppress(OSError):
        take_away(folder, path)
        shown = paths.relpath(manifest, paths.dirname(path)).replace(paths.sep, "/")
        with creating(folder, path, None) as storage:
            storage.write_at(0, (json.dumps({"kind": _KIND, "version": 1, "manifest": shown}) + "\n").encode())


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
    try:
        storage = folder.open(path)
    except OSError:
        return None
    try:
        size = storage.size()
        record = json.loads(read_bytes(storage, 0, size)) if size <= _MAX_BYTES else None
        if not isinstance(record, dict) or record.get("kind") != _KIND or not isinstance(record.get("manifest"), str):
            return None
        return folder.real(paths.join(paths.dirname(path), *record["manifest"].split("/")))
    except (OSError, ValueError, RecursionError):
        return None
    finally:
        storage.close()


def signposts(folder: Folder, directory: str) -> Iterator[tuple[str, str]]:
    """Yield the signposts in a folder, and the manifest that each leads to, whether it is there or not."""
    for name in sorted(folder.names(directory)):
        path = paths.join(directory, name)
        if name.endswith(SUFFIX):
            manifest = manifest_at(folder, path)
            if manifest is not None:
                yield path, manifest


def manifest_paths(folder: Folder, directory: str) -> tuple[str, ...]:
    """Return where the manifests lie that are in a directory, and those to which its signposts lead."""
    there = [paths.join(directory, name) for name in folder.names(directory) if name.endswith(MANIFEST_SUFFIX)]
    shown = [path for _, path in signposts(folder, directory) if path.endswith(MANIFEST_SUFFIX) and folder.exists(path)]
    return tuple(dict.fromkeys((*there, *shown)))
