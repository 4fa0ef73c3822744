"""Looking at a chain and its surroundings for a merge: everything that can be checked is checked here.

Nothing is written. What stands in the way is gathered as the plan's obstacles, all of it at once.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.chain.chain import Chain, open_chain, resolve, windows
from vhdkit.chain.export import dynamic_layout
from vhdkit.errors import (
    CorruptImageError,
    Finding,
    MergeError,
    NotEnoughSpaceError,
    ReadOnlyImageError,
    SiblingsError,
    VhdError,
)
from vhdkit.format import layout
from vhdkit.format.bat import UNALLOCATED
from vhdkit.format.footer import DiskType
from vhdkit.format.layout import FOOTER_SIZE, SECTOR
from vhdkit.image import extent
from vhdkit.image.image import Image, Layer
from vhdkit.merging.growth import Growth, plan_growth
from vhdkit.merging.mover import Mover
from vhdkit.merging.plan import LayerState, MergePlan, Target, choose, missing_blocks
from vhdkit.merging.relatives import Relatives, find_relatives
from vhdkit.merging.relink import check_relink
from vhdkit.storage import paths
from vhdkit.storage.local import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from vhdkit.image.extent import Extents
    from vhdkit.storage.seam import Folder

_PIECE = 4 << 20
_SIZE_MISMATCH = 0xC03A0017
_INVALID_STATE = 0xC03A001C


def plan_merge(
    path: str,
    *,
    into: str | None = None,
    to: str | None = None,
    keep_sources: bool = False,
    search: Sequence[str] = (),
    parent_map: Mapping[str, str] | None = None,
    parent: str | None = None,
    folder: Folder | None = None,
) -> MergePlan:
    """Plan to fold an image into its parent, into the ancestor `into`, or with its whole chain into a new file `to`.

    The way parents are found is `open_chain`'s. Siblings, that is other images which read through a file that would
    change, are looked for in the chain's folders and in `search`, and below them.

    Raises:
        MergeError: there is nothing to merge into as asked.
        VhdError, OSError: the chain cannot be opened. Everything less is one of the plan's obstacles.

    """
    if into is not None and to is not None:
        raise MergeError("a merge goes into an ancestor or to a new file, not both", path=path)
    place = folder or LocalFolder()
    if to is not None and place.exists(to):
        raise FileExistsError(errno.EEXIST, "the file exists already; a merge never replaces one", to)
    with open_chain(path, search=search, parent_map=parent_map, parent=parent, folder=place) as chain:
        if to is not None:
            return _plan_new_file(chain, place, place.real(to), tuple(search))
        depth = _destination_depth(chain, place, into)
        return _Survey(chain, depth, place, tuple(search), keep_sources=keep_sources).plan()


def moves(layers: Sequence[Layer], depth: int, target: Target) -> Iterator[tuple[Extents, Extents]]:
    """Yield (writes, wipes) of the merge of `layers[:depth]`, a window of the disk at a time."""
    sources = layers[:depth]
    for start, stop in windows(layers[: depth + 1], 0, layers[0].size):
        yield choose(resolve(sources, start, stop), target)


def target_of(layers: Sequence[Layer], depth: int) -> Target:
    """Return what choosing sectors needs to know of the destination at that depth."""
    destination = layers[depth]
    if not isinstance(destination, Image):
        raise MergeError("it is a raw file, which is not merged into; use --to", path=destination.path)
    below = layers[depth + 1].size if depth + 1 < len(layers) else 0
    return Target(disk_type=destination.disk_type, size=destination.size, parent_size=below)


def _destination_depth(chain: Chain, folder: Folder, into: str | None) -> int:
    if len(chain.layers) == 1:
        message = "it has no parent to be merged into; name the child, which is merged into its parent"
        raise MergeError(message, path=chain.path)
    if into is None:
        return 1
    storage = folder.open(folder.real(into))
    identity = storage.identity
    storage.close()
    for depth, layer in enumerate(chain.layers[1:], 1):
        if layer.storage.identity == identity:
            return depth
    names = ", ".join(layer.path for layer in chain.layers[1:])
    raise MergeError(f"{into} is not one of its ancestors: {names}", path=chain.path)


class _Survey:
    """One chain looked over for a merge of its layers above `depth` into the one there."""

    def __init__(
        self, chain: Chain, depth: int, folder: Folder, search: tuple[str, ...], *, keep_sources: bool
    ) -> None:
        self.chain = chain
        self.depth = depth
        self.folder = folder
        self.search = search
        self.keep_sources = keep_sources
        self.target = target_of(chain.layers, depth)
        self.sources = chain.layers[:depth]
        self.images = [layer for layer in chain.layers[: depth + 1] if isinstance(layer, Image)]
        self.destination = self.images[-1]
        self.obstacles: list[VhdError] = []

    def plan(self) -> MergePlan:
        self._check_files()
        self._check_sizes()
        relatives = self._relatives()
        payload, added = self._measure()
        growth = self._growth()
        moved = 0
        if growth is not None:
            moved = len(growth.blocks)
            self.destination.floor = growth.end
        size = self.destination.storage.size()
        size_after = self._size_after(len(added) + moved)
        needed = max(0, size_after - size) + self._holes(added)
        free = self.folder.free_space(paths.dirname(self.destination.path))
        if needed > free:
            error = NotEnoughSpaceError(path=self.destination.path, needed=needed, available=free)
            self.obstacles.append(error)
        sources = tuple(layer.path for layer in self.sources)
        return MergePlan(
            sources=sources,
            destination=self.destination.path,
            is_new_file=False,
            destination_type=self.destination.disk_type,
            block_size=self.destination.block_size,
            payload_bytes=payload,
            blocks_added=added,
            blocks_moved=moved,
            virtual_size=max(self.chain.size, self.destination.size),
            virtual_size_before=self.destination.size,
            destination_size=size_after,
            destination_size_before=size,
            space_needed=needed,
            space_free=free,
            relatives=relatives,
            removals=() if self.keep_sources else sources,
            keep_sources=self.keep_sources,
            growth=growth,
            layers=states(self.chain),
            search=self.search,
            findings=self.chain.findings,
            obstacles=tuple(self.obstacles),
        )

    def _check_files(self) -> None:
        if not self.folder.may_write(self.destination.path):
            message = "it is to be merged into, and the file is read-only; allow writing to it first"
            self.obstacles.append(ReadOnlyImageError(message, path=self.destination.path))
        if self.destination.storage.link_count > 1:
            message = "the file has other names (hard links), whose content the merge would change as well; make it a"
            message += " file of its own (copy it, and rename the copy over it), or use --to"
            self.obstacles.append(MergeError(message, path=self.destination.path))
        for image in self.images:
            if image.footer.saved_state:
                message = "it belongs to a saved machine state; start and shut down the machine, or delete the state"
                self.obstacles.append(MergeError(message, path=image.path, windows_code=_INVALID_STATE))
            try:
                image.check_overlaps()
            except CorruptImageError as error:
                self.obstacles.append(error)
            directory = paths.dirname(image.path)
            if image is not self.destination and not self.keep_sources and not self.folder.may_write(directory):
                message = f"it could not be removed from {directory}; use --keep-sources"
                self.obstacles.append(ReadOnlyImageError(message, path=image.path))

    def _check_sizes(self) -> None:
        size, target = self.chain.size, self.destination
        if size < target.size:
            message = f"its disk of {size} bytes is smaller than that of {target.path}, {target.size}; use --to"
            self.obstacles.append(MergeError(message, path=self.chain.path, windows_code=_SIZE_MISMATCH))
        if size > target.size and target.is_fixed:
            message = f"its disk of {size} bytes is larger than the fixed one of {target.path}, {target.size}; use --to"
            self.obstacles.append(MergeError(message, path=self.chain.path, windows_code=_SIZE_MISMATCH))

    def _relatives(self) -> Relatives:
        """Look for relatives; what they stand in the way of becomes an obstacle."""
        relatives = find_relatives(self.chain, self.depth, self.folder, self.search)
        for relink in relatives.relinks:
            try:
                check_relink(self.folder, relink)
            except VhdError as error:
                self.obstacles.append(error)
        for path in relatives.unknown:
            message = "it cannot be read, so that it cannot be told whether the merge would ruin it; make it readable"
            self.obstacles.append(MergeError(f"{message}, or move it elsewhere", path=path))
        harmed = list(relatives.of_sources)
        if relatives.of_destination and not changes_nothing(self.chain, self.depth):
            harmed += relatives.of_destination
        if harmed:
            changed = ", ".join(layer.path for layer in self.images[1:])
            message = (
                f"the merge would ruin {len(harmed)} other image(s) that read through {changed}: {', '.join(harmed)}."
                " Use --to NEWFILE, which changes nothing; or turn each of them into an image of its own first"
                " (vhdkit convert FILE NEWFILE)"
            )
            self.obstacles.append(SiblingsError(message, path=self.chain.path, siblings=tuple(harmed)))
        return relatives

    def _measure(self) -> tuple[int, NDArray[np.uint32]]:
        """Return the payload in bytes and the blocks that the destination lacks."""
        payload, added, last = 0, [np.empty(0, np.uint32)], -1
        for writes, _ in moves(self.chain.layers, self.depth, self.target):
            payload += writes.total
            if self.destination.is_fixed or not len(writes):
                continue
            size = self.destination.block_size
            first, stop = int(writes.start[0]) // size, -(-int(writes.stop[-1]) // size)
            missing = missing_blocks(writes, self.destination.table.entries(first, stop), first, size)
            # A block that the window's edge cuts is met twice.
            missing = missing[missing > last]
            if len(missing):
                last = int(missing[-1])
                added.append(missing.astype(np.uint32))
        return payload, np.concatenate(added)

    def _holes(self, added: NDArray[np.uint32]) -> int:
        """Return the bytes of holes in a sparse file that the merge will fill."""
        storage = self.destination.storage
        if storage.allocated_size >= storage.size():
            return 0
        mover = Mover(self.chain.layers, self.destination, added, lambda _count: None)
        return sum(
            storage.hole_bytes(offset, length)
            for writes, wipes in moves(self.chain.layers, self.depth, self.target)
            for offset, length in mover.places_in_old_blocks(writes, wipes)
        )

    def _growth(self) -> Growth | None:
        image, size = self.destination, self.chain.size
        if size <= image.size or image.is_fixed:
            return None
        entries = -(-size // image.block_size)
        if entries > layout.MAX_TABLE_ENTRIES:
            message = f"{entries} blocks of {image.block_size} bytes are too many; use --to"
            self.obstacles.append(MergeError(message, path=image.path))
            return None
        growth = plan_growth(image, size)
        if growth is not None and image.header is not None and image.header.table_offset < image.footer.data_offset:
            message = "its BAT lies before its dynamic header and has no room to grow; use --to"
            self.obstacles.append(MergeError(message, path=image.path))
        return growth

    def _size_after(self, new_blocks: int) -> int:
        if self.destination.is_fixed:
            return self.destination.storage.size()
        try:
            return self.destination.file_end_for(new_blocks) + FOOTER_SIZE
        except OSError as error:
            self.obstacles.append(MergeError(f"{error.strerror}; use --to", path=self.destination.path))
            return self.destination.storage.size()


def changes_nothing(chain: Chain, depth: int) -> bool:
    """Whether the destination shows already what the sources hold, as after a merge that was cut off late.

    Then nobody who reads through the destination is harmed by doing it again. Sources that hold nothing do not count:
    there is no sign of an earlier merge then.
    """
    layers, destination = chain.layers, Chain(chain.layers[depth:])
    if chain.size != destination.size:
        return False
    sources, held = Chain(layers), 0
    for writes, wipes in moves(layers, depth, target_of(layers, depth)):
        both = extent.split(extent.concatenate([writes, wipes]), _PIECE)
        held += writes.total
        for here in both:
            if sources.read(here.start, here.length) != destination.read(here.start, here.length):
                return False
    return held > 0


def states(chain: Chain) -> tuple[LayerState, ...]:
    """Return the chain's files as they are now, leaf first."""
    return tuple(
        LayerState(
            path=layer.path,
            identity=layer.storage.identity,
            unique_id=layer.unique_id if isinstance(layer, Image) else b"",
            file_size=layer.storage.size(),
            mtime=layer.storage.mtime,
        )
        for layer in chain.layers
    )


def _plan_new_file(chain: Chain, folder: Folder, to: str, search: tuple[str, ...]) -> MergePlan:
    """Plan to write the leaf's view into a new dynamic image; no input changes."""
    leaf = chain.leaf
    block_size = (leaf.block_size if isinstance(leaf, Image) else 0) or layout.DEFAULT_BLOCK_SIZE
    size, added, payload = dynamic_layout(chain, block_size)
    free = folder.free_space(paths.dirname(to))
    obstacles: list[VhdError] = []
    if not folder.may_write(paths.dirname(to)):
        obstacles.append(ReadOnlyImageError("its folder may not be written", path=to))
    if size > free:
        obstacles.append(NotEnoughSpaceError(path=to, needed=size, available=free))
    if size // SECTOR >= UNALLOCATED:
        obstacles.append(MergeError("the file would pass 2 TiB, which a BAT cannot address", path=to))
    findings: tuple[Finding, ...] = chain.findings
    return MergePlan(
        sources=tuple(layer.path for layer in chain.layers),
        destination=to,
        is_new_file=True,
        destination_type=DiskType.DYNAMIC,
        block_size=block_size,
        payload_bytes=payload,
        blocks_added=added,
        blocks_moved=0,
        virtual_size=chain.size,
        virtual_size_before=0,
        destination_size=size,
        destination_size_before=0,
        space_needed=size,
        space_free=free,
        relatives=Relatives(),
        removals=(),
        keep_sources=True,
        growth=None,
        layers=states(chain),
        search=search,
        findings=findings,
        obstacles=tuple(obstacles),
    )
