"""Remove files that nobody needs any longer: layers, kept files, and what an operation that was cut off has made.

A manifest is untrusted, and what it calls doomed need not be. A file goes only if it lies where the machine's files do
(see `allowed_folders`), has a name and an id as this machine's files get them, is no link, and no other image or
machine needs it. A layer that an operation had only begun goes only while nothing was written to it.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    from vhdkit.storage.protocols import Folder

_STRANGE_NAME = "its name is none that snapshots give; it is forgotten once the file is moved elsewhere"
_STRANGE_PLACE = "its folder is not known as this machine's; it is forgotten once the file is moved elsewhere"


@dataclass(frozen=True, slots=True)
class Cleanup:
    """The files of a manifest that no snapshot needs: why they are kept, and their removal."""

    file: ManifestFile
    manifest: Manifest

    def why_kept(self, record: LayerRecord) -> str:
        """Return why a layer that no snapshot needs cannot be removed now, "" if it can.

        Raises:
            OSError: a file failed.

        """
        return self._why_layer_stays(self.file.absolute(record.path), record.unique_id)

    def why_left(self, made: Made) -> str:
        """Return why a file that an operation has made, or left to go, cannot be removed now, "" if it can.

        Raises:
            OSError: a file failed.

        """
        path = self.file.absolute(made.path)
        if not made.unique_id:
            return self._why_kept_file_stays(path)
        return self._why_layer_stays(path, made.unique_id, is_begun=made in self.manifest.begun)

    def sweep(self) -> Manifest:
        """Remove what is doomed, and what an operation that was cut off had begun to make; return what is then known.

        What is not removed is known on, for `check` says why; but for a begun layer that was written to: that is an
        image of its own then, which is never removed here. The manifest is not written: whoever is cut off here finds
        the same to do again.
        """
        manifest = self.manifest
        known = {layer.path for disk in manifest.disks for layer in disk.layers}
        known |= {state.path for each in manifest.snapshots for state in each.state}
        doomed = tuple(each for each in manifest.doomed if each.path not in known and not self._is_gone(each))
        begun = tuple(each for each in manifest.begun if each.path not in known and not self._is_gone(each))
        if (doomed, begun) == (manifest.doomed, manifest.begun):
            return manifest
        return replace(manifest, doomed=doomed, begun=begun)

    # Whether a file may go

    def _why_kept_file_stays(self, path: str) -> str:
        if not self.file.folder.exists(path):
            return ""
        return self._why_not_of_machine(path, is_layer=False)

    def _why_layer_stays(self, path: str, unique_id: str, *, is_begun: bool = False) -> str:
        try:
            with open_image(path, exclusive=True, follow_links=False, folder=self.file.folder) as image:
                why = self._why_not_ours(image, unique_id)
                if not why and is_begun and not image.is_empty():
                    why = "it was begun and never finished, and data was written to it"
                return why or self._why_needed(image)
        except FileNotFoundError:
            return ""
        except VhdError as error:
            return str(error.message)

    def _why_not_ours(self, image: Image, unique_id: str) -> str:
        if image.unique_id.hex() != unique_id:
            return "another image has its name"
        if image.parent is None:
            return _STRANGE_NAME
        return self._why_not_of_machine(image.path, is_layer=True)

    def _why_not_of_machine(self, path: str, *, is_layer: bool) -> str:
        """Return why a file is none that snapshots of this machine have made, "" if it may be one."""
        has_own_name = allowed_folders.is_layer_name if is_layer else allowed_folders.is_kept_name
        if not has_own_name(self.manifest, path):
            return _STRANGE_NAME
        return "" if allowed_folders.is_own(self.file, path) else _STRANGE_PLACE

    def _why_needed(self, image: Image) -> str:
        file, scope = self.file, SearchScope(self.file.folder)
        if find_journal(file.folder, image.path) is not None:
            return "a merge into it is not finished"
        others = [claim for claim in claims_on(scope, [image.path]) if claim.manifest_path != file.path]
        if others:
            return f"it is {others[0].text()}"
        known = children_of(image, SearchScope(file.folder, file.search(self.manifest)))
        return f"other images read through it: {', '.join(known)}" if known else ""

    # Removing

    def _is_gone(self, each: Made) -> bool:
        """Remove a file if it may be; return whether it need not be known any longer."""
        try:
            path = self.file.absolute(each.path)
            if not self.file.folder.exists(path):
                self._remove_half_made(path, each)
                return True
            if self.why_left(each):
                return self._is_image_of_its_own(path, each)
            self._remove_half_made(path, each)
            _remove(self.file.folder, path, each)
        except (VhdError, OSError):
            # It is in use, cannot be read, or the disk fails: `check` reports it until that is over.
            return False
        return True

    def _is_image_of_its_own(self, path: str, each: Made) -> bool:
        """Whether a file stays for good: it was never this machine's to remove, or is an orphan that `check` names."""
        if not each.unique_id or self._why_not_of_machine(path, is_layer=True):
            return True
        with open_image(path, follow_links=False, folder=self.file.folder) as image:
            is_other = image.unique_id.hex() != each.unique_id
            return is_other or (each in self.manifest.begun and not image.is_empty())

    def _remove_half_made(self, path: str, each: Made) -> None:
        """Remove what has a temporary name of a file that was being made; others may be making theirs beside it."""
        if self._why_not_of_machine(path, is_layer=bool(each.unique_id)):
            return
        folder, directory = self.file.folder, paths.dirname(path)
        for name in folder.names(directory):
            leftover = paths.join(directory, name)
            if name.startswith(f"{paths.basename(path)}.") and is_partial(leftover):
                folder.remove(leftover)
        # A file that the manifest forgets must not be there after a power cut.
        folder.sync(directory)


def _remove(folder: Folder, path: str, each: Made) -> None:
    if each.unique_id:
        with open_image(path, exclusive=True, follow_links=False, folder=folder) as image:
            if image.unique_id.hex() != each.unique_id:
                return
            try:
                folder.remove(path)
            except PermissionError:
                # Windows removes no file that is open, or marked.
                image.close()
                folder.protect(path, is_protected=False)
                folder.remove(path)
    else:
        folder.protect(path, is_protected=False)
        folder.remove(path)
    folder.sync(paths.dirname(path))
