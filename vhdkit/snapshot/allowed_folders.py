"""Where the files of a manifest may lie, and who may speak for them.

A manifest is untrusted: whoever may put a file into a folder can write one. It counts for files in its own folder. In
another folder it counts for layers alone, and only if a signpost there leads back to it, which is the layers' owner's,
or if the user has named that folder. New files are made, and old ones removed, in those folders only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.errors import SnapshotError
from vhdkit.findings import Advice
from vhdkit.journal.manifest import GUID
from vhdkit.journal.manifest_pointer import MANIFEST_SUFFIX, signpost_path, signposts
from vhdkit.storage import paths
from vhdkit.storage.process import this_user

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vhdkit.journal.manifest import Disk, Manifest
    from vhdkit.snapshot.manifest_file import ManifestFile

# No file system that images are kept on has names of more bytes.
_NAME_BYTES = 255
# What a name is followed by while its file is made, or beside it while it is changed.
_LONGEST_TAIL = len(".01234567.partial")


def check_owner(file: ManifestFile, manifest: Manifest, owner: int) -> None:
    """Refuse a manifest of a user who may not speak for its layers: elsewhere anybody could have images removed.

    Raises:
        SnapshotError: it belongs neither to this user, nor to the system, nor to the owner of each layer.

    """
    if owner in {0, this_user()}:
        return
    others = [each for each in _owners(file, file.images(manifest)) if each != owner]
    if others or not any(map(file.folder.exists, file.images(manifest))):
        message = "it belongs to another user than the disk, and is not believed; remove it if it is wrong"
        raise SnapshotError(message, path=file.path)


def _owners(file: ManifestFile, files: Iterable[str]) -> Iterator[int]:
    """Yield the owners of the files that are there."""
    for path in files:
        try:
            storage = file.folder.open(path)
        except OSError:
            continue
        with storage:
            owner = storage.owner
        yield owner


def check_folders(file: ManifestFile, manifest: Manifest) -> None:
    """Refuse layers in other folders from which no signpost leads back.

    Raises:
        SnapshotError: there are some. The command in it puts the signpost up.

    """
    for directory, files in sorted(_elsewhere(file, manifest).items()):
        if directory in file.named or is_led_back(file, directory, files):
            continue
        for post in signposts(file.folder, directory):
            is_copied = paths.basename(post.path) == _signpost_name(file, manifest) and post.manifest != file.path
            if is_copied and file.folder.exists(post.manifest):
                message = f"the images in {directory} that it tells of are those of {post.manifest}, of which it is a"
                message += " copy"
                hint = Advice.EXPORT.hint("remove it, and take what is wanted from there with {}", path=post.manifest)
                raise SnapshotError(message, path=file.path, hint=hint)
        near = sorted(file.images(manifest), key=lambda path: (paths.dirname(path) != file.directory, path))
        known = next(filter(file.folder.exists, near), file.path)
        message = f"it names images in {directory}, and no signpost there leads back to it"
        text = "if they are of this machine, {} puts one up; if not, remove it"
        hint = Advice.ADOPT.hint(text, paths=(known,), search=(directory,))
        raise SnapshotError(message, path=file.path, hint=hint)


def _elsewhere(file: ManifestFile, manifest: Manifest) -> dict[str, list[str]]:
    """Return the layers that lie in other folders, by these."""
    found: dict[str, list[str]] = {}
    for path in file.images(manifest):
        directory = paths.dirname(path)
        if directory != file.directory:
            found.setdefault(directory, []).append(path)
    return found


def is_led_back(file: ManifestFile, directory: str, files: Iterable[str] = ()) -> bool:
    """Whether a signpost in a folder leads to the manifest, of a user who may speak for these files in it."""
    owners = {post.owner for post in signposts(file.folder, directory) if post.manifest == file.path}
    if owners & {0, this_user()}:
        return True
    return any(all(found == owner for found in _owners(file, files)) for owner in owners)


def is_own(file: ManifestFile, path: str) -> bool:
    """Whether files may be made and removed in the folder of a file for this machine."""
    directory = paths.dirname(path)
    is_near = directory == file.directory or directory in file.named
    return is_near or is_led_back(file, directory, [path] if file.folder.exists(path) else ())


def signposts_of(file: ManifestFile, manifest: Manifest) -> set[str]:
    """Return where signposts that lead to the manifest have to stand."""
    name = _signpost_name(file, manifest)
    made = (file.absolute(each.path) for each in (*manifest.begun, *manifest.doomed))
    directories = {paths.dirname(path) for path in made if is_own(file, path)}
    new = {file.absolute_folder(disk.directory) for disk in manifest.disks}
    new |= {file.absolute_folder(manifest.state_to)} if manifest.state_to is not None else set()
    directories |= {directory for directory in new if is_own(file, paths.join(directory, "x"))}
    directories |= set(_elsewhere(file, manifest))
    return {paths.join(directory, name) for directory in directories - {file.directory}}


def _signpost_name(file: ManifestFile, manifest: Manifest) -> str:
    stem = paths.basename(file.path).removesuffix(MANIFEST_SUFFIX)
    return paths.basename(signpost_path(file.directory, stem, manifest.id))


# Names


def is_layer_name(manifest: Manifest, path: str) -> bool:
    """Whether a file has a name as new layers of this machine get it, `<stem>_<GUID>.avhd`: others are not removed."""
    name = paths.basename(path)
    return any(
        name.startswith(f"{disk.stem}_") and GUID.fullmatch(name[len(disk.stem) + 1 :].removesuffix(".avhd"))
        for disk in manifest.disks
        if name.endswith(".avhd")
    )


def is_kept_name(manifest: Manifest, path: str) -> bool:
    """Whether a file has a name as kept files get it: whoever writes a manifest must not have others removed."""
    name = paths.basename(path)
    for stem in {f"{disk.stem}_" for disk in manifest.disks}:
        unique_id, end = name[len(stem) : len(stem) + 36], name[len(stem) + 36 :]
        if name.startswith(stem) and end.startswith("_") and len(end) > 1 and GUID.fullmatch(unique_id):
            return True
    return False


def check_new_names(files: Iterable[str]) -> None:
    """Refuse names that are too long for a file system, with what they have behind them while files are made.

    Raises:
        SnapshotError: one is.

    """
    for path in files:
        name = paths.basename(path)
        length = len(name.encode(errors="surrogateescape")) + _LONGEST_TAIL
        if length > _NAME_BYTES:
            message = f"its name would have {length} bytes while the file is made, more than {_NAME_BYTES}"
            raise SnapshotError(f"{message}: give the disk a shorter name, or the kept file", path=path)


def check_room_for(file: ManifestFile, disk: Disk) -> str:
    """Return the folder in which new layers of a disk are made.

    Raises:
        SnapshotError: it is neither the manifest's, nor did the user name it, nor does a signpost lead back from it.

    """
    directory = file.absolute_folder(disk.directory)
    if not is_own(file, paths.join(directory, "x")):
        message = f"new layers would be made in {directory}, from where no signpost leads back"
        raise SnapshotError(message, path=file.path, hint=Advice.LAYER_FOLDER.hint("{} names a folder"))
    return directory
