"""The journal of a merge: a file beside the destination that says what is being merged into it, and how far that is.

It is never needed to read a disk: that reads the same at every instant. It lets a merge that was cut off go on where
it was, end in the same bytes, and be told of. It is untrusted: what it says counts only for files that are part of the
chain anyway and are what they were.

Its lines (see `records`): `begin` what is merged, and everything that decides where bytes go · `reserved` the room is
made · `grown` the table is longer · `saved` up to here the undo image has what will be overwritten · `mark` up to here
the disk's sectors are durable in the destination · `merged` all of them are, and which children are relinked, byte for
byte; a `mark` behind it takes that back · `verified` the destination was read and has what the sources hold, which are
about to be removed as they are now · `names` files have other names since · `doubted` nothing proves that the undo
image holds all that was overwritten · `sampled` places that the merge changes, for its completion record · `dropping`
what was kept for an undo goes · `rollback` the undo image is being merged back · `restored` it is, and may go ·
`stopped` why the merge does not go on.
A second `begin` starts over: the files had changed.

States of files (`Seen`) are proof only that a file was not touched since, never that it was; see `seen`.

**Source**: docs/reference/vhd.md 3.4; docs/explanation/order-of-writes.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from vhdkit.disk import unique_id
from vhdkit.errors import JournalError
from vhdkit.findings import Advice, with_hint
from vhdkit.journal import records
from vhdkit.journal.merge_records import (
    Begin,
    Doubted,
    Dropping,
    FileState,
    Grown,
    JournalRecord,
    Mark,
    Merged,
    Names,
    RelinkState,
    Reserved,
    Restored,
    Rollback,
    Sample,
    Sampled,
    Saved,
    SizeAndTime,
    Stopped,
    Verified,
    decode_record,
)
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhdkit.findings import Argument, Hint
    from vhdkit.journal.file_state import Seen
    from vhdkit.storage.protocols import Folder, Storage

SUFFIX = ".vhdkit-journal"
# Records that say one thing.
_FLAGS = {Reserved: "reserved", Grown: "grown", Rollback: "rolling_back"}


@dataclass(slots=True, kw_only=True)
class JournalFile:
    """Where a journal lies, and how it names the files around it."""

    path: str

    @property
    def destination(self) -> str:
        """The file that the journal lies beside."""
        return self.path.removesuffix(SUFFIX)

    def resolve(self, path: str) -> str:
        """Return the absolute path of a file that the journal speaks of."""
        return paths.normpath(paths.join(paths.dirname(self.path), *path.split("/")))

    def relative(self, path: str) -> str:
        """Return an absolute path as the journal keeps it."""
        return paths.relpath(path, paths.dirname(self.path)).replace(paths.sep, "/")


@dataclass(slots=True, kw_only=True)
class UnbegunJournal(JournalFile):
    """A journal in which no merge has begun: it was cut off before its first record was durable."""

    def begun(self, record: JournalRecord) -> Journal:
        """Return the journal that the first record makes of it.

        Raises:
            ValueError: the record begins nothing.

        """
        if not isinstance(record, Begin):
            raise ValueError("it does not begin")  # noqa: TRY004 - as for any record that does not fit
        return Journal(path=self.path, begin=record, now=record.now)

    @property
    def status(self) -> str:
        """Where the merge is, in words."""
        return "a merge into it was about to begin when it was cut off; nothing was changed"

    @property
    def hint(self) -> None:
        """What goes on with the merge: nothing does."""
        return None

    def say(self) -> str:
        """Return where the merge is, in words."""
        return self.status


@dataclass(slots=True, kw_only=True)
class Journal(JournalFile):
    """What a journal says of a merge that has begun.

    With `has_begun_anew` its first sources may have been others. `relinks` is None until the merge is complete and only
    names are left to be changed. `now` is the file system's time when the last record was written, 0.0 where that was
    not noted. `undo_seen` is what the undo image looked like when it held `held` sectors; None in journals of earlier
    versions, as `destination_seen`, the destination when the merge was stopped, complete or rolled back. `verified` are
    the sources that were about to be removed. `gone` are the sources below the journal's own directory that
    were not there when it was read.
    """

    begin: Begin
    has_begun_anew: bool = False
    reserved: bool = False
    grown: bool = False
    saved: int = 0
    held: int = 0
    undo_seen: Seen | None = None
    mark: int = 0
    bytes_done: int = 0
    relinks: tuple[RelinkState, ...] | None = None
    former_relinks: tuple[RelinkState, ...] = ()
    destination_after: SizeAndTime | None = None
    destination_seen: Seen | None = None
    verified: tuple[FileState, ...] | None = None
    doubt: str = ""
    samples: tuple[Sample, ...] = ()
    is_ensured: bool = False
    dropping: bool = False
    keep_undo_file: bool = False
    rolling_back: bool = False
    restored: bool = False
    stopped: str = ""
    now: float = 0.0
    end: int = 0
    gone: frozenset[str] = field(default=frozenset(), repr=False)
    checksum: str = field(default="", repr=False)

    @property
    def merged(self) -> bool:
        """Whether everything is durable in the destination."""
        return self.relinks is not None

    def undo_hint(self, advice: Advice, text: str) -> Hint:
        """Return what is to be done with the undo image, as a hint."""
        undo = self.resolve(self.begin.undo)
        place = paths.dirname(self.path)
        return advice.hint(text, path=undo, **({"search": (place,)} if paths.dirname(undo) != place else {}))

    def merge_hint(self, text: str = "{}", search: Iterable[str] = ()) -> Hint:
        """Return how the merge goes on, as a hint; `search` are absolute folders in which its layers lie."""
        top = self.begin.sources[0]
        leaf, place = self.resolve(top.path), paths.dirname(self.path)
        folders = tuple(dict.fromkeys([*search, *([place] if paths.dirname(leaf) != place else [])]))
        known: dict[str, Argument] = {
            "path": leaf,
            "into": self.destination,
            **({"search": folders} if folders else {}),
        }
        if self.is_ensured and not self.begin.undo:
            # `ensure_merged` began it: finished without the id it would leave no completion record.
            return Advice.ENSURE_MERGED.hint(text, **known, leaf_id=unique_id.guid(bytes.fromhex(top.unique_id)))
        return Advice.MERGE.hint(text, **known)

    def add(self, record: JournalRecord) -> None:
        """Follow one record.

        Raises:
            ValueError: it does not fit those before it.

        """
        self.now = record.now
        match record:
            case Begin():
                self._begin_anew(record)
            case Names():
                self.begin = self._renamed(record)
            case Saved() | Mark():
                self._follow_progress(record)
            case Merged() | Verified():
                self._follow_completion(record)
            case Doubted():
                self.doubt = record.reason
            case Sampled():
                # Of a leaf that holds nothing there are none; it is recorded all the same.
                self.samples, self.is_ensured = record.samples, True
            case Restored():
                self.restored, self.destination_seen = True, record.seen
            case Dropping():
                self.dropping, self.keep_undo_file = True, record.keep_file
            case Stopped():
                self.stopped = record.reason
                self.destination_seen = record.seen or self.destination_seen
                return
            case _:
                setattr(self, _FLAGS[type(record)], True)
        self.stopped = ""

    def _begin_anew(self, record: Begin) -> None:
        self.begin, self.has_begun_anew = record, True
        self.reserved = self.grown = False
        self.former_relinks += self.relinks or ()
        self.mark, self.bytes_done, self.relinks = 0, 0, None
        self.dropping, self.verified = False, None

    def _renamed(self, record: Names) -> Begin:
        begin = self.begin
        if len(record.sources) != len(begin.sources) or bool(record.undo) != bool(begin.undo):
            raise ValueError("names of other files")
        named = zip(begin.sources, record.sources, strict=True)
        sources = tuple(msgspec.structs.replace(state, path=name) for state, name in named)
        return msgspec.structs.replace(begin, sources=sources, undo=record.undo)

    def _follow_progress(self, record: Saved | Mark) -> None:
        if isinstance(record, Saved):
            self.saved, self.held, self.undo_seen = record.offset, record.held, record.undo
            return
        self.mark, self.bytes_done = record.offset, record.bytes
        self.former_relinks += self.relinks or ()
        self.relinks = self.verified = None

    def _follow_completion(self, record: Merged | Verified) -> None:
        self.destination_seen = record.seen
        if isinstance(record, Verified):
            self.verified = record.sources
            return
        self.relinks, self.destination_after, self.verified = record.relinks, record.destination, record.sources
        self.undo_seen = record.undo or self.undo_seen

    def say(self) -> str:
        """Return where the merge is, in words, and what goes on with it; see `status` and `hint`."""
        return with_hint(self.status, self.hint)

    @property
    def hint(self) -> Hint | None:
        """What goes on with the merge, or ends it; None where nothing does."""
        if self.rolling_back:
            return self.undo_hint(Advice.ROLL_BACK, "{} finishes it")
        if self._awaits_undo:
            back = self.undo_hint(Advice.ROLL_BACK, "{} takes it back")
            return self.undo_hint(Advice.DROP_UNDO, "{} makes that final").then(back)
        if self.merged:
            return self._again("{} finishes what is left to be done")
        return self._again("{} goes on, unless somebody is still at it") if self._is_top_there else None

    @property
    def _awaits_undo(self) -> bool:
        return self.merged and bool(self.begin.undo) and not self.dropping

    @property
    def status(self) -> str:
        """Where the merge is, in words."""
        top = paths.basename(self.begin.sources[0].path)
        name = paths.basename(self.destination)
        if self.rolling_back:
            return f"rolling back the merge of {top} into {name} was not finished"
        if self._awaits_undo:
            return f"{top} was merged into {name}, and the sources are kept"
        why = f" ({self.stopped})" if self.stopped else ""
        if self.merged:
            gone = "" if self._is_top_there else " and is gone"
            return f"{top} was merged into {name}{gone}{why}"
        total = self.begin.payload_bytes
        percent = min(100, 100 * self.bytes_done // total) if total else 0
        who = f"process {self.begin.pid} on {self.begin.host}"
        lost = "" if self._is_top_there else f"; {top} is gone, and it cannot go on until that is put back"
        return f"the merge of {top} into {name}, begun by {who}, is not finished: {percent} %{why}{lost}"

    @property
    def _is_top_there(self) -> bool:
        return self.resolve(self.begin.sources[0].path) not in self.gone

    def _again(self, text: str) -> Hint:
        """Return what goes on with the merge.

        Without it a source that is left is named: of that nothing goes which the destination does not show. If none is
        left the name of the topmost one leads to the journal, and only that goes.
        """
        sources = [self.resolve(source.path) for source in self.begin.sources]
        there = [path for path in sources if path not in self.gone]
        if there and not self._is_top_there:
            return Advice.MERGE.hint(text, path=there[0], into=self.destination)
        return self.merge_hint(text)


def journal_path(destination: str) -> str:
    """Return where the journal of merges into a file lies."""
    return destination + SUFFIX


def read_journal(folder: Folder, destination: str) -> Journal | None:
    """Return the journal beside a file, None if there is none, or none in which a merge has begun.

    Raises:
        JournalError: it is whole, and not a journal as they are written here.

    """
    match find_journal(folder, destination):
        case Journal() as journal:
            return journal
        case _:
            return None


def find_journal(folder: Folder, destination: str, image: str = "") -> Journal | UnbegunJournal | None:
    """Return the journal beside a file, begun or not, None if there is none.

    `image` is that file if it has another name by now.

    Raises:
        JournalError: it is whole, and not a journal as they are written here.

    """
    path = journal_path(destination)
    if not folder.exists(path):
        return None
    with folder.open(path) as storage, folder.open(image or destination) as beside:
        if not records.is_believable(storage, beside):
            message = (
                "it belongs to another user than the image beside it, and is not believed. If a merge into that image"
                " wrote it, give it the image's owner: it may be the only record of which layers are merged. Remove it"
                " only if none did"
            )
            raise JournalError(message, path=path)
        journal = _read(path, storage)
    if isinstance(journal, Journal):
        journal.gone = _gone(journal, folder)
    return journal


def _gone(journal: Journal, folder: Folder) -> frozenset[str]:
    # Even asking the system about a path elsewhere can wake an automounter, and a journal is not trusted.
    sources = [journal.resolve(source.path) for source in journal.begin.sources]
    own = [path for path in sources if paths.is_below(path, [paths.dirname(journal.path)])]
    return frozenset(path for path in own if not folder.exists(path))


def _read(path: str, storage: Storage) -> Journal | UnbegunJournal:
    journal: Journal | UnbegunJournal = UnbegunJournal(path=path)
    for line in records.read_lines(storage):
        try:
            journal = followed(journal, decode_record(line.text))
        except ValueError as error:
            message = (
                f"it is no journal as they are written here ({error}); look at what made it, and move it elsewhere"
            )
            raise JournalError(message, path=path) from error
        journal.end, journal.checksum = line.end, line.checksum
    return journal


def followed(journal: Journal | UnbegunJournal, record: JournalRecord) -> Journal:
    """Return the journal with one record more."""
    if isinstance(journal, UnbegunJournal):
        return journal.begun(record)
    journal.add(record)
    return journal
