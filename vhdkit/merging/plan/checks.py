"""Looking at a chain and its surroundings for a merge: everything that can be checked is checked here.

Nothing is written. What stands in the way is gathered as the plan's obstacles, all of it at once.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from vhdkit.chain.catalog import read_catalog
from vhdkit.chain.chain import Chain
from vhdkit.chain.children import children_of, ended_advice
from vhdkit.chain.relink import Relink, check_relink
from vhdkit.chain.siblings import Relatives, find_relatives
from vhdkit.disk import extents
from vhdkit.disk.image import DiskKind, Image
from vhdkit.errors import (
    CorruptImageError,
    JournalError,
    MergeError,
    NotEnoughSpaceError,
    ReadOnlyImageError,
    SiblingsError,
    VhdError,
)
from vhdkit.findings import Advice, Finding
from vhdkit.formats import open_image
from vhdkit.journal.merge_journal import read_journal
from vhdkit.merging.plan.ended_layers import ended_obstacles
from vhdkit.merging.plan.finishing import is_spent, removal_obstacles
from vhdkit.merging.plan.pieces import DestinationBlocks
from vhdkit.merging.plan.placement import USE_NEW_FILE, Layout, destination_of, lay_out, target_of, window_writes
from vhdkit.merging.plan.plan import LayerState, MergePlan, Resume, UndoPlan
from vhdkit.merging.plan.resume import check_undo, is_about, with_names
from vhdkit.merging.plan.undo_evidence import DOUBT, check_not_older, may_lack_something
from vhdkit.merging.plan.undo_image import as_undo_image, plan_undo
from vhdkit.storage import paths
from vhdkit.storage.new_file import is_partial
from vhdkit.vhd.constants import FOOTER_SIZE
from vhdkit.vhd.corruption import Corruption

if TYPE_CHECKING:
    from vhdkit.disk.image import Image
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.options import MergeRequest
    from vhdkit.storage.protocols import Folder
    from vhdkit.vhd.sparse_image import SparseImage

_PIECE = 4 << 20
_SIZE_MISMATCH = 0xC03A0017
_INVALID_STATE = 0xC03A001C

_SPARE_SIBLINGS = (
    Advice.NEW_FILE.hint("use {}, which changes nothing")
    .then(Advice.CONVERT_EACH.hint("or turn each of them into an image of its own first ({})"))
    .then(Advice.RELINK_SIBLINGS.hint("or keep the view of those that read through the destination with {}"))
)


class Survey:
    """One chain looked over for a merge of its layers above `depth` into the one there."""

    def __init__(
        self,
        chain: Chain,
        depth: int,
        folder: Folder,
        request: MergeRequest,
        journal: Journal | None,
    ) -> None:
        self.chain = chain
        self.depth = depth
        self.folder = folder
        self.search = request.search
        self.request = request
        self.target = target_of(chain.layers, depth)
        self.sources = chain.layers[:depth]
        self.images = chain.layers[: depth + 1]
        self.destination = destination_of(chain.layers, depth)
        self.obstacles: list[VhdError] = []
        self.spent = ""
        self.journal = self._usable(journal)
        self.undo_id = self._undo_id(journal)
        self.undo_image: SparseImage | None = None
        self.undo_holds_sectors = False

    def plan(self) -> MergePlan:
        """Check everything, and return the plan."""
        try:
            self._find_undo()
            self._check_files()
            if not self.request.accept_ended and self.journal is None:
                # What an earlier run has begun was accepted then.
                self.obstacles += ended_obstacles(self.images, self.folder)
            self._check_sizes()
            relatives = self._relatives()
            laid, resume = lay_out(self.chain, self.depth, self.target, self.journal, self.obstacles)
            undo = self._undo()
        finally:
            if self.undo_image is not None:
                self.undo_image.close()
        return self._plan(relatives, laid, resume, undo)

    def _plan(self, relatives: Relatives, laid: Layout, resume: Resume | None, undo: UndoPlan | None) -> MergePlan:
        size, size_after = self.destination.storage.size(), laid.file_end + FOOTER_SIZE
        if self.destination.kind is DiskKind.FIXED:
            size_after = size
        needed = max(0, size_after - size) + self._holes(laid)
        undo_needed = 0 if undo is None else undo.size - undo.size_before
        free = self._check_space(needed, undo_needed)
        sources = tuple(layer.path for layer in self.sources)
        return MergePlan(
            sources=sources,
            destination=self.destination.path,
            is_new_file=False,
            block_size=self.destination.block_size,
            payload_bytes=laid.payload,
            blocks_added=laid.added,
            blocks_moved=laid.moved,
            virtual_size=max(self.chain.size, self.destination.size),
            virtual_size_before=self.target.size,
            destination_size=size_after,
            destination_size_before=size,
            space_needed=needed + undo_needed,
            space_free=free,
            relatives=relatives,
            removals=() if self._keeps else sources,
            keep_sources=self.request.keep_sources,
            growth=laid.growth,
            place=laid.place,
            file_end=laid.file_end,
            undo=undo,
            relink_siblings=self.request.relink_siblings,
            sibling_relinks=self._sibling_relinks(relatives),
            verify=self.request.verify,
            journal=self.journal,
            resume=resume,
            spent=self.spent,
            read_back=laid.read_back,
            digest=laid.digest,
            layers=states(self.chain),
            search=self.search,
            findings=(*self.chain.findings, *relatives.findings, *self._findings(undo)),
            obstacles=tuple(self.obstacles),
        )

    def _findings(self, undo: UndoPlan | None) -> list[Finding]:
        if undo is None or not undo.doubt:
            return []
        message = f"the merge can go on, and cannot be rolled back: {undo.doubt}"
        return [Finding(corruption=Corruption.UNDO_DOUBTED, path=undo.path, message=message)]

    def _usable(self, journal: Journal | None) -> Journal | None:
        """Return the journal of an earlier run of this merge; any other unfinished merge is an obstacle."""
        for layer in self.chain.layers:
            if layer is not self.destination:
                self._refuse_journal(layer)
        if journal is None:
            return None
        if is_spent(journal, self.folder):
            self.spent = journal.checksum
            return None
        if journal.rolling_back or not is_about(journal, self.sources, self.destination):
            self.obstacles.append(_unfinished(journal, self.folder))
            return None
        return with_names(journal, self.sources)

    def _refuse_journal(self, layer: Image) -> None:
        try:
            other = read_journal(self.folder, layer.path)
        except JournalError as error:
            self.obstacles.append(error)
            return
        if other is not None:
            self.obstacles.append(_unfinished(other, self.folder))

    def _undo_id(self, journal: Journal | None) -> bytes:
        """Return the id of the undo image of an unfinished merge, whose view it keeps; else one for a new image.

        Where that merge is another one, or keeps its undo image under another name, there is an obstacle already.
        """
        begin = journal.begin if journal is not None and not self.spent else None
        return bytes.fromhex(begin.undo_id) if begin is not None and begin.undo_id else uuid.uuid4().bytes_le

    def _find_undo(self) -> None:
        """Take over the undo image of an earlier run, and open it if that has come so far."""
        journal = self.journal
        if journal is None:
            return
        path = self._undo_path(journal) if journal.begin.undo else None
        is_named = self.request.undo is not None
        if self.request.undo not in {None, path}:
            kept, hint = "keeps nothing for an undo", Advice.UNDO_IMAGE.hint("go on without {}")
            if path:
                kept = f"keeps what it overwrites in {path} (undo image of the unfinished merge)"
                hint = Advice.RESUME.hint("go on with {}")
            message = f"an earlier run of this merge, which was cut off, {kept}"
            self.obstacles.append(JournalError(message, path=self.destination.path, hint=hint))
            return
        self.request = msgspec.structs.replace(
            self.request,
            undo=path,
            keep_sources=self.request.keep_sources or journal.begin.keep_sources,
            relink_siblings=self.request.relink_siblings or journal.begin.relink_siblings,
            verify=self.request.verify or bool(journal.begin.view),
        )
        if path is None:
            return
        self.journal = with_names(journal, self.sources, path)
        if not self.folder.exists(path):
            if journal.reserved:
                message = "it keeps what an earlier run of this merge has overwritten, and is gone; put it back"
                text = "if that is not possible, the disk is whole all the same: {} makes a new file of it"
                hint = Advice.MERGE.hint(text, path=self.chain.path, to="NEWFILE")
                self.obstacles.append(JournalError(message, path=path, hint=hint))
            elif not is_named:
                # Whoever may lay a journal beside the destination must not choose what is made, and where.
                message = "an earlier run of this merge was cut off before it made this undo image"
                hint = Advice.MERGE.hint("{} goes on", path=self.chain.path, into=self.destination.path, undo=path)
                self.obstacles.append(JournalError(message, path=path, hint=hint))
            return
        try:
            image = as_undo_image(open_image(path, folder=self.folder))
            self.undo_image = image
            check_undo(self.journal, image, self.destination, self.folder, self.search)
            self.undo_holds_sectors = check_not_older(journal, image) > 0
        except JournalError as error:
            self.obstacles.append(error)

    def _undo_path(self, journal: Journal) -> str:
        """Return where the undo image of an earlier run is, which may have been renamed since."""
        begin = journal.begin
        path = journal.resolve(begin.undo)
        if self.folder.exists(path):
            return path
        asked = [paths.dirname(self.request.undo)] if self.request.undo is not None else []
        near = dict.fromkeys([paths.dirname(path), paths.dirname(journal.path), *asked])
        found = [
            image.path
            for image in read_catalog(self.folder, list(near), deep=False).images.values()
            if image.unique_id.hex() == begin.undo_id and not is_partial(image.path)
        ]
        return found[0] if len(found) == 1 else path

    def _doubt(self) -> str:
        """Return why the undo image may lack something that an earlier run has overwritten, "" if it cannot."""
        journal = self.journal
        if journal is None or journal.doubt or not journal.begin.undo:
            return ""
        with self.folder.open(journal.path) as storage:
            layers, found = self.chain.layers, window_writes(self.chain.layers, self.depth, self.target)
            is_doubtful = may_lack_something(journal, storage, self.undo_image, layers, self.depth, found)
        if is_doubtful and self.undo_image is not None:
            children = children_of(self.undo_image, self.folder, self.search)
            if children:
                message = f"{DOUBT}; {len(children)} image(s) read through it: {', '.join(children)}"
                hint = Advice.CONVERT_EACH.hint(
                    "put back both as they were last, or turn each image into one of its own first ({})"
                )
                self.obstacles.append(JournalError(message, path=self.undo_image.path, hint=hint))
        return DOUBT if is_doubtful else ""

    def _undo(self) -> UndoPlan | None:
        path = self.request.undo
        if path is None:
            return None
        if self.folder.exists(path) and self.undo_image is None:
            self.obstacles.append(MergeError("the file exists already; an undo image never replaces one", path=path))
        elif not self.folder.may_write(paths.dirname(path)):
            self.obstacles.append(ReadOnlyImageError("its folder may not be written", path=path))
        found = window_writes(self.chain.layers, self.depth, self.target)
        # A destination that has grown already showed less before.
        size = self.undo_image.size if self.undo_image is not None else self.target.size
        plan = plan_undo(path, self.undo_id, self.destination, size, found, self.undo_image)
        return replace(plan, doubt=self._doubt())

    def _sibling_relinks(self, relatives: Relatives) -> tuple[Relink, ...]:
        """Return how the destination's other children are to be relinked to the undo image, if that is wished."""
        if not self._may_relink_siblings or self.request.undo is None:
            return ()
        relinks = tuple(
            Relink(
                child=child,
                old_parent=self.destination.path,
                new_parent=self.request.undo,
                new_parent_id=self.undo_id,
            )
            for child in relatives.of_destination
        )
        for relink in relinks:
            self._check_relink(relink)
            if not paths.is_below(paths.dirname(self.request.undo), [paths.dirname(relink.child), *self.search]):
                message = "it would not find the undo image, which must lie in its folder or below"
                self.obstacles.append(MergeError(message, path=relink.child))
        return relinks

    def _check_relink(self, relink: Relink) -> None:
        try:
            check_relink(self.folder, relink)
        except VhdError as error:
            self.obstacles.append(error)

    def _check_space(self, needed: int, undo_needed: int) -> int:
        """Hold what the files will need against what is free; return the latter where the destination is."""
        directory = paths.dirname(self.destination.path)
        free = self.folder.free_space(directory)
        undo_directory = paths.dirname(self.request.undo or self.destination.path)
        rooms = [(directory, self.destination.path, needed + undo_needed)]
        if undo_directory != directory:
            rooms = [(directory, self.destination.path, needed), (undo_directory, self.request.undo or "", undo_needed)]
        for room, path, wanted in rooms:
            available = self.folder.free_space(room)
            if wanted > available:
                self.obstacles.append(NotEnoughSpaceError(path=path, needed=wanted, available=available))
        return free

    @property
    def _may_relink_siblings(self) -> bool:
        """Whether siblings are wished to be relinked, and none was made after an earlier run had begun to overwrite.

        An undo image that holds sectors says so even if the journal was put back as it was earlier.
        """
        has_saved = self.undo_holds_sectors or (self.journal is not None and self.journal.saved > 0)
        return self.request.relink_siblings and not has_saved

    @property
    def _keeps(self) -> bool:
        return self.request.keep_sources or self.request.undo is not None

    def _check_files(self) -> None:
        if not self.folder.may_write(self.destination.path):
            message = "it is to be merged into, and the file is read-only; allow writing to it first"
            self.obstacles.append(ReadOnlyImageError(message, path=self.destination.path))
        directory = paths.dirname(self.destination.path)
        if not self.folder.may_write(directory):
            message = f"the merge keeps its journal there, and {directory} may not be written"
            hint = Advice.NEW_FILE.hint("allow that, or use {}")
            self.obstacles.append(ReadOnlyImageError(message, path=self.destination.path, hint=hint))
        if self.destination.storage.link_count > 1:
            message = "the file has other names (hard links), whose content the merge would change as well"
            text = "make it a file of its own (copy it, and rename the copy over it), or use {}"
            self.obstacles.append(MergeError(message, path=self.destination.path, hint=Advice.NEW_FILE.hint(text)))
        for image in self.images:
            if image.is_saved_state:
                message = "it belongs to a saved machine state; start and shut down the machine, or delete the state"
                self.obstacles.append(MergeError(message, path=image.path, windows_code=_INVALID_STATE))
            try:
                image.check_sound()
            except CorruptImageError as error:
                self.obstacles.append(error)
            directory = paths.dirname(image.path)
            if image is not self.destination and not self._keeps and not self.folder.may_write(directory):
                hint = Advice.KEEP_SOURCES.hint("use {}")
                message = f"it could not be removed from {directory}"
                self.obstacles.append(ReadOnlyImageError(message, path=image.path, hint=hint))
            elif image is not self.destination and not self._keeps:
                self.obstacles += removal_obstacles([image.path], self.folder)

    def _add_size_mismatch(self, message: str) -> None:
        error = MergeError(message, path=self.chain.path, windows_code=_SIZE_MISMATCH, hint=USE_NEW_FILE)
        self.obstacles.append(error)

    def _check_sizes(self) -> None:
        size, target = self.chain.size, self.destination
        if size < target.size:
            message = f"its disk of {size} bytes is smaller than that of {target.path}, {target.size}"
            self._add_size_mismatch(message)
        if size > target.size and target.kind is DiskKind.FIXED:
            message = f"its disk of {size} bytes is larger than the fixed one of {target.path}, {target.size}"
            self._add_size_mismatch(message)

    def _relatives(self) -> Relatives:
        """Look for relatives; what they stand in the way of becomes an obstacle."""
        relatives = find_relatives(self.chain, self.depth, self.folder, self.search, self.undo_id)
        for relink in relatives.relinks:
            self._check_relink(relink)
        for path in relatives.unknown:
            message = "it cannot be read, so that it cannot be told whether the merge would ruin it; make it readable"
            self.obstacles.append(MergeError(f"{message}, or move it elsewhere", path=path))
        harmed = list(relatives.of_sources)
        if relatives.of_destination and not (self._may_relink_siblings or changes_nothing(self.chain, self.depth)):
            harmed += relatives.of_destination
        if harmed:
            changed = ", ".join(layer.path for layer in self.images[1:])
            message = (
                f"the merge would ruin {len(harmed)} other image(s) that read through {changed}: {', '.join(harmed)}"
                f"{ended_advice(harmed, self.folder)}"
            )
            hint = _SPARE_SIBLINGS
            self.obstacles.append(SiblingsError(message, path=self.chain.path, siblings=tuple(harmed), hint=hint))
        return relatives

    def _holes(self, laid: Layout) -> int:
        """Return the bytes of holes in a sparse file that the merge will fill."""
        storage = self.destination.storage
        if storage.allocated_size >= storage.size():
            return 0
        blocks = DestinationBlocks(self.destination, laid.added, laid.place, laid.moved)
        return sum(
            storage.hole_bytes(offset, length)
            for writes, wipes, _ in window_writes(self.chain.layers, self.depth, self.target)
            for offset, length in blocks.places_in_old_blocks(writes, wipes)
        )


def _unfinished(journal: Journal, folder: Folder) -> JournalError:
    """Return what stands in the way: another merge, of which nothing is advised that could lose data."""
    message, hint = f"finish that first: {journal.status}", journal.hint
    begin = journal.begin
    are_there = all(folder.exists(journal.resolve(state.path)) for state in begin.sources)
    if are_there and not begin.undo and not journal.merged:
        # Every source still hides what was copied of it: the topmost shows the whole disk, journal or not.
        never = f"if it is never to go on, remove {journal.path}"
        hint = None if hint is None else replace(hint, text=f"{hint.text}; {never}")
    return JournalError(message, path=journal.destination, hint=hint)


def changes_nothing(chain: Chain, depth: int) -> bool:
    """Whether the destination shows already what the sources hold, as after a merge that was cut off late.

    Then nobody who reads through the destination is harmed by doing it again. Sources that hold nothing do not count:
    there is no sign of an earlier merge then.
    """
    layers, destination = chain.layers, Chain(chain.layers[depth:])
    if chain.size != destination.size:
        return False
    sources, held = Chain(layers), 0
    for writes, wipes, _ in window_writes(layers, depth, target_of(layers, depth)):
        both = extents.split(extents.concatenate([writes, wipes]), _PIECE)
        held += writes.total
        for here in both:
            if sources.read(here.start, here.length) != destination.read(here.start, here.length):
                return False
    return held > 0


def states(chain: Chain) -> tuple[LayerState, ...]:
    """Return the chain's files as they are now, leaf first."""
    return tuple(map(LayerState.of, chain.layers))
