"""What every image is to the code above the formats: where its bytes come from, and how it is written.

An image answers for itself alone. It never looks for a parent: what it does not hold is `PARENT` in its extents, and
`chain` puts images together.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from vhdkit.disk.extents import Extents
    from vhdkit.disk.ownership import Ownership
    from vhdkit.disk.parent_link import ParentLink
    from vhdkit.disk.written_sectors import WrittenSectors
    from vhdkit.findings import Finding
    from vhdkit.storage.protocols import Folder, Storage, Syncing


class DiskKind(StrEnum):
    """What an image is, in any format: an AVHD or an AVHDX is a differencing one."""

    RAW = "raw"
    FIXED = "fixed"
    DYNAMIC = "dynamic"
    DIFFERENCING = "differencing"


class ImageFormat(StrEnum):
    """The format of an image's file."""

    RAW = "raw"
    VHD = "VHD"
    VHDX = "VHDX"


class BlockPlaces(NamedTuple):
    """The file offsets (int64) of blocks, and the bytes that each takes there with what belongs to it."""

    offsets: NDArray[np.int64]
    span: int


class StructureChecksums(NamedTuple):
    """CRC-32s of what a file ends with, of the header that names its parent (0 without one), and of its table."""

    footer: int
    header: int
    table: int


class ImageSummary(Protocol):
    """What a file says of its disk, as an open image or as what was read of one that was closed.

    `timestamp` is when it was made, in the seconds of `timestamp`, 0 if it does not say. `parent` is None if it needs
    none. `digest` is that of what the file says of itself, hexadecimal; "" for a raw file.
    """

    @property
    def path(self) -> str: ...  # noqa: D102 - the class's docstring explains the properties
    @property
    def file_format(self) -> ImageFormat: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def kind(self) -> DiskKind: ...  # noqa: D102
    @property
    def unique_id(self) -> bytes: ...  # noqa: D102
    @property
    def timestamp(self) -> int: ...  # noqa: D102
    @property
    def parent(self) -> ParentLink | None: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def findings(self) -> tuple[Finding, ...]: ...  # noqa: D102


class FileSummary(ImageSummary, Protocol):
    """What was read of a file that may be damaged.

    `checksum_ok` says whether all checksums were right, `remembered_parent_id` what stands where a child has its
    parent's id, whatever the damage says that the disk is; None without such a place.
    """

    @property
    def checksum_ok(self) -> bool: ...  # noqa: D102 - the class's docstring explains the properties
    @property
    def remembered_parent_id(self) -> bytes | None: ...  # noqa: D102


@runtime_checkable
class Image(ImageSummary, Protocol):
    """An open image of any format.

    `size` is the disk's in bytes, `logical_sector_size` what a guest sees as a sector. `block_size` is the bytes of the
    disk that the image allocates at once, 0 if all of them have their place from the start. `unique_id` has 16 bytes,
    and none in a format that has no ids; `timestamp`, `parent` and `digest` are as in `ImageSummary`. An image is of a
    saved machine state (`is_saved_state`) if a machine goes on from its content as it is now. It was made as the undo
    image of a merge (`is_undo_image`) if merging it takes that back. `findings` are what was odd when it was opened.
    `change_count` is how often the file was written: what was resolved before is out
    of date.

    It is a context manager. Once it is closed, every method but `close` raises ValueError.
    """

    change_count: int
    size: int

    @property
    def storage(self) -> Storage: ...  # noqa: D102 - the class's docstring explains the properties
    @property
    def logical_sector_size(self) -> int: ...  # noqa: D102
    @property
    def block_size(self) -> int: ...  # noqa: D102
    @property
    def is_saved_state(self) -> bool: ...  # noqa: D102
    @property
    def is_undo_image(self) -> bool: ...  # noqa: D102

    def __enter__(self) -> Self:
        """Return the image; ValueError if it is closed."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        ...

    def resolve(self, offset: int, length: int) -> Extents:
        """Return where each byte of a range inside the disk comes from; payload is not read."""
        ...

    def is_empty(self) -> bool:
        """Whether the image holds nothing of its disk: it can allocate blocks, and has none."""
        ...

    def drop_tables(self) -> None:
        """Keep nothing of its tables in memory until they are asked for: for images that are held, and not read."""
        ...

    def checksums(self) -> StructureChecksums:
        """Return the CRC-32s of the file's structures as they are now."""
        ...

    def mapped_sectors(self, offset: int, stop: int) -> int:
        """Return the sectors of a range that bitmaps decide about: a bound for the extents in it."""
        ...

    def allocated_blocks(self, offset: int, stop: int) -> NDArray[np.int64]:
        """Return the indices (int64, ascending) of the allocated blocks that touch a range; none without blocks."""
        ...

    def block_places(self, offset: int, stop: int) -> BlockPlaces:
        """Return where the allocated blocks that touch a range lie in the file."""
        ...

    def ownership(self, offset: int, stop: int) -> Ownership:
        """Return which sectors of a range the image holds; only of one that has blocks."""
        ...

    def fill_past_end(self, offset: int, rest: memoryview) -> None:
        """Fill what a read of payload lacks because the file ends at `offset`.

        Raises:
            CorruptImageError: the format does not allow that.

        """
        ...

    def check_open(self) -> None:
        """Refuse to go on with what was closed (ValueError)."""
        ...

    def check_readable(self) -> None:
        """Refuse an image whose content cannot be determined.

        Raises:
            CorruptImageError: why.

        """
        ...

    def check_sound(self) -> None:
        """Refuse an image that can be read at best; to be called before anything is written or removed.

        Raises:
            CorruptImageError: why.

        """
        ...

    def check_writable(self) -> None:
        """Refuse to write to what was opened for reading, or failed before.

        Raises:
            ReadOnlyImageError: why.

        """
        ...

    def sync(self) -> None:
        """Make what was written durable; a failed sync may have lost it, so it ends all writing."""
        ...

    def begin_close(self) -> None:
        """Begin to give the file back, which is of no use from now on; `close` waits for it."""
        ...

    def close(self) -> None:
        """Give the file back."""
        ...


class WritableImage(Image, Protocol):
    """An image of a format that is written here; what is not durable yet is lost to a power cut.

    `block_lead` is the bytes of the file between where a block lies and its first sector. `is_sealed` says whether all
    checksums of its structures were right. After the first failure of a write or sync nothing more is written.
    """

    @property
    def block_lead(self) -> int: ...  # noqa: D102 - the class's docstring explains the properties
    @property
    def is_sealed(self) -> bool: ...  # noqa: D102
    @property
    def has_step(self) -> bool:
        """Whether a change of its header was cut off: it is read as if that were finished, and not written before."""
        ...

    def finish_step(self, folder: Folder) -> None:
        """Finish a change of the header that was cut off; the image is held exclusively."""
        ...

    def write(self, offset: int, data: bytes | memoryview, *, sync: bool = False) -> None:
        """Write whole sectors at a byte offset of the disk; with `sync` each step is durable before the next."""
        ...

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write file bytes: the payload of sectors that `commit` will refer to."""
        ...

    def copy_many_from(
        self,
        source: Image,
        source_offsets: Sequence[int],
        offsets: Sequence[int],
        lengths: Sequence[int],
        until: float = ...,
    ) -> int:
        """Copy many pieces of another image's file, at least one and none after `until`, and return how many."""
        ...

    def block_offsets(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where blocks (ascending) lie in the file, -1 where they are not allocated."""
        ...

    def begin_blocks(self, written: WrittenSectors) -> None:
        """Write what the file needs of new blocks besides their payload; nothing refers to them yet."""
        ...

    def commit(self, written: WrittenSectors, *, again: bool = False) -> None:
        """Write what refers to sectors whose payload is durable, in the format's safe order.

        With `again` what seems to be written already is written once more.
        """
        ...

    def begin_sync(self) -> Syncing:
        """Begin to make durable what was written so far; what is written meanwhile waits for another sync."""
        ...
