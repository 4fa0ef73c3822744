"""What is wrong, odd or left over around a machine's disks: changed layers, missing files, images of no tree.

Nothing is written. Each remark says what it is about, and with which command it is mended.

**Source**: docs/reference/vhd.md 5.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from vhdkit.chain.catalog import read_catalog
from vhdkit.disk import unique_id
from vhdkit.errors import VhdError
from vhdkit.findings import Advice
from vhdkit.formats import STEP_SUFFIX, read_step
from vhdkit.journal.claims import is_named_for
from vhdkit.journal.manifest_pointer import signposts
from vhdkit.journal.merge_journal import SUFFIX as JOURNAL_SUFFIX
from vhdkit.journal.merge_journal import read_journal
from vhdkit.snapshot import transitions
from vhdkit.snapshot.allowed_folders import is_kept_name
from vhdkit.snapshot.cleanup import Cleanup
from vhdkit.snapshot.find_manifest import manifests_in
from vhdkit.snapshot.fingerprint import differences, file_mark_at, is_changed_file, mark_at, parent_id_at
from vhdkit.snapshot.new_files import touched_by_merges
from vhdkit.snapshot.orphan_check import remark_on_orphan
from vhdkit.snapshot.remark import PASSING, Remark, RemarkKind
from vhdkit.storage import paths
from vhdkit.storage.new_file import is_partial

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhdkit.findings import Hint
    from vhdkit.journal.manifest import Disk, LayerRecord, Manifest, Snapshot, StateFile
    from vhdkit.snapshot.manifest_file import ManifestFile
    from vhdkit.snapshot.pending_merges import Owed


def inspect(
    file: ManifestFile, manifest: Manifest, noted: Manifest, owed: Owed, search: Sequence[str] = ()
) -> tuple[Remark, ...]:
    """Return what is to be said of a machine's files; `search` are more folders in which orphans are looked for.

    `noted` is what is written, and `manifest` what that means now.
    """
    settle = Advice.SETTLE.hint(path=file.absolute(manifest.disks[0].active))
    check = _Check(file=file, manifest=manifest, noted=noted, owed=owed, settle=settle, others=_Others(file))
    return tuple(check.remarks(search))


def may_pass(remarks: Sequence[Remark]) -> bool:
    """Whether another look, a moment later, could find otherwise."""
    return any(remark.kind in PASSING for remark in remarks)


def accepted(file: ManifestFile, manifest: Manifest) -> Manifest:
    """Return the manifest with what its frozen layers are like now: somebody has looked, and takes them so.

    An image of another id is no layer that was changed; it is not taken for one, and stays a remark.
    """
    for index, disk in enumerate(manifest.disks):
        layers = []
        for layer in disk.layers:
            if layer.mark is None or not file.folder.exists(file.absolute(layer.path)):
                layers.append(layer)
                continue
            mark, found = mark_at(file.folder, file.absolute(layer.path))
            layers.append(replace(layer, mark=mark) if found == layer.unique_id else layer)
        manifest = manifest.with_disk(index, replace(disk, layers=tuple(layers)))
    snapshots = (
        replace(each, state=tuple(_accepted_file(file, kept) for kept in each.state)) for each in manifest.snapshots
    )
    return replace(manifest, snapshots=tuple(snapshots))


def _accepted_file(file: ManifestFile, kept: StateFile) -> StateFile:
    path = file.absolute(kept.path)
    if kept.mark is None or not file.folder.exists(path) or not is_changed_file(file.folder, path, kept.mark):
        return kept
    return replace(kept, mark=file_mark_at(file.folder, path))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Check:
    """One look at a machine's files: what its manifest means now, what is written in it, and what is pending.

    `settle` is the advice to settle that, and `others` knows the images of other machines.
    """

    file: ManifestFile
    manifest: Manifest
    noted: Manifest
    owed: Owed
    settle: Hint
    others: _Others

    def remarks(self, search: Sequence[str]) -> Iterator[Remark]:
        """Yield the findings; `search` are more folders in which orphans are looked for."""
        for index in range(len(self.manifest.disks)):
            yield from self._of_layers(index)
        yield from self._of_state()
        yield from self._of_operations()
        yield from self._of_last_steps()
        yield from self._of_others(search)
        yield from self._of_lost_state()
        yield from self._of_signposts()

    def _of_layers(self, index: int) -> Iterator[Remark]:
        disk = self.manifest.disks[index]
        busy = transitions.busy(self.manifest, index)
        touched = touched_by_merges(self.file, self.manifest, index)
        for layer in disk.layers:
            path = self.file.absolute(layer.path)
            whose = _whose(self.manifest, index, layer)
            if not self.file.folder.exists(path):
                yield self._of_missing(index, layer, whose)
                continue
            yield from self._of_layer(disk, layer, whose, is_busy=layer.path in busy, is_touched=layer.path in touched)

    def _of_missing(self, index: int, layer: LayerRecord, whose: str) -> Remark:
        """Tell of a layer that is not there; one that nothing reads through is lost with its snapshot alone."""
        path = self.file.absolute(layer.path)
        names = self.manifest.names_of[index].get(layer.path, [])
        disk = self.manifest.disks[index]
        if layer.path in disk.children:
            message = f"it is {whose}, and is not there: put it back; what reads through it is lost without it"
            return Remark(kind=RemarkKind.MISSING, path=path, message=message)
        if names:
            message = f"it is {whose}, and is not there: put it back, or delete the snapshot"
            hints = tuple(Advice.DELETE.hint(name=name, path=self.file.absolute(disk.active)) for name in names)
            return Remark(kind=RemarkKind.MISSING, path=path, message=message, hints=hints)
        message = f"it is {whose}, and is not there: put it back"
        if layer.path == disk.active and self.manifest.snapshots:
            above = self.manifest.by_id(self.manifest.now) or self.manifest.snapshots[-1]
            message += ", or let the machine go on from a snapshot; what was written since is lost then"
            return Remark(
                kind=RemarkKind.MISSING,
                path=path,
                message=message,
                hints=(Advice.APPLY.hint(name=above.name, path=self.file.path),),
            )
        return Remark(kind=RemarkKind.MISSING, path=path, message=message)

    def _of_layer(
        self, disk: Disk, layer: LayerRecord, whose: str, *, is_busy: bool, is_touched: bool
    ) -> Iterator[Remark]:
        path = self.file.absolute(layer.path)
        accept = Advice.ACCEPT_CHANGED.hint(path=path)
        try:
            now, found = mark_at(self.file.folder, path)
        except (VhdError, OSError) as error:
            message = f"it is {whose}, and cannot be read: {error}"
            yield Remark(kind=RemarkKind.CHANGED, path=path, message=message, hints=(Advice.CHECK.hint(path=path),))
            return
        other = self._of_another(disk, layer, found, whose, is_touched=is_touched)
        if other is not None:
            yield other
            return
        different = () if layer.mark is None or is_touched else differences(layer.mark, now)
        if different:
            message = f"it is {whose}, and was changed since it was frozen: {', '.join(different)}"
            yield Remark(kind=RemarkKind.CHANGED, path=path, message=message, hints=(accept,))
        if layer.path != disk.active and not is_busy and self.file.folder.may_write(path):
            message = f"it is {whose}, and may be written; whatever writes to it ruins all that reads through it"
            settle = Advice.SETTLE.hint(path=self.file.absolute(disk.active))
            yield Remark(kind=RemarkKind.UNPROTECTED, path=path, message=message, hints=(settle,))

    def _of_another(self, disk: Disk, layer: LayerRecord, found: str, whose: str, *, is_touched: bool) -> Remark | None:
        """Tell of an image of another id in a layer's place, or one with another parent."""
        path = self.file.absolute(layer.path)
        if found != layer.unique_id:
            ids = [unique_id.guid(bytes.fromhex(each)) for each in (found, layer.unique_id)]
            message = f"it is {whose}, and another image has taken its place (its id is {ids[0]}, was {ids[1]}):"
            message += " move that image elsewhere, and put the layer back"
            return Remark(kind=RemarkKind.CHANGED, path=path, message=message)
        below = disk.layer(layer.parent).unique_id if layer.parent is not None else ""
        if not is_touched and parent_id_at(self.file.folder, path) != below:
            message = f"it is {whose}, and was told of another parent than {layer.parent or 'none'}"
            adopt = Advice.ADOPT.hint(paths=(path,))
            return Remark(kind=RemarkKind.CHANGED, path=path, message=message, hints=(adopt,))
        return None

    def _of_state(self) -> Iterator[Remark]:
        for each in self.manifest.snapshots:
            for state in each.state:
                path = self.file.absolute(state.path)
                if not self.file.folder.exists(path):
                    message = f"it is {state.name} of snapshot {each.name}, and is not there; put it back"
                    yield Remark(kind=RemarkKind.MISSING, path=path, message=message)
                else:
                    yield from self._of_kept(each, state)

    def _of_kept(self, snapshot: Snapshot, state: StateFile) -> Iterator[Remark]:
        """Tell of a kept file that is no longer what was kept."""
        path = self.file.absolute(state.path)
        try:
            is_changed = state.mark is not None and is_changed_file(self.file.folder, path, state.mark)
            message = f"it is {state.name} of snapshot {snapshot.name}, and was changed since it was kept: put it back"
        except OSError as error:
            is_changed, message = True, f"it is {state.name} of snapshot {snapshot.name}, and cannot be read: {error}"
        if is_changed:
            accept = Advice.ACCEPT_CHANGED.hint(path=self.file.absolute(self.manifest.disks[0].active))
            yield Remark(kind=RemarkKind.CHANGED, path=path, message=message, hints=(accept,))

    def _of_operations(self) -> Iterator[Remark]:
        """Report what was cut off, and what is pending."""
        yield from self._of_leftovers()
        for folding in self.manifest.foldings:
            into = self.file.absolute(folding.fold.destination)
            message = f"the merge of {paths.basename(folding.fold.top)} into it is not finished"
            if not self.file.folder.exists(self.file.absolute(folding.fold.top)):
                message += ", and what it is to be merged from is not there: put that back"
            yield Remark(kind=RemarkKind.UNFINISHED, path=into, message=message, hints=(self.settle,))
        begun = {self.file.absolute(each.fold.destination) for each in self.manifest.foldings}
        for sources, into in self.owed.merges:
            if into not in begun:
                message = f"{', '.join(map(paths.basename, sources))} is to be merged into it"
                yield Remark(kind=RemarkKind.OWED, path=into, message=message, hints=(self.settle,))
        for path, why in self.owed.removals:
            message = f"nobody needs it any longer; it stays since {why}" if why else "nobody needs it any longer"
            yield Remark(kind=RemarkKind.OWED, path=path, message=message, hints=() if why else (self.settle,))

    def _of_leftovers(self) -> Iterator[Remark]:
        """Tell of what operations that were cut off have left, whole or half made."""
        left = {self.file.absolute(each.path): each for each in (*self.manifest.begun, *self.manifest.doomed)}
        made = {*left}
        for path in sorted(filter(self.file.folder.exists, made)):
            why = Cleanup(self.file, self.manifest).why_left(left[path])
            message = "an operation that was cut off has left it; nobody needs it"
            if why:
                message = f"an operation that was cut off has left it; it stays since {why}"
            yield Remark(kind=RemarkKind.LEFT_OVER, path=path, message=message, hints=() if why else (self.settle,))
        files = {self.file.path, *made, *self.file.images(self.manifest)}
        for directory in sorted({*map(paths.dirname, files)}):
            for name in sorted(self.file.folder.names(directory)):
                path = paths.join(directory, name)
                whole = path.rsplit(".", 2)[0]
                if not is_partial(path) or self.others.have(path):
                    continue
                is_ours = whole in made or whole == self.file.path
                message = "an operation that was cut off has left it half made; nobody needs it"
                message += "" if is_ours else ", unless that is going on: remove it"
                hints = (self.settle,) if is_ours else ()
                yield Remark(kind=RemarkKind.LEFT_OVER, path=path, message=message, hints=hints)

    def _of_last_steps(self) -> Iterator[Remark]:
        """Tell of merges and of changed headers whose last steps a cut has left out; the disks are whole."""
        left = set(self.manifest.foldings)
        for folding in self.noted.foldings:
            if folding not in left:
                for path in filter(self.file.folder.exists, map(self.file.absolute, folding.fold.sources)):
                    message = "it is merged, and was not removed yet"
                    yield Remark(kind=RemarkKind.LEFT_OVER, path=path, message=message, hints=(self.settle,))
        told = {self.file.absolute(folding.fold.destination) for folding in self.manifest.foldings}
        for path in sorted(self.file.images(self.noted) - told):
            if self.file.folder.exists(path + JOURNAL_SUFFIX):
                yield self._of_journal(path)
            elif self.file.folder.exists(path + STEP_SUFFIX):
                yield self._of_step(path)

    def _of_step(self, path: str) -> Remark:
        """Report a change of a header that was cut off; one that is not believed is not settled."""
        message = "what was changed in it is complete, but for its last step"
        with self.file.folder.open(path) as storage:
            step = read_step(self.file.folder, storage)
            if step is not None and step.refusal:
                return Remark(kind=RemarkKind.UNFINISHED, path=path, message=step.finding(path).message)
        return Remark(kind=RemarkKind.UNFINISHED, path=path, message=message, hints=(self.settle,))

    def _of_journal(self, path: str) -> Remark:
        """Report a merge that is not the machine's own; its journal says what ends it."""
        try:
            journal = read_journal(self.file.folder, path)
        except (VhdError, OSError) as error:
            message = f"there is a journal of a merge into it that cannot be read: {error}"
            return Remark(kind=RemarkKind.UNFINISHED, path=path, message=message)
        if journal is None:
            message = "a merge into it was about to begin, and changed nothing"
            return Remark(kind=RemarkKind.UNFINISHED, path=path, message=message, hints=(self.settle,))
        hints = () if journal.hint is None else (journal.hint,)
        return Remark(kind=RemarkKind.UNFINISHED, path=path, message=journal.status, hints=hints)

    def _of_others(self, search: Sequence[str]) -> Iterator[Remark]:
        """Tell of images beside the layers that are none: where they would fit, and what can be done with them."""
        known = {self.file.absolute(layer.path): layer for disk in self.manifest.disks for layer in disk.layers}
        told = {self.file.absolute(made.path) for made in (*self.manifest.begun, *self.manifest.doomed)}
        told |= {self.file.absolute(state.path) for each in self.manifest.snapshots for state in each.state}
        directories = [*dict.fromkeys([self.file.directory, *map(paths.dirname, known)]), *search]
        catalog = read_catalog(self.file.folder, directories)
        for path, image in catalog.images.items():
            if path in known or path in told or is_partial(path) or self.others.have(path):
                continue
            if image.parent_id is not None:
                yield remark_on_orphan(self.file, self.manifest, image, catalog)

    def _of_lost_state(self) -> Iterator[Remark]:
        """Report kept files whose snapshot is not known, as after a lost manifest; none is removed."""
        known = {each.path for snapshot in self.manifest.snapshots for each in snapshot.state}
        known |= {made.path for made in (*self.manifest.begun, *self.manifest.doomed)}
        known |= {layer.path for disk in self.manifest.disks for layer in disk.layers}
        for name in sorted(self.file.folder.names(self.file.directory)):
            path = paths.join(self.file.directory, name)
            if is_kept_name(self.manifest, path) and self.file.relative(path) not in known and not is_partial(path):
                message = "it was kept with a snapshot that is not known any longer; remove it if nobody wants it"
                yield Remark(kind=RemarkKind.ORPHAN, path=path, message=message)

    def _of_signposts(self) -> Iterator[Remark]:
        for directory in sorted({*map(paths.dirname, self.file.images(self.manifest))}):
            for post in signposts(self.file.folder, directory):
                if not self.file.folder.exists(post.manifest):
                    message = f"it leads to {post.manifest}, a list of snapshots that is not there; remove it"
                    yield Remark(kind=RemarkKind.LEFT_OVER, path=post.path, message=message)


def _whose(manifest: Manifest, index: int, layer: LayerRecord) -> str:
    """Return what a layer is for, in words."""
    names = manifest.names_of[index].get(layer.path)
    if names:
        return f"the layer of snapshot {', '.join(names)}"
    if manifest.disks[index].active == layer.path:
        return "what the machine writes to"
    return "a layer that others read through"


class _Others:
    """The images of other machines with manifests near; each is read once."""

    def __init__(self, file: ManifestFile) -> None:
        self._file = file
        self._known: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {}

    def have(self, path: str) -> bool:
        """Whether an image in a folder is a layer of another machine."""
        directory = paths.dirname(path)
        if directory not in self._known:
            self._known[directory] = self._in(directory)
        images, unread = self._known[directory]
        return path in images or any(is_named_for(manifest, path) for manifest in unread)

    def _in(self, directory: str) -> tuple[frozenset[str], tuple[str, ...]]:
        images: set[str] = set()
        unread = []
        for other in manifests_in(self._file.folder, directory):
            if other.path == self._file.path:
                continue
            try:
                images |= other.images(other.read())
            except (VhdError, OSError):
                unread.append(other.path)
        return frozenset(images), tuple(unread)
