"""What images of all formats share that keep their bytes in one file: reading, writing, syncing, and failing once."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.disk.image import BlockPlaces, ImageFormat, StructureChecksums
from vhdkit.disk.ownership import Ownership
from vhdkit.errors import ReadOnlyImageError
from vhdkit.storage.fast_paths import FastPath, is_used
from vhdkit.storage.handle import Handle
from vhdkit.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from vhdkit.disk.extents import Extents
    from vhdkit.disk.image import DiskKind, Image
    from vhdkit.disk.parent_link import ParentLink
    from vhdkit.findings import Finding
    from vhdkit.storage.protocols import Storage, Syncing


class FileImage(Handle):
    """An open image in one file; a format says what `resolve` and `fill_past_end` do. See `image.Image`."""

    handle_kind = "image"
    file_format = ImageFormat.RAW

    def __init__(self, storage: Storage, size: int, kind: DiskKind, findings: tuple[Finding, ...] = ()) -> None:
        self.storage = storage
        self.size = size
        self.kind = kind
        self.findings = findings
        self.logical_sector_size = SECTOR
        self.block_size = 0
        self.unique_id = b""
        self.timestamp = 0
        self.is_saved_state = False
        self.is_undo_image = False
        self.parent: ParentLink | None = None
        self.broken: OSError | None = None
        # How often the file was written: what was resolved from its tables before is out of date.
        self.change_count = 0

    def __repr__(self) -> str:
        """Return the path, the kind of image, its size, and whether it is closed."""
        closed = " (closed)" if self._closed else ""
        return f"<{type(self).__name__} {self.path!r}: {self.kind}, {self.size} bytes{closed}>"

    @property
    def path(self) -> str:
        """Where the file is."""
        return self.storage.path

    def resolve(self, offset: int, length: int) -> Extents:
        """Return where each byte of a range inside the disk comes from."""
        raise NotImplementedError

    @property
    def digest(self) -> str:
        """The digest of what the file says of itself; "" if it says nothing."""
        return ""

    def is_empty(self) -> bool:
        """Whether the image holds nothing of its disk; one that allocates no blocks holds all of it."""
        self.check_open()
        return False

    def drop_tables(self) -> None:
        """Keep nothing of its tables in memory; there are none here."""
        self.check_open()

    def checksums(self) -> StructureChecksums:
        """Return the CRC-32s of the file's structures; there are none here."""
        self.check_open()
        return StructureChecksums(0, 0, 0)

    def mapped_sectors(self, offset: int, stop: int) -> int:
        """Return the sectors of a range that bitmaps decide about: a bound for the extents in it."""
        self.check_open()
        del offset, stop
        return 0

    def allocated_blocks(self, offset: int, stop: int) -> NDArray[np.int64]:
        """Return the indices of the allocated blocks that touch a range; there are none here."""
        self.check_open()
        del offset, stop
        return np.empty(0, np.int64)

    def block_places(self, offset: int, stop: int) -> BlockPlaces:
        """Return where the allocated blocks that touch a range lie in the file; there are none here."""
        return BlockPlaces(self.allocated_blocks(offset, stop), 0)

    def ownership(self, offset: int, stop: int) -> Ownership:
        """Return which sectors of a range the image holds, by blocks; there are none here."""
        self.check_open()
        del offset, stop
        return Ownership(np.empty(0, np.int64), np.empty((0, 0), np.uint8), np.empty(0, np.int64))

    def fill_past_end(self, offset: int, rest: memoryview) -> None:
        """Fill what a read of payload lacks because the file ends at `offset`, or refuse it."""
        raise NotImplementedError

    def check_sound(self) -> None:
        """Refuse an image that can be read at best."""
        self.check_readable()

    def check_readable(self) -> None:
        """Refuse an image whose content cannot be determined; any that is open can be read here."""
        self.check_open()

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write file bytes; after the first failure of a write or sync nothing more is written."""
        with self._changing():
            self.storage.write_at(offset, data)

    def copy_from(self, source: Image, source_offset: int, offset: int, length: int) -> None:
        """Copy file bytes of another image, or of this one; as `write_at` about failures."""
        with self._changing():
            self.storage.copy_from(source.storage, source_offset, offset, length)

    def copy_many_from(
        self,
        source: Image,
        source_offsets: Sequence[int],
        offsets: Sequence[int],
        lengths: Sequence[int],
        until: float = math.inf,
    ) -> int:
        """Copy many pieces of another image's file, at least one and none after `until`, and return how many.

        As `write_at` about failures.
        """
        with self._changing():
            return self.storage.copy_many_from(source.storage, source_offsets, offsets, lengths, until)

    def begin_sync(self) -> Syncing:
        """Begin to make durable what was written so far; what is written meanwhile waits for another sync."""
        if not is_used(FastPath.OVERLAP):
            begun = time.monotonic()
            self.sync()
            return _Synced(time.monotonic() - begun)
        with self._changing():
            return _ImageSyncing(self, self.storage.begin_sync())

    def sync(self) -> None:
        """Make what was written durable; a failed sync may have lost it, so it ends all writing."""
        with self._changing():
            self.storage.sync()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Refuse what may not be written, and remember what failed."""
        self.check_writable()
        self.change_count += 1
        try:
            yield
        except OSError as error:
            self.broken = error
            raise

    def check_writable(self) -> None:
        """Refuse to write to what was opened for reading, or failed before.

        Raises:
            ReadOnlyImageError: either is so.
            ValueError: it is closed.

        """
        self.check_open()
        if self.broken is not None:
            message = f"an earlier write failed ({self.broken}); open the image anew to go on"
            raise ReadOnlyImageError(message, path=self.path)
        if not self.storage.writable:
            raise ReadOnlyImageError("it was opened for reading only", path=self.path)

    def begin_close(self) -> None:
        """Begin to give the file back, which is of no use from now on; `close` waits for it."""
        self._closed = True
        self.storage.begin_close()

    def close(self) -> None:
        """Give the file back."""
        self._closed = True
        self.storage.close()


class _Synced:
    """A sync that was made at once; the disk had no time to go on meanwhile, and is not called idle for it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def is_done(self) -> bool:
        return False

    def wait(self) -> float:
        return self._seconds


class _ImageSyncing:
    """A sync of an image's file; if it fails, that ends all writing."""

    def __init__(self, image: FileImage, inner: Syncing) -> None:
        self._image = image
        self._inner = inner

    def is_done(self) -> bool:
        return self._inner.is_done()

    def wait(self) -> float:
        try:
            return self._inner.wait()
        except OSError as error:
            self._image.broken = error
            raise
