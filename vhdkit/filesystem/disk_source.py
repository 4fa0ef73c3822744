"""A disk as The Sleuth Kit reads one, and its partitions.

The Sleuth Kit catches what a read of ours raises, and says something of its own: the first failure is kept, and raised
in its place.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vhdkit.errors import GuestFileError
from vhdkit.extras import load_extra

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from vhdkit.chain.disk_view import DiskView

EXTRA = "files"
# A GPT has 128; a table that says more is a mistake or an attack.
_MOST_PARTITIONS = 1024
# What The Sleuth Kit raises.
_FAILURES = (OSError, RuntimeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A part of a disk: `number` counts from 1, `start` and `size` are in bytes, `file_system` None if none is known.

    A disk without a table of partitions that holds a file system is one part. `description` is the table's word.
    """

    number: int
    start: int
    size: int
    description: str
    file_system: str | None


def sleuth_kit() -> ModuleType:
    """Return pytsk3.

    Raises:
        MissingExtraError: it is not installed.

    """
    return load_extra("pytsk3", EXTRA, "reading files inside of a disk")


class DiskSource:
    """A disk for The Sleuth Kit; it borrows the view."""

    def __init__(self, view: DiskView) -> None:
        self.tsk = sleuth_kit()
        self.path = view.leaf.path
        self.size = view.size
        self.failure: Exception | None = None
        self.image = _image(self.tsk, view, self)

    @contextmanager
    def failures_of(self, doing: str) -> Iterator[None]:
        """Raise failures inside as those of the disk, or else of its file system."""
        self.failure = None
        try:
            yield
        except _FAILURES as error:
            if self.failure is not None:
                raise self.failure from None
            raise GuestFileError(f"{doing} has failed: {_plain(error)}", path=self.path) from error

    def file_system_at(self, offset: int) -> Any:  # noqa: ANN401 - pytsk3 ships no types
        """Return what The Sleuth Kit has for the file system at a position, or None if it knows none there."""
        self.failure = None
        try:
            return self.tsk.FS_Info(self.image, offset=offset)
        except _FAILURES:
            if self.failure is not None:
                raise self.failure from None
            return None

    def type_name(self, file_system: Any) -> str:  # noqa: ANN401
        """Return what a file system is called, such as ntfs, fat32 or ext4."""
        kind, prefix = file_system.info.ftype, "TSK_FS_TYPE_"
        names = [name for name in dir(self.tsk) if name.startswith(prefix) and getattr(self.tsk, name) == kind]
        return names[0].removeprefix(prefix).lower() if names else "unknown"

    def partitions(self) -> tuple[Partition, ...]:
        """Return the partitions of the disk, in the order of its table."""
        found: list[Partition] = []
        for start, size, description in self._table():
            system = self.file_system_at(start)
            name = None if system is None else self.type_name(system)
            number = len(found) + 1
            found.append(Partition(number=number, start=start, size=size, description=description, file_system=name))
        if not found and (whole := self.file_system_at(0)) is not None:
            name = self.type_name(whole)
            return (Partition(number=1, start=0, size=self.size, description="whole disk", file_system=name),)
        return tuple(found)

    def _table(self) -> Iterator[tuple[int, int, str]]:
        """Yield (start, size, description) of what the table of partitions says is in use, and lies on the disk."""
        self.failure = None
        try:
            table = self.tsk.Volume_Info(self.image)
        except _FAILURES:
            if self.failure is not None:
                raise self.failure from None
            return
        sector, count = table.info.block_size, 0
        for part in table:
            start = part.start * sector
            if part.flags != self.tsk.TSK_VS_PART_FLAG_ALLOC or start >= self.size:
                continue
            count += 1
            if count > _MOST_PARTITIONS:
                raise GuestFileError(f"its table has more than {_MOST_PARTITIONS} partitions", path=self.path)
            yield start, min(part.len * sector, self.size - start), part.desc.decode("utf-8", "replace")


def _image(tsk: ModuleType, view: DiskView, source: DiskSource) -> Any:  # noqa: ANN401
    class Image(tsk.Img_Info):  # type: ignore[name-defined,misc] # pytsk3 ships no types
        def __init__(self) -> None:
            super().__init__(url="", type=tsk.TSK_IMG_TYPE_EXTERNAL)

        def get_size(self) -> int:
            return view.size

        def read(self, offset: int, length: int) -> bytes:
            try:
                return view.read(offset, length)
            except Exception as error:
                source.failure = source.failure or error
                raise

        def close(self) -> None:
            """Leave the view open: it is borrowed."""

    return Image()


def _plain(error: Exception) -> str:
    """Return what The Sleuth Kit says, without the place in its source."""
    text = str(error)
    return text.partition(") ")[2] or text if "tsk3.cpp" in text else text
