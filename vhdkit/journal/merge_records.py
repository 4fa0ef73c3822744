"""The records that a merge's journal consists of: their fields, and what each may hold.

A field that is added to a record has a default, so that journals of earlier versions are read; it is written always.

**Source**: docs/reference/vhd.md 3.4; docs/explanation/order-of-writes.md.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from vhdkit.journal.field_types import ClockTime, Digest, DigestText, FileTime, IdText, PathText, Size
from vhdkit.journal.file_state import Seen  # noqa: TC001 - msgspec reads the annotations when it runs
from vhdkit.journal.patch import HEADER_BYTES, MAX_PATCHES, Patch
from vhdkit.journal.records import Record, check_relative_path, decode_object
from vhdkit.units import SECTOR

VERSION = 1

# A BAT's entries are 32 bits of sectors: blocks lie below 2 TiB.
_Count = Annotated[int, Meta(ge=0, le=1 << 32)]
# An offset into the disk, or its size: whole sectors.
_DiskOffset = Annotated[int, Meta(ge=0, le=1 << 42, multiple_of=SECTOR)]
_BlockOffset = Annotated[int, Meta(ge=0, le=1 << 42)]
# A file's size in bytes, and its time of change.
SizeAndTime = tuple[Size, FileTime]
_MAX_LAYERS = 1024
MAX_SAMPLES = 16
MAX_SAMPLE_BYTES = 4096
_PathOrNone = Annotated[str, Meta(max_length=8192)]
_Reason = Annotated[str, Meta(max_length=8192)]


class FileState(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of a merge: `path` relative to the journal's folder, ids and digests as hexadecimal text.

    `header` is a digest of the footer and header, `size` in bytes, `mtime` in Unix seconds. `seen` is None in journals
    of earlier versions.
    """

    path: PathText
    unique_id: IdText
    header: DigestText
    size: Size
    mtime: FileTime
    seen: Seen | None = None

    def __post_init__(self) -> None:
        """Refuse what is no relative path."""
        Record.__post_init__(self)
        check_relative_path(self.path)


class GrowthState(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the destination's table grows (see `vhd.growth_plan`); `batmap` is the old one's header, hexadecimal."""

    old_count: _Count
    entry_count: _Count
    table_end: _BlockOffset
    end: _BlockOffset
    blocks: tuple[Annotated[int, Meta(ge=0, lt=1 << 32)], ...]
    batmap_bytes: _BlockOffset
    locator_offsets: Annotated[dict[Annotated[str, Meta(pattern=r"\A[0-7]\Z")], _BlockOffset], Meta(max_length=8)]
    batmap: Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{1024})?\Z")]


_Files = Annotated[tuple[FileState, ...], Meta(max_length=_MAX_LAYERS)]


class JournalLine(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every record has: the file system's time when it was written, 0.0 where that was not noted."""

    now: FileTime = 0.0


class Begin(JournalLine, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="begin"):
    """What a merge set out to do. Files leaf first, `below` those under the destination; sizes and offsets in bytes.

    New blocks lie at `first` and every `stride` behind; the `moved` first of them are blocks that make way for a longer
    table, as `growth` says. `plan` is a digest of everything that decides which bytes go where. `view` is the digest of
    the leaf's view, if it is to be verified, and `footer` the destination's before (hexadecimal).
    """

    version: Literal[1]
    job: Annotated[str, Meta(max_length=255)]
    started: ClockTime
    pid: Annotated[int, Meta(ge=0, lt=1 << 32)]
    host: Annotated[str, Meta(max_length=255)]
    sources: Annotated[tuple[FileState, ...], Meta(min_length=1, max_length=_MAX_LAYERS)]
    destination: FileState
    below: _Files
    keep_sources: bool
    relink_siblings: bool
    undo: _PathOrNone
    undo_id: IdText
    view: DigestText
    payload_bytes: Size
    first: _BlockOffset
    stride: Annotated[int, Meta(ge=0, le=1 << 33)]
    moved: _Count
    added: _Count
    file_end: Size
    growth: GrowthState | None
    footer: Annotated[str, Meta(pattern=r"\A[0-9a-f]{1024}\Z")]
    virtual_size: _DiskOffset
    plan: Digest

    def __post_init__(self) -> None:
        """Refuse what no merge has: an undo image without an id, images without one, other blocks that make way."""
        Record.__post_init__(self)
        if not all(state.unique_id for state in (*self.sources, self.destination)):
            raise ValueError("an image that is merged has an id; only a raw one below has none")
        if self.moved != (0 if self.growth is None else len(self.growth.blocks)):
            raise ValueError("the blocks that make way for a longer table are not as many as it says")
        if bool(self.undo) != bool(self.undo_id):
            raise ValueError("an undo image has a path and an id, or neither")
        if self.undo:
            check_relative_path(self.undo)


class Reserved(JournalLine, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="reserved"):
    """The room is made."""


class Grown(JournalLine, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="grown"):
    """The table is longer."""


class Saved(JournalLine, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="saved"):
    """Up to `offset` the undo image has what will be overwritten: `held` sectors then, when it looked like `undo`."""

    offset: _DiskOffset
    held: Size = 0
    undo: Seen | None = None


class Mark(JournalLine, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="mark"):
    """Up to `offset` the disk's sectors are durable in the destination, whose time of change was `mtime`."""

    offset: _DiskOffset
    bytes: Size
    mtime: FileTime


class RelinkState(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A child that is relinked: its path as in `FileState`, and what changes in it, the header last."""

    path: PathText
    patches: Annotated[tuple[Patch, ...], Meta(min_length=1, max_length=MAX_PATCHES)]

    def __post_init__(self) -> None:
        """Refuse what is no relative path, or changes no header."""
        Record.__post_init__(self)
        check_relative_path(self.path)
        if len(self.patches[-1].after) != HEADER_BYTES:
            raise ValueError("a relinking ends with a header")


class Merged(JournalLine, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="merged"):
    """All sectors are durable in the destination, left as `destination` and `seen` say; `relinks` follow.

    `undo` is what the undo image looked like, and `sources` are about to be removed as they are now; None if none is.
    """

    relinks: Annotated[tuple[RelinkState, ...], Meta(max_length=1 << 16)]
    destination: SizeAndTime
    seen: Seen | None = None
    undo: Seen | None = None
    sources: _Files | None = None


class Verified(JournalLine, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="verified"):
    """The destination was read and has what the sources hold, which are about to be removed as they are now."""

    sources: _Files
    seen: Seen | None = None


class Names(JournalLine, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="names"):
    """The sources, and the undo image ("" without one), have other names since."""

    sources: Annotated[tuple[PathText, ...], Meta(min_length=1, max_length=_MAX_LAYERS)]
    undo: _PathOrNone

    def __post_init__(self) -> None:
        """Refuse what are no relative paths."""
        Record.__post_init__(self)
        for path in (*self.sources, *([self.undo] if self.undo else [])):
            check_relative_path(path)


class Doubted(JournalLine, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="doubted"):
    """Nothing proves that the undo image holds all that was overwritten."""

    reason: _Reason


class Sample(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place in the disk, in bytes, with the SHA-256 of what it held before the merge and of what it holds after."""

    offset: Size
    length: Annotated[int, Meta(ge=SECTOR, le=MAX_SAMPLE_BYTES)]
    before: DigestText
    after: DigestText


Samples = Annotated[tuple[Sample, ...], Meta(max_length=MAX_SAMPLES)]


class Sampled(JournalLine, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="sampled"):
    """Places that the merge changes, kept for its completion record."""

    samples: Samples


class Dropping(JournalLine, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="dropping"):
    """What was kept for an undo goes; with `keep_file` the undo image stays."""

    keep_file: bool


class Rollback(JournalLine, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="rollback"):
    """The undo image is being merged back."""


class Restored(JournalLine, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="restored"):
    """The undo image was merged back, and may go; how that has left the destination."""

    seen: Seen | None = None


class Stopped(JournalLine, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="stopped"):
    """Why nobody is at it, and how the destination was left."""

    reason: _Reason
    destination: SizeAndTime
    seen: Seen | None = None


_Progress = Begin | Names | Reserved | Grown | Saved | Mark | Merged | Verified
JournalRecord = _Progress | Sampled | Doubted | Dropping | Rollback | Restored | Stopped


_DECODER: msgspec.json.Decoder[JournalRecord] = msgspec.json.Decoder(JournalRecord)


class _Version(msgspec.Struct):
    kind: str
    version: int


def decode_record(text: bytes) -> JournalRecord:
    """Return the record of a journal's line.

    Raises:
        ValueError: it is none, with the reason.

    """
    try:
        return decode_object(text, _DECODER)
    except ValueError:
        other = other_version(text)
        if other is not None:
            message = f"it is of version {other}, and {VERSION} is known here: finish its merge with the vhdkit"
            raise ValueError(f"{message} that began it") from None
        raise


def other_version(text: bytes) -> int | None:
    """Return the version of a journal of another one, None if it is of none or of ours."""
    try:
        found = msgspec.json.decode(text, type=_Version)
    except (ValueError, RecursionError):
        return None
    return found.version if found.kind == "begin" and found.version != VERSION else None
