"""The journal of a merge: a file beside the destination that says what is being merged into it, and how far that is.

It is never needed to read a disk: that reads the same at every instant. It lets a merge that was cut off go on where
it was, end in the same bytes, and be told of. It is untrusted: what it says counts only for files that are part of the
chain anyway and are what they were.

Its lines (see `records`): `begin` what is merged, and everything that decides where bytes go · `reserved` the room is
made · `grown` the table is longer · `saved` up to here the undo image has what will be overwritten · `mark` up to here
the disk's sectors are durable in the destination · `merged` all of them are, and which children are relinked, byte for
byte; a `mark` behind it takes that back · `verified` the destination was read and has what the sources hold, which are
about to be removed as they are now · `names` files have other names since · `doubted` nothing proves that the undo
image holds all that was overwritten · `dropping` what was kept for an undo goes · `rollback` the undo image is being
merged back · `restored` it is, and may go · `stopped` why the merge does not go on.
A second `begin` starts over: the files had changed.

States of files (`Seen`) are proof only that a file was not touched since, never that it was; see `seen`.

**Source**: reference 3.8; DESIGN 5.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vhdkit.errors import Corruption, Finding, JournalError
from vhdkit.format.layout import SECTOR
from vhdkit.image import records
from vhdkit.image.seen import Seen
from vhdkit.image.step import Patch
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vhdkit.storage.seam import Folder, Storage

SUFFIX = ".vhdkit-journal"
VERSION = 1
# Kinds of record that say one thing.
_FLAGS = {"reserved": "reserved", "grown": "grown", "rollback": "rolling_back", "restored": "restored"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """A file of a merge: `path` relative to the journal's folder, ids and digests as hexadecimal text.

    `header` is a digest of the footer and header, `size` in bytes, `mtime` in Unix seconds. `seen` is None in journals
    of earlier versions.
    """

    path: str
    unique_id: str
    header: str
    size: int
    mtime: float
    seen: Seen | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """What a merge set out to do. Files leaf first, `below` those under the destination; sizes and offsets in bytes.

    New blocks lie at `first` and every `stride` behind; the `moved` first of them are blocks that make way for a longer
    table, as `growth` says. `plan` is a digest of everything that decides which bytes go where. `view` is the digest of
    the leaf's view, if it is to be verified, and `footer` the destination's before (hexadecimal).
    """

    job: str
    started: float
    pid: int
    host: str
    sources: tuple[FileState, ...]
    destination: FileState
    below: tuple[FileState, ...]
    keep_sources: bool
    relink_siblings: bool
    undo: str
    undo_id: str
    view: str
    payload_bytes: int
    first: int
    stride: int
    moved: int
    added: int
    file_end: int
    growth: dict[str, Any] | None
    footer: str
    virtual_size: int
    plan: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RelinkState:
    """A child that is relinked: its path as in `FileState`, and what changes in it, the header last."""

    path: str
    patches: tuple[Patch, ...]


@dataclass(slots=True, kw_only=True)
class Journal:
    """What a journal says. `relinks` is None until the merge is complete and only names are left to be changed.

    `undo_seen` is what the undo image looked like when it held `held` sectors; None in journals of earlier versions,
    as `destination_seen`, the destination when the merge was stopped or complete. `verified` are the sources that were
    about to be removed.
    """

    path: str
    begin: Begin | None = None
    reserved: bool = False
    grown: bool = False
    saved: int = 0
    held: int = 0
    undo_seen: Seen | None = None
    mark: int = 0
    mark_time: float = 0.0
    bytes_done: int = 0
    relinks: tuple[RelinkState, ...] | None = None
    former_relinks: tuple[RelinkState, ...] = ()
    destination_after: tuple[int, float] | None = None
    destination_seen: Seen | None = None
    verified: tuple[FileState, ...] | None = None
    doubt: str = ""
    dropping: bool = False
    keep_undo_file: bool = False
    rolling_back: bool = False
    restored: bool = False
    stopped: str = ""
    destination_stopped: tuple[int, float] | None = None
    end: int = 0
    checksum: str = field(default="", repr=False)

    @property
    def destination(self) -> str:
        """The file that the journal lies beside."""
        return self.path.removesuffix(SUFFIX)

    @property
    def merged(self) -> bool:
        """Whether everything is durable in the destination."""
        return self.relinks is not None

    def resolve(self, path: str) -> str:
        """Return the absolute path of a file that the journal speaks of."""
        return paths.normpath(paths.join(paths.dirname(self.path), *path.split("/")))

    def undo_command(self, *verb: str) -> str:
        """Return the command that does something with the undo image."""
        undo = self.resolve(self.begin.undo) if self.begin is not None else ""
        place = paths.dirname(self.path)
        return command(*verb, undo, *(["--search", place] if paths.dirname(undo) != place else []))

    def relative(self, path: str) -> str:
        """Return an absolute path as the journal keeps it."""
        return paths.relpath(path, paths.dirname(self.path)).replace(paths.sep, "/")

    def add(self, record: records.Record) -> None:
        """Follow one record.

        Raises:
            ValueError, TypeError, KeyError: it is none of ours.

        """
        match record["kind"]:
            case "begin":
                self.begin = _begin(record)
                self.reserved = self.grown = False
                self.former_relinks += self.relinks or ()
                self.mark, self.bytes_done, self.relinks = 0, 0, None
                self.dropping, self.verified = False, None
            case "saved":
                self.saved = _whole(record["offset"])
                self.held, self.undo_seen = _whole(record.get("held", 0)), Seen.from_record(record, "undo")
            case "mark":
                self.mark, self.bytes_done = _whole(record["offset"]), _whole(record["bytes"])
                self.mark_time = float(record["mtime"])
                self.former_relinks += self.relinks or ()
                self.relinks = self.verified = None
            case "merged":
                self.relinks = tuple(_relink(item) for item in record["relinks"])
                size, mtime = record["destination"]
                self.destination_after = (_whole(size), float(mtime))
                self.undo_seen = Seen.from_record(record, "undo") or self.undo_seen
                self.destination_seen = Seen.from_record(record, "seen")
            case "verified":
                self.verified = tuple(_file(item) for item in record["sources"])
                self.destination_seen = Seen.from_record(record, "seen")
            case "names":
                self.begin = self._renamed(record)
            case "doubted":
                self.doubt = str(record["reason"])
            case "dropping":
                self.dropping, self.keep_undo_file = True, bool(record["keep_file"])
            case "stopped":
                self.stopped = str(record["reason"])
                size, mtime = record["destination"]
                self.destination_stopped = (_whole(size), float(mtime))
                self.destination_seen = Seen.from_record(record, "seen") or self.destination_seen
                return
            case kind:
                setattr(self, _FLAGS[kind], True)
        self.stopped, self.destination_stopped = "", None

    def _renamed(self, record: records.Record) -> Begin:
        begin, names = self.begin, record["sources"]
        if begin is None or len(names) != len(begin.sources):
            raise ValueError("names of other files")
        sources = tuple(replace(state, path=str(name)) for state, name in zip(begin.sources, names, strict=True))
        return replace(begin, sources=sources, undo=str(record["undo"]))

    def say(self) -> str:
        """Return where the merge is, in words."""
        if self.begin is None:
            return "a merge into it was about to begin when it was cut off; nothing was changed"
        top = paths.basename(self.begin.sources[0].path)
        name = paths.basename(self.destination)
        if self.rolling_back:
            how = self.undo_command("rollback")
            return f"rolling back the merge of {top} into {name} was not finished; {how} finishes it"
        if self.merged and self.begin.undo and not self.dropping:
            how = f"{self.undo_command('undo', 'drop')} makes that final, {self.undo_command('rollback')} takes it back"
            return f"{top} was merged into {name}, and the sources are kept; {how}"
        why = f" ({self.stopped})" if self.stopped else ""
        again = command("merge", self.resolve(self.begin.sources[0].path), "--into", self.destination)
        if self.merged:
            return f"{top} was merged into {name}{why}; {again} finishes what is left to be done"
        total = self.begin.payload_bytes
        percent = 100 * self.bytes_done // total if total else 0
        who = f"process {self.begin.pid} on {self.begin.host}"
        how = f"{again} goes on, unless somebody is still at it"
        return f"the merge of {top} into {name}, begun by {who}, is not finished: {percent} %{why}; {how}"


def command(*words: str) -> str:
    """Return a command line as a message shows it.

    >>> command("merge", "a b.avhd")
    "`vhdkit merge 'a b.avhd'`"
    """
    return f"`{shlex.join(['vhdkit', *words])}`"


def journal_path(destination: str) -> str:
    """Return where the journal of merges into a file lies."""
    return destination + SUFFIX


def read_journal(folder: Folder, destination: str) -> Journal | None:
    """Return the journal beside a file, None if there is none; without `begin` if nothing had begun.

    Raises:
        JournalError: it is whole, and not a journal as they are written here.

    """
    path = journal_path(destination)
    if not folder.exists(path):
        return None
    storage, image = folder.open(path), folder.open(destination)
    try:
        if not records.is_believable(storage, image):
            message = (
                "it belongs to another user than the image beside it, and is not believed; remove it if it is wrong"
            )
            raise JournalError(message, path=path)
        return parse(path, records.read(storage))
    finally:
        storage.close()
        image.close()


def parse(path: str, raw: bytes) -> Journal:
    """Return what a journal's bytes say, as `read_journal`."""
    journal = Journal(path=path)
    found, journal.end, journal.checksum = records.decode(raw)
    try:
        for record in found:
            journal.add(record)
            if journal.begin is None:
                raise ValueError("it does not begin")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"it is no journal of a version that is known here ({error}); if no merge is to go on, remove it"
        raise JournalError(message, path=path) from error
    return journal


def unfinished_merges(folder: Folder, files: Iterable[str]) -> Iterator[Finding]:
    """Yield a finding for each file into which a merge was begun and not finished."""
    for path in files:
        try:
            journal = read_journal(folder, path)
        except JournalError as error:
            message = f"there is a journal of a merge into it that cannot be read: {error.message}"
        except OSError as error:
            message = f"there is a journal of a merge into it that cannot be read: {error.strerror}"
        else:
            if journal is None:
                continue
            message = journal.say()
        yield Finding(corruption=Corruption.MERGE_UNFINISHED, path=path, message=message)


class JournalWriter:
    """A journal that is being written: each record is durable when `write` returns."""

    def __init__(self, storage: Storage, journal: Journal) -> None:
        self.storage = storage
        self.journal = journal

    @classmethod
    def create(cls, folder: Folder, destination: str) -> JournalWriter:
        """Begin a journal; one that holds nothing is replaced.

        Raises:
            FileExistsError: there is one already.

        """
        path = journal_path(destination)
        old = read_journal(folder, destination)
        if old is not None and old.begin is None:
            folder.remove(path)
        return cls(folder.create(path, private=True), Journal(path=path))

    @classmethod
    def append(cls, folder: Folder, journal: Journal) -> JournalWriter:
        """Go on with a journal that was read, which itself stays what it was: a plan may rest on it.

        What was read may be in memory only, if whoever wrote it was cut off before his sync; it is made durable first.
        """
        storage = folder.open(journal.path, writable=True)
        try:
            raw = records.read(storage)[: journal.end]
            storage.write_at(0, raw)
            storage.sync()
        except BaseException:
            storage.close()
            raise
        return cls(storage, replace(journal))

    def now(self) -> float:
        """Return the time by the clock of the file system: writing where the next record will lie moves the file's."""
        self.storage.write_at(self.journal.end, bytes(SECTOR))
        return self.storage.ctime

    def write(self, kind: str, **fields: object) -> None:
        """Append a record and make it durable."""
        self.note(kind, sync=True, **fields)

    def note(self, kind: str, *, sync: bool = False, **fields: object) -> None:
        """Append a record that nobody depends on: a sync may wait for all that the disk has still to write."""
        record = {"kind": kind, **fields}
        raw = records.encode([record], self.journal.checksum)
        self.storage.write_at(self.journal.end, raw)
        if sync:
            self.storage.sync()
        self.journal.end += len(raw)
        self.journal.checksum = raw[:64].decode()
        self.journal.add(record)

    def close(self) -> None:
        """Give the file back."""
        self.storage.close()


def _whole(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _file(record: dict[str, Any]) -> FileState:
    return FileState(
        path=str(record["path"]),
        unique_id=str(record["unique_id"]),
        header=str(record["header"]),
        size=_whole(record["size"]),
        mtime=float(record["mtime"]),
        seen=Seen.from_record(record, "seen"),
    )


def _relink(record: dict[str, Any]) -> RelinkState:
    patches = tuple(Patch.from_record(patch) for patch in record["patches"])
    return RelinkState(path=str(record["path"]), patches=patches)


def _begin(record: records.Record) -> Begin:
    if record["version"] != VERSION:
        raise ValueError(f"version {record['version']!r}")
    texts: dict[str, Any] = {
        name: str(record[name]) for name in ("job", "host", "undo", "undo_id", "view", "footer", "plan")
    }
    names = ("pid", "payload_bytes", "first", "stride", "moved", "added", "file_end", "virtual_size")
    numbers: dict[str, Any] = {name: _whole(record[name]) for name in names}
    if not record["sources"]:
        raise ValueError("no sources")
    return Begin(
        started=float(record["started"]),
        sources=tuple(_file(item) for item in record["sources"]),
        destination=_file(record["destination"]),
        below=tuple(_file(item) for item in record["below"]),
        keep_sources=bool(record["keep_sources"]),
        relink_siblings=bool(record["relink_siblings"]),
        growth=dict(record["growth"]) if record["growth"] is not None else None,
        **texts,
        **numbers,
    )
