"""What a merge finds of an earlier one: whether its journal speaks of these files, and how far it can be believed.

A journal is believed as far as the files bear it out. The sources must be the ones it names, byte for byte in their
headers; if one was written since, or the destination no longer shows what was copied, the merge begins again.

Once a merge is complete only names are left to be changed, and some of its sources may be gone: what is left to do is
then taken from the journal alone, each file of which must still be what it was and lead to the destination.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.chain.chain import Chain
from vhdkit.chain.children import children_of, parent_of
from vhdkit.chain.locate import Where
from vhdkit.errors import JournalError, SiblingsError, VhdError
from vhdkit.format.header import DynamicHeader
from vhdkit.image import extent
from vhdkit.image.header_change import is_header_change
from vhdkit.image.image import Image, Layer, Placement, open_image
from vhdkit.image.journal import SUFFIX, Journal, command, read_journal
from vhdkit.image.journal_records import FileState, RelinkState
from vhdkit.merging.plan import LayerState, MergePlan, Resume
from vhdkit.merging.relatives import Relatives, identity_at, leads_to
from vhdkit.merging.relink import Relink, check_relink
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from vhdkit.errors import Finding
    from vhdkit.image.extent import Extents
    from vhdkit.merging.growth import Growth
    from vhdkit.storage.seam import Folder

_PIECE = 4 << 20


def file_state(layer: Layer, journal: Journal) -> FileState:
    """Return what a journal keeps of a file; a raw one has no id and no header."""
    return FileState(
        path=journal.relative(layer.path),
        unique_id=layer.unique_id.hex() if isinstance(layer, Image) else "",
        header=header_digest(layer),
        size=layer.storage.size(),
        mtime=layer.storage.mtime,
    )


def header_digest(image: Layer) -> str:
    """Return the digest of an image's footer and dynamic header."""
    if not isinstance(image, Image):
        return ""
    header = b"" if image.header is None else image.header.to_bytes()
    return sha256(image.footer.to_bytes() + header).hexdigest()


def is_about(journal: Journal, sources: Sequence[Layer], destination: Layer) -> bool:
    """Whether a journal speaks of a merge of these files: the same ids and headers, in the same order."""
    begin = journal.begin
    if begin is None or not isinstance(destination, Image) or len(begin.sources) != len(sources):
        return False
    now = [(layer.unique_id.hex(), header_digest(layer)) for layer in sources if isinstance(layer, Image)]
    then = [(state.unique_id, state.header) for state in begin.sources]
    return now == then and begin.destination.unique_id == destination.unique_id.hex()


def is_unwritten(journal: Journal, layers: Sequence[Layer], depth: int) -> bool:
    """Whether no source, and nothing below the destination, was written since the journal's merge began."""
    begin = journal.begin
    if begin is None:
        return False
    return _are_unwritten((*layers[:depth], *layers[depth + 1 :]), (*begin.sources, *begin.below))


def _are_unwritten(layers: Sequence[Layer], states: Sequence[FileState]) -> bool:
    return len(layers) == len(states) and all(
        layer.storage.size() == state.size and same_time(layer.storage.mtime, state.mtime)
        for layer, state in zip(layers, states, strict=True)
    )


def is_as_left(left: tuple[int, float], destination: Layer) -> bool:
    """Whether the destination has the size and time of change that a journal says it was left with."""
    size, mtime = left
    return destination.storage.size() == size and same_time(destination.storage.mtime, mtime)


def plan_digest(
    sources: Sequence[Layer],
    destination: Image,
    place: Placement,
    growth: Growth | None,
    added: NDArray[np.uint32],
    sizes: tuple[int, int, int],
) -> str:
    """Return the digest of everything that decides which bytes go where."""
    facts = [
        [header_digest(layer) for layer in sources if isinstance(layer, Image)],
        [destination.unique_id.hex(), destination.block_size, *place, *sizes],
        growth.to_record() if growth is not None else None,
    ]
    total = sha256(json.dumps(facts, sort_keys=True).encode())
    total.update(added.astype(">u4").tobytes())
    return total.hexdigest()


def shows_what_was_copied(
    chain: Chain, depth: int, journal: Journal, moves: Iterable[tuple[Extents, Extents, int]]
) -> bool:
    """Whether the destination shows the sources' sectors below the journal's mark.

    A destination that was put back from a backup does not. Where it is as the run that stopped has left it, that is
    known; after a cut all of it is read, which takes less than writing it again.
    """
    if journal.destination_stopped is not None and is_as_left(journal.destination_stopped, chain.layers[depth]):
        return True
    below, last = Chain(chain.layers[depth:]), -1
    for writes, _, _ in moves:
        if not len(writes):
            continue
        if int(writes.start[0]) >= journal.mark:
            break
        copied = extent.split(extent.clipped(writes, 0, journal.mark), _PIECE)
        for piece in extent.distinct(copied.start // _PIECE).tolist():
            # A window's edge may lie within a piece, which is then met twice.
            at, stop = max(last, piece * _PIECE), min((piece + 1) * _PIECE, journal.mark)
            last = max(last, stop)
            if at < stop and chain.read(at, stop - at) != below.read(at, stop - at):
                return False
    return True


@contextmanager
def noting_unreadable_journals(folder: Folder, path: str, search: Sequence[str]) -> Iterator[None]:
    """Add to the error of a file that is not there which journals could not be read that may be about it."""
    try:
        yield
    except FileNotFoundError as error:
        for directory in dict.fromkeys([paths.dirname(folder.real(path)), *map(folder.real, search)]):
            for entry in folder.walk(directory, one_device=True):
                if entry.path.endswith(SUFFIX):
                    try:
                        read_journal(folder, entry.path.removesuffix(SUFFIX))
                    except JournalError as unreadable:
                        error.add_note(f"A journal was passed over: {unreadable}")
                    except OSError:
                        continue
        raise


def find_complete(folder: Folder, path: str, search: Sequence[str]) -> Journal | None:
    """Return the journal of a complete merge whose topmost source, or dropped undo image, was at `path`."""
    path = folder.real(path)
    for directory in dict.fromkeys([paths.dirname(path), *map(folder.real, search)]):
        for entry in folder.walk(directory, one_device=True):
            if not entry.path.endswith(SUFFIX):
                continue
            try:
                journal = read_journal(folder, entry.path.removesuffix(SUFFIX))
            except (JournalError, OSError):
                continue
            if journal is None or journal.begin is None:
                continue
            begin = journal.begin
            if journal.merged and journal.resolve(begin.sources[0].path) == path:
                return journal
            if begin.undo and journal.resolve(begin.undo) == path:
                return journal
    return None


def finishing_plan(
    journal: Journal,
    folder: Folder,
    search: tuple[str, ...],
    findings: tuple[Finding, ...] = (),
    *,
    keep_sources: bool = False,
) -> MergePlan:
    """Return the plan to finish a merge that is complete: relink what is not relinked, remove what is still there.

    With `keep_sources` nothing is removed, whatever the merge was begun with.

    Raises:
        JournalError: the journal names files that are not of this chain, or that are not what they were.

    """
    begin = journal.begin
    if begin is None or journal.relinks is None:
        raise JournalError("it says of no merge that it is complete", path=journal.path)
    if journal.rolling_back:
        raise JournalError(f"finish that first: {journal.say()}", path=journal.destination)
    states = []
    with open_image(journal.destination, folder=folder) as destination:
        _check_complete(journal, destination, folder, search)
        states.append(LayerState.of(destination))
        identity, disk_type = destination.storage.identity, destination.disk_type
        block_size, size, file_size = destination.block_size, destination.size, destination.storage.size()
    for source in reversed(begin.sources):
        state = remaining(journal, source, identity, folder, search)
        if state is not None:
            states.insert(0, state)
    left = tuple(state.path for state in states[:-1])
    kept = keep_sources or begin.keep_sources or (bool(begin.undo) and not journal.dropping)
    relinks, siblings = ((), ()) if kept else _born_since(journal, left, destination.unique_id, folder, search)
    obstacles: tuple[VhdError, ...] = ()
    if siblings:
        message = (
            f"image(s) were made since of what is to go: {', '.join(siblings)}; turn each into one of its own first"
        )
        obstacles = (SiblingsError(f"{message} (vhdkit convert FILE NEWFILE)", path=left[0], siblings=siblings),)
    return MergePlan(
        sources=tuple(journal.resolve(source.path) for source in begin.sources),
        destination=journal.destination,
        is_new_file=False,
        destination_type=disk_type,
        block_size=block_size,
        payload_bytes=0,
        blocks_added=np.empty(0, np.uint32),
        virtual_size=size,
        virtual_size_before=size,
        destination_size=file_size,
        destination_size_before=file_size,
        space_needed=0,
        space_free=folder.free_space(paths.dirname(journal.destination)),
        relatives=Relatives(relinks=relinks),
        removals=() if kept else left,
        keep_sources=keep_sources or begin.keep_sources,
        journal=journal,
        resume=Resume.FINISHES,
        layers=tuple(states),
        search=search,
        findings=findings,
        obstacles=obstacles,
    )


def _check_complete(journal: Journal, destination: Image, folder: Folder, search: Sequence[str]) -> None:
    """Hold the destination, its undo image and the relinked children against the journal of a complete merge."""
    begin = journal.begin
    if begin is None or destination.unique_id.hex() != begin.destination.unique_id:
        raise JournalError("the file beside it is not the destination that it speaks of", path=journal.path)
    # The topmost source goes when everything else is done: from then on the destination alone is the disk, and whoever
    # it belongs to writes to it.
    is_its_disk = not folder.exists(journal.resolve(begin.sources[0].path))
    is_unwritten = journal.destination_after is not None and is_as_left(journal.destination_after, destination)
    if not is_unwritten and not is_its_disk:
        message = "it was written after it was merged into. If its disk is what it should be, remove what is left"
        raise JournalError(f"{message} of the sources, and {journal.path}", path=destination.path)
    check_relinks(journal, destination, folder, search)
    undo = journal.resolve(begin.undo) if begin.undo else ""
    if undo and journal.dropping and folder.exists(undo):
        with open_image(undo, folder=folder) as image:
            check_undo(journal, image, destination, folder, search)


def _born_since(
    journal: Journal, left: Sequence[str], destination_id: bytes, folder: Folder, search: Sequence[str]
) -> tuple[tuple[Relink, ...], tuple[str, ...]]:
    """Return how children that the topmost source got since are relinked, and those of the others, which cannot be."""
    top = journal.resolve(journal.begin.sources[0].path) if journal.begin is not None else ""
    known = {*left, *(journal.resolve(relink.path) for relink in journal.relinks or ())}
    relinks: list[Relink] = []
    siblings: list[str] = []
    for path in left:
        with open_image(path, folder=folder) as image:
            born = [child for child in children_of(image, folder, search) if child not in known]
        if path != top:
            siblings += born
            continue
        for child in born:
            relink = Relink(child=child, old_parent=top, new_parent=journal.destination, new_parent_id=destination_id)
            check_relink(folder, relink)
            relinks.append(relink)
    return tuple(relinks), tuple(siblings)


def still_holds(journal: Journal, layers: Sequence[Layer], depth: int) -> bool:
    """Whether neither the sources nor the destination were written since a merge was complete."""
    begin = journal.begin
    if begin is None or not journal.merged:
        return False
    left = journal.destination_after
    return left is not None and _are_unwritten(layers[:depth], begin.sources) and is_as_left(left, layers[depth])


def remaining(
    journal: Journal,
    source: FileState,
    destination: tuple[int, int],
    folder: Folder,
    search: Sequence[str],
    *,
    unwritten: bool = True,
) -> LayerState | None:
    """Return a source that is still there, is of this chain, and was not written since; None if it is gone.

    Raises:
        JournalError: it is another file, or was written and should not have been.

    """
    path = journal.resolve(source.path)
    if not folder.exists(path):
        return None
    where = Where(folder=folder, search=(*search, paths.dirname(journal.path)))
    try:
        is_ours = leads_to(path, destination, where)
        with open_image(path, folder=folder) as image:
            state, now = LayerState.of(image), file_state(image, journal)
    except (VhdError, OSError) as error:
        raise JournalError(f"it names {path}, which cannot be opened: {error}", path=journal.path) from error
    if not is_ours or now.unique_id != source.unique_id:
        raise JournalError(f"it names {path}, which is not of this chain", path=journal.path)
    if unwritten and not _is_same(now, source):
        how = command("merge", path, "--into", journal.destination)
        message = f"{path} was written after it was merged; merge what was written too: {how}"
        raise JournalError(message, path=journal.path)
    return state


def _is_same(now: FileState, then: FileState) -> bool:
    return (now.header, now.size) == (then.header, then.size) and same_time(now.mtime, then.mtime)


def same_time(now: float, then: float) -> bool:
    """Whether a file has the time of change that it had; archives and some file systems keep whole seconds only."""
    return now == then or (now.is_integer() and now == then // 1)


def check_undo(journal: Journal, undo: Image, destination: Image, folder: Folder, search: Sequence[str]) -> None:
    """Refuse an undo image that is not the one that the journal speaks of, or not of this destination.

    Raises:
        JournalError: it is not.

    """
    begin = journal.begin
    where = Where(folder=folder, search=(*search, paths.dirname(destination.path)))
    wanted = destination.storage.identity
    if begin is None or undo.unique_id.hex() != begin.undo_id or parent_of(undo.path, where) != wanted:
        raise JournalError(f"{undo.path} is not the undo image that it speaks of", path=journal.path)


def check_relinks(journal: Journal, destination: Image, folder: Folder, search: Sequence[str]) -> None:
    """Refuse relinks of files that are not children in this chain, or that would change more than the parent.

    Raises:
        JournalError: there are some.

    """
    begin = journal.begin
    family = [journal.destination, *(journal.resolve(source.path) for source in (begin.sources[:1] if begin else ()))]
    where = Where(folder=folder, search=(*search, *dict.fromkeys(map(paths.dirname, family))))
    identities = {identity_at(path, folder) for path in family} - {None}
    for relink in (*journal.former_relinks, *(journal.relinks or ())):
        path = journal.resolve(relink.path)
        if not folder.exists(path):
            continue
        if parent_of(path, where) not in identities:
            message = f"it names {path}, which reads through another file, or through none that is found"
            raise JournalError(message, path=journal.path)
        with open_image(path, folder=folder) as child:
            if not _is_relinking(relink, child, destination):
                message = f"what it says of {path} is no relinking to this destination, or more than that"
                raise JournalError(message, path=journal.path)


def _is_relinking(relink: RelinkState, child: Image, destination: Image) -> bool:
    if child.header is None:
        return False
    try:
        before, after = (DynamicHeader.from_bytes(raw) for raw in (relink.patches[-1].before, relink.patches[-1].after))
    except VhdError:
        return False
    shapes = [(h.table_offset, h.max_table_entries, h.block_size) for h in (before, after, child.header)]
    return (
        after.parent_unique_id == destination.unique_id
        and shapes[0] == shapes[1] == shapes[2]
        and is_header_change(child.storage, relink.patches)
    )


def linked_rightly(destination: Image, added: NDArray[np.uint32], place: Placement, rank: int, mark: int) -> bool:
    """Whether the added blocks below `mark` are in the table, each where it was to be."""
    if destination.is_fixed or not len(added):
        return True
    below = added[added.astype(np.int64) * destination.block_size + destination.block_size <= mark].astype(np.int64)
    for first in range(0, len(below), 1 << 14):
        blocks = below[first : first + (1 << 14)]
        entries = destination.table.entries(int(blocks[0]), int(blocks[-1]) + 1)[blocks - int(blocks[0])]
        wanted = place.offsets(rank + first + np.arange(len(blocks)))
        if not np.array_equal(entries.astype(np.int64) * 512, wanted):
            return False
    return True
