"""Remove files that nobody needs any longer: layers, kept files, and what an operation that was cut off has made.

A manifest is untrusted, and what it calls doomed need not be. A file goes only if it lies where the machine's files do
(see `allowed_folders`), has a name and an id as this machine's files get them, is no link, and no other image or
machine needs it. A layer that an operation had only begun goes only while nothing was written to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from vhdkit.chain.children import children_of
from vhdkit.errors import VhdError
from vhdkit.formats import open_image
from vhdkit.journal.claims import claims_on
from vhdkit.journal.merge_journal import find_journal
from vhdkit.snapshot import allowed_folders
from vhdkit.storage import paths
from vhdkit.storage.new_file import is_partial
from vhdkit.storage.search_scope import SearchScope

if TYPE_CHECKING:
    from vhdkit.disk.image import Image
    from vhdkit.journal.manifest import LayerRecord, Made, Manifest
    from vhdkit.snapshot.manifest_file import ManifestFile

_STRANGE_NAME = "its name is none that snapshots give; it is forgotten once the file is moved elsewhere"
_STRANGE_PLACE = "its folder is not known as this machine's; it is forgotten once the file is moved elsewhere"


def why_kept(file: ManifestFile, manifest: Manifest, record: LayerRecord) -> str:
    """Return why a layer that nobody needs cannot be removed now, "" if it can.

    Raises:
        OSError: a file failed.

    """
    return _why_kept(file, manifest, file.absolute(record.path), record.unique_id)


def why_left(file: ManifestFile, manifest: Manifest, made: Made) -> str:
    """Return why a file that an operation has made, or left to go, cannot be removed now, "" if it can.

    Raises:
        OSError: a file failed.

    """
    path = file.absolute(made.path)
    if not made.unique_id:
        return _why_kept_file_stays(file, manifest, path)
    return _why_kept(file, manifest, path, made.unique_id, is_begun=made in manifest.begun)


def _why_kept_file_stays(file: ManifestFile, manifest: Manifest, path: str) -> str:
    if not file.folder.exists(path):
        return ""
    if not allowed_folders.is_kept_name(manifest, path):
        return _STRANGE_NAME
    if not allowed_folders.is_own(file, path):
        return _STRANGE_PLACE
    return ""


def _why_kept(file: ManifestFile, manifest: Manifest, path: str, unique_id: str, *, is_begun: bool = False) -> str:
    try:
        with open_image(path, exclusive=True, follow_links=False, folder=file.folder) as image:
            why = _why_not_ours(file, manifest, image, unique_id)
            if not why and is_begun and not image.is_empty():
                why = "it was begun and never finished, and data was written to it"
            return why or _why_needed(file, manifest, image)
    except FileNotFoundError:
        return ""
    except VhdError as error:
        return str(error.message)


def _why_not_ours(file: ManifestFile, manifest: Manifest, image: Image, unique_id: str) -> str:
    if image.unique_id.hex() != unique_id:
        return "another image has its name"
    if not allowed_folders.is_layer_name(manifest, image.path) or image.parent is None:
        return _STRANGE_NAME
    return "" if allowed_folders.is_own(file, image.path) else _STRANGE_PLACE


def _why_needed(file: ManifestFile, manifest: Manifest, image: Image) -> str:
    if find_journal(file.folder, image.path) is not None:
        return "a merge into it is not finished"
    others = [claim for claim in claims_on(SearchScope(file.folder), [image.path]) if claim.manifest_path != file.path]
    if others:
        return f"it is {others[0].text()}"
    known = children_of(image, SearchScope(file.folder, file.search(manifest)))
    return f"other images read through it: {', '.join(known)}" if known else ""


def sweep(file: ManifestFile, manifest: Manifest) -> Manifest:
    """Remove what is doomed, and what an operation that was cut off had begun to make; return what is then known.

    What is not removed is known on, for `check` says why; but for a begun layer that was written to: that is an image
    of its own then, which is never removed here. The manifest is not written: whoever is cut off here finds the same to
    do again.
    """
    known = {layer.path for disk in manifest.disks for layer in disk.layers}
    known |= {state.path for each in manifest.snapshots for state in each.state}
    doomed = tuple(each for each in manifest.doomed if each.path not in known and not _is_gone(file, manifest, each))
    begun = tuple(each for each in manifest.begun if each.path not in known and not _is_gone(file, manifest, each))
    if (doomed, begun) == (manifest.doomed, manifest.begun):
        return manifest
    return replace(manifest, doomed=doomed, begun=begun)


def _is_gone(file: ManifestFile, manifest: Manifest, each: Made) -> bool:
    """Remove a file if it may be; return whether it need not be known any longer."""
    try:
        path = file.absolute(each.path)
        if not file.folder.exists(path):
            _remove_half_made(file, manifest, path, each)
            return True
        if why_left(file, manifest, each):
            return _is_image_of_its_own(file, manifest, path, each)
        _remove_half_made(file, manifest, path, each)
        _remove(file, path, each)
    except (VhdError, OSError):
        # It is in use, cannot be read, or the disk fails: `check` tells of it until that is over.
        return False
    return True


def _is_image_of_its_own(file: ManifestFile, manifest: Manifest, path: str, each: Made) -> bool:
    """Whether a file stays for good: it was never this machine's to remove, or is an orphan, of which `check` tells."""
    if (
        not each.unique_id
        or not allowed_folders.is_layer_name(manifest, path)
        or not allowed_folders.is_own(file, path)
    ):
        return True
    with open_image(path, follow_links=False, folder=file.folder) as image:
        is_other = image.unique_id.hex() != each.unique_id
        return is_other or (each in manifest.begun and not image.is_empty())


def _remove_half_made(file: ManifestFile, manifest: Manifest, path: str, each: Made) -> None:
    """Remove what has a temporary name of a file that was being made; others may be making theirs beside it."""
    is_ours = (
        allowed_folders.is_layer_name(manifest, path)
        if each.unique_id
        else allowed_folders.is_kept_name(manifest, path)
    )
    if not is_ours or not allowed_folders.is_own(file, path):
        return
    directory = paths.dirname(path)
    for name in file.folder.names(directory):
        leftover = paths.join(directory, name)
        if name.startswith(f"{paths.basename(path)}.") and is_partial(leftover):
            file.folder.remove(leftover)
    # Whoever forgets a file that is gone must not find it there after a power cut.
    file.folder.sync(directory)


def _remove(file: ManifestFile, path: str, each: Made) -> None:
    if each.unique_id:
        image = open_image(path, exclusive=True, follow_links=False, folder=file.folder)
        with image:
            if image.unique_id.hex() != each.unique_id:
                return
            try:
                file.folder.remove(path)
            except PermissionError:
                # Windows removes no file that is open, or marked.
                image.close()
                file.folder.protect(path, is_protected=False)
                file.folder.remove(path)
    else:
        file.folder.protect(path, is_protected=False)
        file.folder.remove(path)
    file.folder.sync(paths.dirname(path))
