"""Reading a disk through its layers, and writing to the topmost.

A byte comes from the first layer, from the leaf down, that holds it; what none holds is zeros. A layer that is
shorter than those above it hides what lies below its end: zeros are read there (docs/reference/vhd.md B14).

Ranges are worked through in windows that hold a bounded number of bitmap sectors, so that memory depends
neither on the size of the disk nor on how scattered its data are, and holes cost next to nothing.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal, overload
from weakref import WeakSet

from vhdkit.arguments import checked
from vhdkit.chain.disk_view import DiskView
from vhdkit.chain.folder_index import FolderIndex
from vhdkit.chain.parent_check import compare_link
from vhdkit.chain.parent_search import ParentSearch, find_parent
from vhdkit.chain.stream import BufferedReader, BufferedStream, ChainStream, open_stream
from vhdkit.chain.unfinished_merges import unfinished_merges
from vhdkit.chain.write_access import claim_for_writing
from vhdkit.debug_log import debug
from vhdkit.disk import unique_id
from vhdkit.disk.image import DiskKind
from vhdkit.errors import ChainError, ParentMismatchError, ReadOnlyImageError
from vhdkit.findings import Finding
from vhdkit.formats import as_writable, check_pair, open_image, read_summary, step_findings
from vhdkit.journal.ended_view import ended_views
from vhdkit.journal.merge_journal import read_journal
from vhdkit.journal.renamed_files import journal_left_behind
from vhdkit.options import ParentPolicy
from vhdkit.storage.handle import Handle, closing_all_on_error
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.search_scope import SearchScope
from vhdkit.units import as_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from typing_extensions import Buffer

    from vhdkit.disk.image import Image
    from vhdkit.findings import Finding
    from vhdkit.storage.protocols import Folder
    from vhdkit.units import StrPath

# blktap stops at 30 layers, Hyper-V at 50 snapshots; beyond this a chain is a mistake or an attack.
MAX_LAYERS = 1024


@checked
def open_chain(
    path: StrPath,
    *,
    writable: bool = False,
    search: Sequence[StrPath] = (),
    parent_map: Mapping[str, StrPath] | None = None,
    parent: StrPath | None = None,
    accept_id_mismatch: bool = False,
    lock: bool = True,
    break_children: bool = False,
    folder: Folder | None = None,
) -> Chain:
    """Open an image and everything below it, every link verified by unique id.

    Parents are looked for in the image's own folder and in `search`; `parent_map` says which local folder stands for
    a folder that absolute paths name (`{"C:\\\\vms": "/mnt/vms"}`); `parent` is the parent of the image, or of the
    layer further down that it fits. A raw parent is only taken if `parent` names it. With `accept_id_mismatch` a file
    that is named as a parent is read through though it has another id, if none has the right one, and the findings say
    so. With `writable` the leaf can be written; the other layers never are.

    A leaf to be written must not be read through by other images, which are looked for in its folder, below it and just
    above, and in `search`. With `break_children` it may be: it gets another unique id before this returns, so that all
    of them say ever after that their parent is another.

    Until the chain is closed its files are held: shared, and the leaf exclusively if it can be written. They are locked
    before their tables are read. With `lock` false nobody is asked, and what others change meanwhile is read half old
    and half new.

    Raises:
        ValueError: another id is to be accepted, and the leaf to be written.
        ImageInUseError: another program, or another chain of this one, holds a layer so that both cannot be.
        CorruptImageError, UnsupportedImageError: a layer is no VHD that can be read safely.
        ParentNotFoundError, ParentMismatchError, ParentRefusedError, ChainLoopError: a parent cannot be had.
        ReadOnlyImageError: the leaf should be written and may not be.
        SiblingsError: the leaf should be written, and other images read through it. Nothing was changed.
        MergeError: the leaf should be written, and it is unknown whether a file near it reads through it.

    """
    if writable and accept_id_mismatch:
        raise ValueError("a chain whose parent has another id can only be read: rebase the image first")
    place = folder or LocalFolder()
    policy = ParentPolicy.of(search, parent_map, parent, accept_id_mismatch=accept_id_mismatch)
    if writable:
        return _open_writable(as_text(path), policy, place, lock=lock, break_children=break_children)
    return open_chain_with(as_text(path), policy, place, lock=lock)


def open_chain_with(path: str, policy: ParentPolicy, folder: Folder, *, lock: bool = True) -> Chain:
    """Open an image and everything below it for reading, with parents where a policy allows them; see `open_chain`."""
    with _leaf_opened(path, folder, exclusive=False if lock else None) as layers:
        findings = _open_parents(layers, policy, folder, lock=lock)
        return Chain(layers, findings)


def _open_writable(path: str, policy: ParentPolicy, folder: Folder, *, lock: bool, break_children: bool) -> Chain:
    with _leaf_opened(path, folder, writable=True, exclusive=True if lock else None) as layers:
        _check_leaf(layers[0])
        findings = _open_parents(layers, policy, folder, lock=lock)
        _refuse_undo_image(layers, folder)
        leaf = as_writable(layers[0])
        findings += claim_for_writing(leaf, SearchScope(folder, policy.search), break_children=break_children)
        leaf.finish_step(folder)
        return Chain(layers, findings)


@contextmanager
def _leaf_opened(path: str, folder: Folder, *, writable: bool = False, exclusive: bool | None) -> Iterator[list[Image]]:
    """Open the leaf, and lend the layers, for the others to be appended; all are closed if the block raises."""
    layers = [open_image(path, writable=writable, exclusive=exclusive, finish_step=False, folder=folder)]
    with closing_all_on_error(layers):
        yield layers


def _refuse_undo_image(layers: Sequence[Image], folder: Folder) -> None:
    """An undo image must stay what the merge has made it."""
    leaf, below = layers[0], layers[1:2]
    journal = read_journal(folder, below[0].path) if below else None
    if below and journal is None:
        journal = journal_left_behind(folder, below[0].path, below[0].unique_id)
    if journal is None or journal.dropping:
        return
    if journal.begin.undo_id == leaf.unique_id.hex():
        message = f"it is kept for taking back a merge: {journal.status}"
        raise ReadOnlyImageError(message, path=leaf.path, hint=journal.hint)


def _check_leaf(leaf: Image) -> None:
    if leaf.is_saved_state:
        raise ReadOnlyImageError("it belongs to a saved machine state, which would no longer fit", path=leaf.path)
    leaf.check_sound()


def _open_parents(layers: list[Image], policy: ParentPolicy, folder: Folder, *, lock: bool) -> tuple[Finding, ...]:
    """Append the layers below the leaf; return what was odd about any of them."""
    child, parents = layers[0], ParentSearch(folder, policy, lock=lock, index=FolderIndex(folder))
    findings = [*step_findings(folder, child.storage), *child.findings]
    identities = {child.storage.identity}
    while child.parent is not None:
        if len(layers) == MAX_LAYERS:
            raise ChainError(f"the chain has more than {MAX_LAYERS} layers", path=layers[0].path)
        found = find_parent(child, parents, identities)
        debug("chain", "%s: its parent is %s", child.path, found.layer.path)
        findings += found.findings
        layers.append(found.layer)
        check_pair(child, found.layer)
        findings += compare_link(child, found.layer)
        if found.was_explicit:
            parents = parents.without_named_parent()
        identities.add(found.layer.storage.identity)
        child = found.layer
        findings += child.findings
    if parents.policy.parent is not None:
        _refuse_unused(layers[0], parents.policy.parent, folder)
    findings += unfinished_merges(folder, {layer.path: layer.unique_id for layer in layers})
    findings += ended_views(folder, [layer for layer in layers if layer.kind is not DiskKind.RAW])
    return tuple(findings)


def _refuse_unused(leaf: Image, parent: str, folder: Folder) -> None:
    """A parent given in so many words that fits nowhere is an error, even where another would do."""
    if leaf.parent is None:
        raise ChainError("it has no parent, and one was given", path=leaf.path)
    with folder.open(folder.real(parent)) as storage:
        found = read_summary(folder, storage).unique_id
    raise ParentMismatchError(
        f"the parent given, {storage.path}, has the id {unique_id.guid(found)}, which no layer"
        f" looks for; the image's parent has {unique_id.guid(leaf.parent.unique_id)}",
        path=leaf.path,
        expected=leaf.parent.unique_id,
        found=found,
    )


class Chain(Handle, DiskView):
    """A disk as its leaf shows it, through layers that it owns.

    Positions and lengths are in bytes and need no alignment.

    It is a context manager. Once it is closed, every method but `close` raises ValueError. One that is dropped without
    being closed warns (ResourceWarning) and closes its files, as a file object does.
    """

    handle_kind = "chain"

    def __init__(self, layers: Sequence[Image], findings: tuple[Finding, ...] = ()) -> None:
        super().__init__(layers)
        self.findings = findings
        # Buffered streams that write: what they hold must reach the leaf before it is closed.
        self._streams: WeakSet[BufferedStream] = WeakSet()

    def __repr__(self) -> str:
        """Return the leaf's path, the number of layers, the size, and whether it is closed."""
        closed = " (closed)" if self._closed else ""
        return f"<Chain {self.path!r}: {len(self.layers)} layers, {self.size} bytes{closed}>"

    def __len__(self) -> int:
        """Return the size of the disk in bytes."""
        return self.size

    def __getitem__(self, where: slice) -> bytes:
        """Return the bytes of a slice of the disk, as `chain[510:512]`; a step is refused (ValueError)."""
        if not isinstance(where, slice):
            raise TypeError("a chain is read by slices, such as chain[510:512]")
        start, stop, step = where.indices(self.size)
        if step != 1:
            raise ValueError(f"a chain is read in one piece: a step of {step} is refused")
        return self.read(start, max(0, stop - start))

    # Without it a chain would be iterated over by numbers, byte by byte.
    __iter__ = None

    @property
    def path(self) -> str:
        """The leaf's path."""
        return self.leaf.path

    def close(self) -> None:
        """Flush the streams that are open, and close every layer.

        What was written and not synced is up to the operating system. The layers are closed even if a flush fails.
        """
        with ExitStack() as closing:
            for layer in reversed(self.layers):
                closing.callback(layer.close)
            closing.callback(self._mark_closed)
            for stream in tuple(self._streams):
                closing.callback(_flush, stream)

    def _mark_closed(self) -> None:
        self._closed = True

    def check_readable(self) -> None:
        """Refuse a chain of which a layer's blocks share bytes, which reading would do as well, but later.

        Raises:
            CorruptImageError: naming the layer and two of its blocks.

        """
        self.check_open()
        for layer in self.layers:
            layer.check_readable()

    def write(self, offset: int, data: Buffer, *, sync: bool = False) -> None:
        """Write bytes into the leaf; with `sync` each step of the write order is durable before the next.

        Sectors that are written in part take the rest from the layers below.

        Raises:
            ValueError: the range leaves the disk.
            ReadOnlyImageError: the chain was opened for reading, or a write failed before.

        """
        self.check_open()
        leaf = as_writable(self.leaf)
        view = memoryview(data).cast("B")
        if offset < 0 or offset + len(view) > self.size:
            raise ValueError(f"[{offset}, {offset + len(view)}) is outside of the disk of {self.size} bytes")
        leaf.check_writable()
        sector = leaf.logical_sector_size
        head, tail = offset % sector, -(offset + len(view)) % sector
        if len(view) and (head or tail):
            parts = (self.read(offset - head, head), view, self.read(offset + len(view), tail))
            view = memoryview(b"".join(parts))
        try:
            leaf.write(offset - head, view, sync=sync)
        except BaseException:
            self._index.clear()
            raise
        self._index.update(offset - head, len(view))

    def sync(self) -> None:
        """Make everything written so far durable, also what open streams hold in their buffers."""
        self.check_open()
        for stream in tuple(self._streams):
            _flush(stream)
        self.leaf.sync()

    @overload
    def open_stream(self, *, buffered: Literal[False], writable: bool | None = None) -> ChainStream: ...
    @overload
    def open_stream(
        self, *, buffered: Literal[True] = ..., writable: bool | None = None
    ) -> BufferedReader | BufferedStream: ...

    def open_stream(
        self, *, buffered: bool = True, writable: bool | None = None
    ) -> ChainStream | BufferedReader | BufferedStream:
        """Return the disk as a seekable file object; closing it leaves the chain open.

        It is buffered unless `buffered` is false, and writable when the chain is, unless `writable` says otherwise.

        Raises:
            ReadOnlyImageError: `writable` is true and the chain was opened for reading.

        """
        self.check_open()
        is_writable = self.leaf.storage.writable if writable is None else writable
        if is_writable:
            self.leaf.check_writable()
        stream = open_stream(self, buffered=buffered, writable=is_writable)
        if isinstance(stream, BufferedStream):
            self._streams.add(stream)
        return stream


def _flush(stream: BufferedStream) -> None:
    if not stream.closed:
        stream.flush()
