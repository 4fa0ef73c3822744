"""The files of a merge, opened, locked and held against the plan; and their names, in the end.

Names are only trusted while the files that they led to are held: what was replaced meanwhile is left alone.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vhdkit.chain.chain import Chain
from vhdkit.chain.merged_layers import MergedLayers
from vhdkit.chain.relink import check_relink
from vhdkit.chain.siblings import Relatives, find_relatives, identity_at
from vhdkit.disk.image import DiskKind
from vhdkit.disk.raw_image import RawImage
from vhdkit.errors import MergeError
from vhdkit.formats import finish_steps, forget_step, open_changeable, open_image
from vhdkit.journal.ended_view import remove_marks
from vhdkit.merging.plan.finish import finishing_plan
from vhdkit.merging.plan.placement import as_destination, target_of, window_writes
from vhdkit.merging.plan.plan import Resume, states_of
from vhdkit.storage import paths
from vhdkit.storage.handle import ClosedAtEnd, closing_all_on_error, closing_on_error
from vhdkit.storage.search_scope import SearchScope
from vhdkit.vhd.open_image import Vhd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.disk.extents import Extents
    from vhdkit.disk.image import Image
    from vhdkit.merging.plan.plan import LayerState, MergePlan
    from vhdkit.storage.protocols import Folder
    from vhdkit.vhd.open_image import Vhd


def open_planned(plan: MergePlan, folder: Folder, writable: str = "") -> Chain:
    """Open the files of the plan, whose links it has verified, lock them, and hold them against what was planned for.

    What is merged away or into is locked for nobody else to use, what lies below for nobody else to write.

    Raises:
        MergeError: a file is not what it was.
        ImageInUseError: somebody else holds one.

    """
    layers: list[Image] = []
    changing = {*plan.sources, plan.destination} if writable else set()
    with closing_all_on_error(layers):
        for state in plan.layers:
            layer = _open_locked(state, folder, writable=state.path == writable, exclusive=state.path in changing)
            layers.append(layer)
        chain = Chain(layers)
        if states_of(chain.layers) != plan.layers:
            raise MergeError("the chain has changed since the merge was planned; plan it again", path=chain.path)
        return chain


def _open_locked(state: LayerState, folder: Folder, *, writable: bool, exclusive: bool) -> Image:
    if state.unique_id:
        return open_image(state.path, writable=writable, exclusive=exclusive, finish_step=False, folder=folder)
    storage = folder.open(state.path)
    with closing_on_error(storage):
        storage.lock(exclusive=exclusive)
        return RawImage(storage)


class MergeFiles(ClosedAtEnd):
    """The open files of a merge: its chain, the destination writable among it, and the children to be relinked.

    `dropped` is the undo image that is to go, None if there is none: it is held as well.
    """

    def __init__(self, plan: MergePlan, folder: Folder) -> None:
        self.plan = plan
        self.folder = folder
        self.dropped: Image | None = None
        self._children: dict[str, Vhd] = {}
        self.made_undo = False
        self.chain = open_planned(plan, folder, plan.destination)
        found = [layer for layer in self.chain.layers if layer.path == plan.destination]
        with closing_on_error(self):
            self.destination = as_destination(found[0])
            for path in _children(plan, folder):
                child = open_changeable(path, writable=True, exclusive=True, finish_step=False, folder=folder)
                self._children[path] = child
                # There may be thousands.
                child.drop_tables()
            if dropped := _dropped_undo(plan, folder):
                self.dropped = open_image(dropped, exclusive=True, folder=folder)
            _check_plan(self)
            if plan.resume is not Resume.FINISHES:
                self.finish_steps()

    @property
    def layers(self) -> tuple[Image, ...]:
        """The layers of the chain, leaf first."""
        return self.chain.layers

    @property
    def merged(self) -> MergedLayers:
        """The layers as those that are merged, the one that they are merged into, and the rest."""
        return MergedLayers(self.chain.layers, len(self.plan.sources))

    def window_writes(self, start: int = 0) -> Iterator[tuple[Extents, Extents, int]]:
        """Return what the merge writes from `start` of the disk on; see `placement.window_writes`."""
        return window_writes(self.merged, target_of(self.merged, self.plan.virtual_size_before), start)

    @property
    def scope(self) -> SearchScope:
        """Where relatives are looked for."""
        return SearchScope(self.folder, self.plan.search)

    def finish_steps(self) -> None:
        """Finish what an earlier run has left of changes of headers; nothing else was written yet.

        Of a merge that is complete, the caller has held the destination against the sources before.
        """
        for image in (self.destination, *self._children.values()):
            image.finish_step(self.folder)
        if self.plan.resume is not None:
            directories = [paths.dirname(layer.path) for layer in self.plan.layers]
            finish_steps(self.folder, [*self.plan.search, *directories])

    def child(self, path: str) -> Vhd:
        """Return an open child of the destination or of the topmost source."""
        return self._children[path]

    def has_child(self, path: str) -> bool:
        """Whether there is one of that name."""
        return path in self._children

    def close(self) -> None:
        """Give all of them back, and their locks."""
        self.chain.close()
        if self.dropped is not None:
            self.dropped.close()
        for child in self._children.values():
            child.close()


def _dropped_undo(plan: MergePlan, folder: Folder) -> str:
    """Return the undo image that goes with a merge's sources, "" if none does."""
    journal = plan.journal
    if journal is None or not journal.dropping or journal.keep_undo_file:
        return ""
    if plan.resume is not Resume.FINISHES:
        return ""  # the merge goes on after all, and so does its undo image
    path = journal.resolve(journal.begin.undo)
    return path if folder.exists(path) else ""


def _children(plan: MergePlan, folder: Folder) -> list[str]:
    journal = plan.journal
    if plan.resume is Resume.FINISHES and journal is not None:
        known = [journal.resolve(relink.path) for relink in journal.relinks or ()]
        return [*filter(folder.exists, known), *(relink.child for relink in plan.relinks)]
    return [relink.child for relink in (*plan.relinks, *plan.sibling_relinks)]


def _check_plan(files: MergeFiles) -> None:
    plan, path = files.plan, files.chain.path
    if plan.resume is Resume.FINISHES and plan.journal is not None:
        keep_sources, only_shown = plan.keep_sources, plan.only_shown
        now = finishing_plan(plan.journal, files.scope, keep_sources=keep_sources, only_shown=only_shown)
        if (now.relatives, now.removals, now.obstacles) != (plan.relatives, plan.removals, ()):
            raise MergeError("its files or their children changed since it was planned; plan it again", path=path)
        return
    undo_id = plan.undo.unique_id if plan.undo is not None else b""
    if plan.relatives.differ(find_relatives(files.merged, files.scope, undo_id), files.folder):
        raise MergeError("other images of its family came or went since the merge was planned", path=path)
    for relink in (*plan.relinks, *plan.sibling_relinks):
        check_relink(files.folder, relink)


def check_before_finishing(files: MergeFiles) -> None:
    """Hold the family against the plan once more: what follows goes by names, and takes files away.

    Raises:
        MergeError: something came, went or was written that should not have been.

    """
    plan, folder = files.plan, files.folder
    kept = "the sectors were merged, and no source was removed or relinked; look at the files and merge again"
    for state in plan.layers[: len(plan.sources)]:
        if not _is_unchanged(state, folder):
            raise MergeError(f"it was changed or replaced while it was merged: {kept}", path=state.path)
    if identity_at(plan.destination, folder) != files.destination.storage.identity:
        raise MergeError(f"it was replaced while it was merged into: {kept}", path=plan.destination)
    undo_id = plan.undo.unique_id if plan.undo is not None else b""
    expected = plan.relatives
    if plan.sibling_relinks:
        expected = Relatives(of_sources=expected.of_sources, relinks=expected.relinks, unknown=expected.unknown)
    if expected.differ(find_relatives(files.merged, files.scope, undo_id), folder):
        raise MergeError(f"other images of its family came or went during the merge: {kept}", path=files.chain.path)


def remove_sources(files: MergeFiles) -> tuple[str, ...]:
    """Remove the sources that the plan says, leaf first, then a dropped undo image; each is held until it is gone.

    The layers between the topmost and the destination no longer show what they did; the journal, which goes last, says
    so to whoever opens one that a power cut has left.

    Raises:
        MergeError: another file has the name of one; it is left alone.

    """
    plan, folder = files.plan, files.folder
    held = {layer.path: layer for layer in files.layers}
    for path in plan.removals:
        _remove_held(held[path], plan, folder)
    if files.dropped is not None:
        _remove_held(files.dropped, plan, folder)
    return plan.removals


def _remove_held(layer: Image, plan: MergePlan, folder: Folder) -> None:
    path = layer.path
    if identity_at(path, folder) != layer.storage.identity:
        message = f"another file has its name now, which is left alone; the merge is complete in {plan.destination}"
        raise MergeError(message, path=path)
    if layer.kind is not DiskKind.RAW:
        # Until the layer is gone as well the journal says what its mark said.
        remove_marks(folder, layer.storage, layer.unique_id)
    try:
        folder.remove(path)
    except PermissionError:
        # Windows removes no file that is open.
        layer.close()
        folder.remove(path)
    # The system frees its space while the directory is synced.
    layer.begin_close()
    forget_step(folder, path)
    folder.sync(paths.dirname(path))


def _is_unchanged(state: LayerState, folder: Folder) -> bool:
    try:
        storage = folder.open(state.path)
    except OSError as error:
        # Of these it says nothing.
        if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
            raise
        return False
    with storage:
        now = (storage.identity, storage.size(), storage.mtime)
    return now == (state.identity, state.file_size, state.mtime)
