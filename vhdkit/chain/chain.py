"""Reading a disk through its layers, and writing to the topmost.

A byte comes from the first layer, from the leaf down, that holds it; what none holds is zeros. A layer that is
shorter than those above it hides what lies below its end: zeros are read there (reference B14).

Ranges are worked through in windows that hold a bounded number of bitmap sectors, so that memory depends
neither on the size of the disk nor on how scattered its data are, and holes cost next to nothing.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np

from vhdkit.chain.link import compare_link
from vhdkit.chain.locate import Where, find_parent
from vhdkit.chain.stacked import resolve_stacked, stack_of
from vhdkit.errors import ChainError, Finding, ParentMismatchError, ReadOnlyImageError
from vhdkit.format import unique_id
from vhdkit.format.layout import SECTOR
from vhdkit.image import extent
from vhdkit.image.extent import Extents, Kind
from vhdkit.image.image import Image, Layer, open_image
from vhdkit.image.journal import read_journal, unfinished_merges
from vhdkit.image.metadata import read_metadata
from vhdkit.image.step import finish, pending
from vhdkit.image.transfer import read_extents
from vhdkit.image.write import write_sectors
from vhdkit.storage.local import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Buffer

    from vhdkit.storage.seam import Folder

# blktap stops at 30 layers, Hyper-V at 50 snapshots; beyond this a chain is a mistake or an attack.
MAX_LAYERS = 1024
# Extents of a window are bounded by the sectors that its bitmaps decide about: 128 full blocks of 2 MiB.
_WINDOW_SECTORS = 524_288
_WINDOW_BYTES = 32 << 30
_WINDOW_BLOCKS = 16384
# From so many layers on their bitmaps are looked at together; of fewer, one layer's answer over the next one's is as
# quick, and those below a layer that holds everything are not even asked.
_STACKED = 3


def open_chain(
    path: str,
    *,
    writable: bool = False,
    search: Sequence[str] = (),
    parent_map: Mapping[str, str] | None = None,
    parent: str | None = None,
    lock: bool = True,
    folder: Folder | None = None,
) -> Chain:
    """Open an image and everything below it, every link verified by unique id.

    Parents are looked for in the image's own folder and in `search`; `parent_map` says which local folder stands for
    a folder that absolute paths name (`{"C:\\\\vms": "/mnt/vms"}`); `parent` is the parent of the image, or of the
    layer further down that it fits. A raw parent is only taken if `parent` names it. With `writable` the leaf can be
    written; the other layers never are.

    Until the chain is closed its files are held: shared, and the leaf exclusively if it can be written. They are locked
    before their tables are read. With `lock` false nobody is asked, and what others change meanwhile is read half old
    and half new.

    Raises:
        ImageInUseError: another program, or another chain of this one, holds a layer so that both cannot be.
        CorruptImageError, UnsupportedImageError: a layer is no VHD that can be read safely.
        ParentNotFoundError, ParentMismatchError, ParentRefusedError, ChainLoopError: a parent cannot be had.
        ReadOnlyImageError: the leaf should be written and may not be.

    """
    place = folder or LocalFolder()
    where = Where(folder=place, search=tuple(search), parent_map=parent_map or {}, parent=parent, lock=lock)
    finished = finish(place, place.real(path))
    leaf = open_image(path, writable=writable, exclusive=writable if lock else None, folder=place)
    layers: list[Layer] = [leaf]
    try:
        if writable:
            _check_leaf(leaf)
        findings = (
            *([finished] if finished else []),
            *_open_parents(layers, where),
            *unfinished_merges(place, [layer.path for layer in layers]),
        )
        if writable:
            _refuse_undo_image(layers, place)
    except BaseException:
        for layer in layers:
            layer.close()
        raise
    return Chain(layers, findings)


def _refuse_undo_image(layers: Sequence[Layer], folder: Folder) -> None:
    """An undo image must stay what the merge has made it."""
    leaf, below = layers[0], layers[1:2]
    journal = read_journal(folder, below[0].path) if below else None
    if journal is None or journal.begin is None or journal.dropping or not isinstance(leaf, Image):
        return
    if journal.begin.undo_id == leaf.unique_id.hex():
        raise ReadOnlyImageError(f"it is kept for taking back a merge: {journal.say()}", path=leaf.path)


def _check_leaf(leaf: Image) -> None:
    if leaf.footer.saved_state:
        raise ReadOnlyImageError("it belongs to a saved machine state, which would no longer fit", path=leaf.path)
    leaf.check_overlaps()


def _open_parents(layers: list[Layer], where: Where) -> tuple[Finding, ...]:
    """Append the layers below the leaf; return what was odd about any of them."""
    child = layers[0]
    findings: list[Finding] = []
    explicit_used = where.parent is None
    identities = {child.storage.identity}
    while isinstance(child, Image):
        findings += child.findings
        if not child.is_differencing:
            break
        if len(layers) == MAX_LAYERS:
            raise ChainError(f"the chain has more than {MAX_LAYERS} layers", path=layers[0].path)
        explicit = None if explicit_used else where.parent
        found = find_parent(child, replace(where, parent=explicit), identities)
        findings += found.findings
        if not where.lock:
            findings += filter(None, [finish(where.folder, found.layer.path)])
        findings += compare_link(child.metadata, found.layer)
        explicit_used |= found.was_explicit
        layers.append(found.layer)
        identities.add(found.layer.storage.identity)
        child = found.layer
    if not explicit_used:
        _refuse_unused(layers[0], where)
    return tuple(findings)


def _refuse_unused(leaf: Layer, where: Where) -> None:
    """A parent given in so many words that fits nowhere is an error, even where another would do."""
    if not isinstance(leaf, Image) or leaf.header is None or not leaf.is_differencing:
        raise ChainError("it has no parent, and one was given", path=leaf.path)
    storage = where.folder.open(where.folder.real(where.parent or ""))
    with Layer(storage, 0, ""):
        found = read_metadata(storage, patches=pending(where.folder, storage)).footer.unique_id
    raise ParentMismatchError(
        f"the parent given, {storage.path}, has the id {unique_id.guid(found)}, which no layer"
        f" looks for; the image's parent has {unique_id.guid(leaf.header.parent_unique_id)}",
        path=leaf.path,
        expected=leaf.header.parent_unique_id,
        found=found,
    )


class Chain:
    """A disk as its leaf shows it. Positions and lengths are in bytes and need no alignment."""

    def __init__(self, layers: Sequence[Layer], findings: tuple[Finding, ...] = ()) -> None:
        self.layers = tuple(layers)
        self.findings = findings
        self.size = self.layers[0].size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def leaf(self) -> Layer:
        """The topmost layer."""
        return self.layers[0]

    @property
    def path(self) -> str:
        """The leaf's path."""
        return self.leaf.path

    def close(self) -> None:
        """Close every layer; what was written and not synced is up to the operating system."""
        for layer in self.layers:
            layer.close()

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extents]:
        """Return an iterator over where the bytes of a range come from, in order, by windows; no kind is PARENT."""
        if offset < 0:
            raise ValueError(f"offset {offset} is negative")
        stop = self.size if length is None else min(self.size, offset + length)
        return (resolve(self.layers, start, end) for start, end in windows(self.layers, offset, stop))

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes of a range, fewer where the disk ends."""
        if length < 0:
            raise ValueError(f"length {length} is negative")
        out = np.empty(max(0, min(length, self.size - offset)), np.uint8)
        self.read_into(offset, out.data)
        return out.tobytes()

    def read_into(self, offset: int, buffer: Buffer) -> int:
        """Fill a buffer from an offset; return the number of bytes, fewer where the disk ends."""
        if offset < 0:
            raise ValueError(f"offset {offset} is negative")
        out = np.frombuffer(memoryview(buffer).cast("B"), np.uint8)
        count = max(0, min(len(out), self.size - offset))
        first, last = -(-offset // SECTOR) * SECTOR, (offset + count) // SECTOR * SECTOR
        if first >= last:
            out[:count] = self._sectors_around(offset, count)
            return count
        out[: first - offset] = self._sectors_around(offset, first - offset)
        for start, stop in windows(self.layers, first, last):
            read_extents(resolve(self.layers, start, stop), self.layers, start, out[start - offset : stop - offset])
        out[last - offset : count] = self._sectors_around(last, offset + count - last)
        return count

    def _sectors_around(self, offset: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """Return the bytes of a range by way of the whole sectors that it touches."""
        start, stop = offset // SECTOR * SECTOR, -(-(offset + count) // SECTOR) * SECTOR
        out = np.empty(stop - start, np.uint8)
        if count:
            read_extents(resolve(self.layers, start, stop), self.layers, start, out)
        return out[offset - start : offset - start + count]

    def write(self, offset: int, data: Buffer, *, sync: bool = False) -> None:
        """Write bytes into the leaf; with `sync` each step of the write order is durable before the next.

        Sectors that are written in part take the rest from the layers below.

        Raises:
            ValueError: the range leaves the disk.
            ReadOnlyImageError: the chain was opened for reading, or a write failed before.

        """
        if not isinstance(self.leaf, Image):
            raise ReadOnlyImageError("raw files are not written", path=self.path)
        view = memoryview(data).cast("B")
        if offset < 0 or offset + len(view) > self.size:
            raise ValueError(f"[{offset}, {offset + len(view)}) is outside of the disk of {self.size} bytes")
        self.leaf.check_writable()
        head, tail = offset % SECTOR, -(offset + len(view)) % SECTOR
        if len(view) and (head or tail):
            parts = (self.read(offset - head, head), view, self.read(offset + len(view), tail))
            view = memoryview(b"".join(parts))
        write_sectors(self.leaf, offset - head, view, sync=sync)

    def sync(self) -> None:
        """Make everything written so far durable."""
        self.leaf.sync()

    def open_stream(self) -> io.RawIOBase:
        """Return the disk as a read-only, seekable file object; closing it leaves the chain open.

        Readers that take a few bytes at a time are far quicker through `io.BufferedReader`.
        """
        return ChainStream(self)


class ChainStream(io.RawIOBase):
    """A chain as a file object, for readers of file systems and partition tables."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self._chain = chain
        self._position = 0
        self.name = chain.path

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill the buffer from the current position; 0 at the end."""
        self._check_open()
        count = self._chain.read_into(self._position, buffer)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to a position, which may lie behind the end."""
        self._check_open()
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._chain.size}.get(whence)
        if base is None or base + offset < 0:
            raise ValueError(f"cannot seek to {offset} from {whence}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        self._check_open()
        return self._position

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed stream")


def windows(layers: Sequence[Layer], offset: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield [start, end) windows of a range, halved until their bitmaps are few enough to look at together."""
    blocks = [layer.block_size for layer in layers if isinstance(layer, Image) and layer.block_size]
    largest = min([_WINDOW_BYTES, *(size * _WINDOW_BLOCKS for size in blocks)])
    smallest = min(largest, SECTOR * 4096)
    length = largest
    while offset < stop:
        length = min(length * 2, largest)
        while length > smallest and _mapped(layers, offset, min(stop, offset + length)) > _WINDOW_SECTORS:
            length //= 2
        end = min(stop, offset + length)
        yield offset, end
        offset = end


def _mapped(layers: Sequence[Layer], offset: int, stop: int) -> int:
    return sum(layer.mapped_sectors(offset, min(stop, layer.size)) for layer in layers if offset < layer.size)


def resolve(layers: Sequence[Layer], start: int, stop: int) -> Extents:
    """Return where a window's bytes come from; PARENT where the last of the layers leaves them to its own."""
    stack = stack_of(layers, stop)
    if len(stack) >= _STACKED:
        done, result = len(stack), resolve_stacked(stack, start, stop)
    else:
        done, result = 1, _layer_extents(layers[0], 0, start, stop)
    for depth, layer in enumerate(layers[done:], done):
        if not (result.kind == Kind.PARENT).any():
            break
        result = extent.overlay(result, _layer_extents(layer, depth, start, stop))
    return result


def _layer_extents(layer: Layer, depth: int, start: int, stop: int) -> Extents:
    """Return one layer's answer; what lies behind its end is zeros, not its parent's."""
    parts = []
    if start < layer.size:
        parts.append(layer.resolve(start, min(stop, layer.size) - start))
    if stop > layer.size:
        parts.append(extent.single(max(start, layer.size), stop, Kind.ZERO))
    whole = parts[0] if len(parts) == 1 else extent.concatenate(parts)
    return whole.at_depth(depth)
