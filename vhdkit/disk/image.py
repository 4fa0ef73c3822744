"""What every image is to the code above the formats: where its bytes come from, and how it is written.

An image answers for itself alone. It never looks for a parent: what it does not hold is `PARENT` in its extents, and
`chain` puts images together.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from types import TracebackType

    from vhdkit.disk.extents import Extents
    from vhdkit.findings import Finding
    from vhdkit.storage.protocols import Storage


class DiskKind(StrEnum):
    """What an image is, in any format: an AVHD or an AVHDX is a differencing one."""

    RAW = "raw"
    FIXED = "fixed"
    DYNAMIC = "dynamic"
    DIFFERENCING = "differencing"


@runtime_checkable
class Image(Protocol):
    """An open image of any format.

    `size` is the disk's in bytes, `logical_sector_size` what a guest sees as a sector. `block_size` is the bytes of the
    disk that the image allocates at once, 0 if all of them have their place from the start. `unique_id` has 16 bytes,
    and none in a format that has no ids. `findings` are what was odd when it was opened. `change_count` is how often
    the file was written: what was resolved before is out of date.

    It is a context manager. Once it is closed, every method but `close` raises ValueError.
    """

    change_count: int
    size: int

    @property
    def path(self) -> str: ...  # noqa: D102 - the class's docstring explains the properties
    @property
    def storage(self) -> Storage: ...  # noqa: D102
    @property
    def kind(self) -> DiskKind: ...  # noqa: D102
    @property
    def logical_sector_size(self) -> int: ...  # noqa: D102
    @property
    def block_size(self) -> int: ...  # noqa: D102
    @property
    def unique_id(self) -> bytes: ...  # noqa: D102
    @property
    def findings(self) -> tuple[Finding, ...]: ...  # noqa: D102

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

    def mapped_sectors(self, offset: int, stop: int) -> int:
        """Return the sectors of a range that bitmaps decide about: a bound for the extents in it."""
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
        """Refuse an image of which nothing tells what it holds.

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
