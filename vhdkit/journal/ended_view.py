"""Layers whose view has ended: a merge went past them, into a layer below, and they were kept.

A layer between the topmost source and the destination of a merge shows a mixture afterwards: its own sectors over those
of the topmost source. Until the merge is finished its journal says so. A layer that is kept has a mark beside it then,
a small file of one JSON object: the layer's id, the digest of its footer and header, the ids of the topmost source and
of the destination, and the time. The mark is found by the id, so that a layer may be renamed in its folder.

A mark is untrusted. It says nothing of a layer with another id, or with another header, as it has when it was given
another parent. A forger gains a refusal that names the mark.

**Order** of writing: 1 the whole mark in a file of another name, synced · 2 it gets its name, the folder synced. A cut
leaves the journal, which says the same; the next run replaces the file with the other name.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from vhdkit.corruption import Corruption
from vhdkit.disk.unique_id import guid
from vhdkit.errors import JournalError, VhdError
from vhdkit.findings import Finding, Level
from vhdkit.journal.field_types import ClockTime, Digest, ImageId
from vhdkit.journal.merge_journal import SUFFIX as JOURNAL_SUFFIX
from vhdkit.journal.merge_journal import read_journal
from vhdkit.journal.records import Record, decode_object, is_believable
from vhdkit.storage import paths
from vhdkit.storage.protocols import read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from vhdkit.disk.image import Image, ImageSummary
    from vhdkit.findings import Hint
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.storage.protocols import Folder, Storage

SUFFIX = ".vhdkit-ended"
_MOST_BYTES = 4096
# Marks of other names in a folder that are looked at for the id of a layer that was renamed.
_MOST_MARKS = 1000


class _Mark(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: Literal[1]
    unique_id: ImageId
    header: Digest
    leaf_id: ImageId
    destination_id: ImageId
    ended: ClockTime


_DECODER = msgspec.json.Decoder(_Mark)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedView:
    """A layer whose view has ended, the file that says so, and why; `leaf_id` is the id of the topmost source."""

    path: str
    record: str
    leaf_id: bytes
    why: str
    hint: Hint | None = None

    def finding(self, *, is_hidden: bool = False) -> Finding:
        """Return what a reader of the layer is warned of; `is_hidden` says that it reads through the topmost source."""
        level = Level.INFO if is_hidden else Level.WARNING
        return Finding(corruption=Corruption.VIEW_ENDED, path=self.path, message=self.why, level=level, hint=self.hint)

    def refusal(self, what: str, hint: Hint | None = None) -> JournalError:
        """Return the error that refuses to use the layer; `hint` says how it is used all the same."""
        both = hint.then(self.hint) if hint is not None and self.hint is not None else hint or self.hint
        return JournalError(f"{what}, for {self.why}", path=self.path, hint=both)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Merge:
    """A merge that has begun to write: its journal, the id of its topmost source, those of the sources below that."""

    journal: Journal
    leaf_id: bytes
    between: frozenset[str]


def marked_view(
    folder: Folder, storage: Storage, image: ImageSummary, names: Iterable[str] | None = None
) -> EndedView | None:
    """Return what the mark of an open image says, None if it has none; `names` are those in its folder, if known."""
    for path, mark in _marks(folder, storage, image.unique_id.hex(), names):
        # Worked out only here: it takes as long as opening the image, and marks are rare.
        if mark.header == image.digest:
            below = guid(bytes.fromhex(mark.destination_id))
            why = (
                f"its view has ended: {guid(bytes.fromhex(mark.leaf_id))} above it was merged into {below} below it."
                f" Remove it if nothing in it is needed; {path} says so, and may go if both were put back as they were"
                " before that merge"
            )
            return EndedView(path=storage.path, record=path, leaf_id=bytes.fromhex(mark.leaf_id), why=why)
    return None


def _merges_into(folder: Folder, destinations: Iterable[str]) -> list[_Merge]:
    """Return what the journals beside some files say of merges that have begun to write."""
    merges = []
    for destination in destinations:
        try:
            journal = read_journal(folder, destination)
        except (VhdError, OSError):
            continue
        if journal is not None and (journal.reserved or journal.merged):
            top, *between = journal.begin.sources
            ids = frozenset(source.unique_id for source in between)
            merges.append(_Merge(journal=journal, leaf_id=bytes.fromhex(top.unique_id), between=ids))
    return merges


def _view_ended_by(merges: Iterable[_Merge], storage: Storage, unique_id: bytes) -> EndedView | None:
    """Return which of some merges has ended the view of an open image, None if none has."""
    wanted = unique_id.hex()
    for merge in merges:
        if merge.journal.path != storage.path + JOURNAL_SUFFIX and wanted in merge.between:
            journal = merge.journal
            why = f"its view has ended: {journal.status}"
            return EndedView(path=storage.path, record=journal.path, leaf_id=merge.leaf_id, why=why, hint=journal.hint)
    return None


def ended_view(folder: Folder, storage: Storage, image: ImageSummary) -> EndedView | None:
    """Return what says that the view of an open image has ended: a mark, or a journal in its folder."""
    directory = paths.dirname(storage.path)
    names = folder.names(directory)
    view = marked_view(folder, storage, image, names)
    if view is None:
        with_journal = [name.removesuffix(JOURNAL_SUFFIX) for name in names if name.endswith(JOURNAL_SUFFIX)]
        merges = _merges_into(folder, [paths.join(directory, name) for name in with_journal])
        view = _view_ended_by(merges, storage, image.unique_id)
    return view


def ended_views(folder: Folder, images: Sequence[Image]) -> Iterator[Finding]:
    """Yield a finding for each layer of a chain, leaf first, whose view has ended.

    Of a layer that a merge under way has come past, what reads through its topmost source knows from the journal.
    """
    directories = dict.fromkeys(paths.dirname(image.path) for image in images)
    names: dict[str, tuple[str, ...]] = {}
    for directory in directories:
        with suppress(OSError):
            names[directory] = folder.names(directory)
    merges = _merges_into(folder, [image.path for image in images if _has_journal(folder, image.path, names)])
    above: set[bytes] = set()
    for image in images:
        listed = names.get(paths.dirname(image.path), ())
        view = marked_view(folder, image.storage, image, listed)
        if view is not None:
            yield view.finding(is_hidden=view.leaf_id in above)
        elif (view := _view_ended_by(merges, image.storage, image.unique_id)) is not None and view.leaf_id not in above:
            yield view.finding()
        above.add(image.unique_id)


def _has_journal(folder: Folder, path: str, names: Mapping[str, Sequence[str]]) -> bool:
    """Whether a journal lies beside an image; `names` are those in each folder that can be listed."""
    listed = names.get(paths.dirname(path))
    journal = path + JOURNAL_SUFFIX
    return folder.exists(journal) if listed is None else paths.basename(journal) in listed


def mark_ended(folder: Folder, image: Image, *, leaf_id: bytes, destination_id: bytes) -> None:
    """Write durably beside a layer that its view has ended; see the module for the order."""
    path = image.path + SUFFIX
    partial = f"{path}.partial"
    if folder.exists(partial):
        folder.remove(partial)
    with folder.create(partial) as storage:
        mark = {
            "version": 1,
            "unique_id": image.unique_id.hex(),
            "header": image.digest,
            "leaf_id": leaf_id.hex(),
            "destination_id": destination_id.hex(),
            "ended": max(0.0, storage.ctime),
        }
        storage.write_at(0, json.dumps(mark, separators=(",", ":")).encode())
        storage.sync()
    folder.replace(partial, path)
    folder.sync(paths.dirname(path))


def remove_marks(folder: Folder, storage: Storage, unique_id: bytes) -> None:
    """Remove the marks of a layer that goes, or whose view is whole again; a cut leaves marks of nothing."""
    removed = False
    for path, _ in list(_marks(folder, storage, unique_id.hex())):
        folder.remove(path)
        removed = True
    if removed:
        folder.sync(paths.dirname(storage.path))


def _marks(
    folder: Folder, storage: Storage, unique_id: str, names: Iterable[str] | None = None
) -> Iterator[tuple[str, _Mark]]:
    """Yield the believable marks of an id in an image's folder, that of its name first."""
    directory, own = paths.dirname(storage.path), paths.basename(storage.path) + SUFFIX
    found = [name for name in (folder.names(directory) if names is None else names) if name.endswith(SUFFIX)]
    for name in sorted(found, key=lambda name: name != own)[:_MOST_MARKS]:
        path = paths.join(directory, name)
        mark = _read(folder, path, storage)
        if mark is not None and mark.unique_id == unique_id:
            yield path, mark


def _read(folder: Folder, path: str, image: Storage) -> _Mark | None:
    try:
        with folder.open(path) as storage:
            size = storage.size()
            if size > _MOST_BYTES or not is_believable(storage, image):
                return None
            return decode_object(read_bytes(storage, 0, size), _DECODER)
    except (OSError, ValueError, VhdError):
        return None
