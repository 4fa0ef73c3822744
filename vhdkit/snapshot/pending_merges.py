"""The merges that deleting snapshots leaves to do, and those that have taken place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from vhdkit.errors import VhdError
from vhdkit.journal.merge_journal import Journal, find_journal
from vhdkit.snapshot import transitions
from vhdkit.snapshot.fingerprint import mark_at

if TYPE_CHECKING:
    from vhdkit.journal.manifest import Folding, Manifest
    from vhdkit.snapshot.manifest_file import ManifestFile


class PendingRemoval(NamedTuple):
    """A layer that nobody needs, and why it is there still; "" if nothing keeps it."""

    path: str
    why_kept: str


class PendingMerge(NamedTuple):
    """Layers to be merged, the topmost first, and what into."""

    sources: tuple[str, ...]
    destination: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """What deletions leave to do. Paths are absolute.

    `waiting` are layers that stay for their several children.
    """

    removals: tuple[PendingRemoval, ...]
    merges: tuple[PendingMerge, ...]
    waiting: tuple[str, ...]

    @property
    def is_nothing(self) -> bool:
        """Whether there is nothing that settling would do."""
        return not self.merges and all(removal.why_kept for removal in self.removals)


def effective(file: ManifestFile, manifest: Manifest) -> Manifest:
    """Return what a manifest means now: a merge whose topmost source is gone is complete."""
    for folding in complete_ones(file, manifest):
        manifest = transitions.folded(manifest, folding)
        disk = manifest.disks[folding.disk]
        # Those that were relinked have another header than was noted, which whoever changes something next notes.
        layers_now = tuple(
            replace(layer, mark=None) if layer.parent == folding.fold.destination else layer for layer in disk.layers
        )
        manifest = manifest.with_disk(folding.disk, replace(disk, layers=layers_now))
    return manifest


def complete_ones(file: ManifestFile, manifest: Manifest) -> list[Folding]:
    """Return the merges that are complete: asked before anything that is noted is changed."""
    return [folding for folding in manifest.foldings if has_taken_place(file, manifest, folding)]


def has_taken_place(file: ManifestFile, manifest: Manifest, folding: Folding) -> bool:
    """Whether a merge's destination has taken its topmost source's place, and that was not merely lost.

    Then its journal says that all is merged, or there is none any longer, and the destination was written to, unless
    there was nothing to be merged.
    """
    into = file.absolute(folding.fold.destination)
    if file.folder.exists(file.absolute(folding.fold.top)) or not file.folder.exists(into):
        return False
    try:
        journal = find_journal(file.folder, into)
        if journal is not None:
            return isinstance(journal, Journal) and journal.merged
        then = manifest.disks[folding.disk].layer(folding.fold.destination).mark
        return folding.is_empty or then is None or mark_at(file.folder, into)[0] != then
    except (VhdError, OSError):
        return False
