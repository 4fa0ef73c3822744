"""What a chain of disks means, as plain arrays; and programs over chains, as data.

Half of the tests' oracle (tests/plainvhd.py is the other): written from docs/reference/vhd.md 1.7, 3.1, 3.2 and
B14, never from vhdkit. Depths count from the leaf, which is 0. tests/strategies.py draws programs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np

from tests.plainbuild import ImageSpec, build, locator
from tests.plainvhd import DIFFERENCING, DYNAMIC, FIXED, SECTOR, ZERO_ID, ZERO_SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt


SMALL_BLOCK: Final = 4096


class Kind(StrEnum):
    """The kinds of layer; a raw file can only be a base (2.5)."""

    RAW = "raw"
    FIXED = "fixed"
    DYNAMIC = "dynamic"
    DIFFERENCING = "differencing"


# Programs


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """Make the base."""

    kind: Kind
    sector_count: int
    block_size: int = SMALL_BLOCK


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Write to the leaf at any byte. Fill 0 writes zeros; any other value a pattern that tells positions."""

    offset: int
    length: int
    fill: int

    @property
    def data(self) -> bytes:
        """The bytes to write: never zero unless all are."""
        if self.fill == 0:
            return bytes(self.length)
        position = np.arange(self.offset, self.offset + self.length, dtype=np.int64)
        return ((self.fill + position + 31 * (position // SECTOR)) % 255 + 1).astype(np.uint8).tobytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Freeze the leaf: a differencing child becomes the leaf. A size of None is the parent's."""

    sector_count: int | None = None
    block_size: int = SMALL_BLOCK


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """Merge the layers of depths `depth_from` to `depth_to` - 1 into `depth_to`; `keep` leaves them in place.

    Layers above `depth_from` are relinked to the destination (unless kept).
    """

    depth_from: int = 0
    depth_to: int = 1
    keep: bool = False


Operation = Create | Write | Snapshot | Merge
Program = tuple[Operation, ...]


class RefusedError(Exception):
    """The operation must not be done; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Shape:
    """As much of a layer as decides what is refused."""

    kind: Kind
    sector_count: int
    block_size: int


def merge_refusal(shapes: Sequence[Shape], merge: Merge) -> str | None:
    """Say why a merge must be refused, or None (3.6)."""
    if not 0 <= merge.depth_from < merge.depth_to < len(shapes):
        return "no such layers"
    destination, top = shapes[merge.depth_to], shapes[merge.depth_from]
    if top.sector_count < destination.sector_count:
        return "the child is smaller than the destination"
    if top.sector_count > destination.sector_count and destination.kind in {Kind.FIXED, Kind.RAW}:
        return "a fixed destination cannot grow"
    return None


def shapes_after(shapes: list[Shape], operation: Operation) -> list[Shape]:
    """Follow the shapes through one operation that is not refused."""
    match operation:
        case Snapshot():
            count = operation.sector_count or shapes[0].sector_count
            return [Shape(Kind.DIFFERENCING, count, operation.block_size), *shapes]
        case Merge():
            top, destination = shapes[operation.depth_from], shapes[operation.depth_to]
            merged = replace(destination, sector_count=top.sector_count)
            above = shapes[: operation.depth_to if operation.keep else operation.depth_from]
            return [*above, merged, *shapes[operation.depth_to + 1 :]]
        case _:
            return shapes


# The model


@dataclass(slots=True)
class Layer:
    """One disk: what it holds (a bool for each sector) and the bytes, of shape (sectors, 512).

    Sectors that are not held are zero in `data`.
    """

    kind: Kind
    block_size: int
    held: npt.NDArray[np.bool_]
    data: npt.NDArray[np.uint8]

    @classmethod
    def empty(cls, kind: Kind, sector_count: int, block_size: int) -> Layer:
        """Return a new layer: fixed and raw disks hold every sector from the start."""
        held = np.full(sector_count, kind in {Kind.FIXED, Kind.RAW})
        return cls(kind, block_size, held, np.zeros((sector_count, SECTOR), dtype=np.uint8))

    @property
    def sector_count(self) -> int:
        """Sectors of the virtual disk."""
        return len(self.held)

    @property
    def shape(self) -> Shape:
        """Kind and sizes."""
        return Shape(self.kind, self.sector_count, self.block_size)

    def copy(self) -> Layer:
        """Return an independent copy."""
        return Layer(self.kind, self.block_size, self.held.copy(), self.data.copy())

    def grow(self, sector_count: int) -> None:
        """Make the disk larger; what it reads as past its old end stays zero.

        A differencing disk hides its parent there (B14), so the new sectors must be held: with clear bits a
        longer parent would come into view.
        """
        added = sector_count - self.sector_count
        self.held = np.concatenate([self.held, np.full(added, self.kind is Kind.DIFFERENCING)])
        self.data = np.concatenate([self.data, np.zeros((added, SECTOR), dtype=np.uint8)])


class ModelChain:
    """A chain of layers, leaf first."""

    def __init__(self, layers: Sequence[Layer] = ()) -> None:
        self.layers = list(layers)

    @classmethod
    def run(cls, program: Sequence[Operation]) -> ModelChain:
        """Do a whole program; operations that must be refused change nothing."""
        chain = cls()
        for operation in program:
            if chain.refusal(operation) is None:
                chain.apply(operation)
        return chain

    @property
    def shapes(self) -> list[Shape]:
        """The layers' kinds and sizes, leaf first."""
        return [layer.shape for layer in self.layers]

    def copy(self) -> ModelChain:
        """Return an independent copy."""
        return ModelChain([layer.copy() for layer in self.layers])

    # Operations

    def refusal(self, operation: Operation) -> str | None:
        """Say why an operation must be refused, or None."""
        return merge_refusal(self.shapes, operation) if isinstance(operation, Merge) else None

    def apply(self, operation: Operation) -> None:
        """Do one operation, or raise RefusedError."""
        match operation:
            case Create():
                self.layers = [Layer.empty(operation.kind, operation.sector_count, operation.block_size)]
            case Write():
                self.write(operation.offset, operation.data)
            case Snapshot():
                self.snapshot(operation)
            case Merge():
                self.merge(operation)

    def write(self, offset: int, data: bytes) -> None:
        """Write to the leaf; a sector written in part takes its rest from the view (1.7)."""
        if not data:
            return
        leaf, end = self.layers[0], offset + len(data)
        first, last = offset // SECTOR, (end - 1) // SECTOR
        assert 0 <= offset < end <= leaf.sector_count * SECTOR, "a write outside the disk"
        touched = self._top_down(0)[1][first : last + 1].reshape(-1)
        touched[offset - first * SECTOR : end - first * SECTOR] = np.frombuffer(data, dtype=np.uint8)
        leaf.data[first : last + 1] = touched.reshape(-1, SECTOR)
        leaf.held[first : last + 1] = True

    def snapshot(self, operation: Snapshot) -> None:
        """Put an empty differencing child on top (2.7)."""
        count = operation.sector_count or self.layers[0].sector_count
        self.layers.insert(0, Layer.empty(Kind.DIFFERENCING, count, operation.block_size))

    def merge(self, operation: Merge) -> None:
        """Fold the sources into the destination: for every sector, what the topmost of them holds (3.1)."""
        refusal = self.refusal(operation)
        if refusal is not None:
            raise RefusedError(refusal)
        moved, data = self.moved(operation)
        destination = self.layers[operation.depth_to]
        destination.grow(len(moved))
        destination.held |= moved
        destination.data[moved] = data[moved]
        if not operation.keep:
            del self.layers[operation.depth_from : operation.depth_to]

    # What is read

    def view(self, depth: int = 0) -> npt.NDArray[np.uint8]:
        """Return all bytes of the disk at `depth`, as its chain reads."""
        return self._top_down(depth)[1].reshape(-1)

    def read(self, offset: int, length: int, depth: int = 0) -> bytes:
        """Return a stretch of the view."""
        return self.view(depth)[offset : offset + length].tobytes()

    def sources(self, depth: int = 0) -> npt.NDArray[np.int64]:
        """Return the depth each sector of the view at `depth` is read from, -1 where none holds it."""
        return self._top_down(depth)[0]

    def sector(self, number: int, depth: int = 0) -> bytes:
        """Read one sector in the plainest way: the twin of `view`."""
        for layer in self.layers[depth:]:
            if number >= layer.sector_count:
                return ZERO_SECTOR
            if layer.held[number]:
                return bytes(layer.data[number])
        return ZERO_SECTOR

    def moved(self, merge: Merge) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
        """Return which sectors of the destination a merge writes, and with what (all sectors of the view).

        Besides what the sources hold these are zeros where a short source hides the destination (B14).
        """
        source, data = self._top_down(merge.depth_from, merge.depth_to)
        ends = [layer.sector_count for layer in self.layers[merge.depth_from : merge.depth_to]]
        hidden = np.arange(len(source)) >= min(ends)
        return (source >= 0) | hidden, data

    def _top_down(self, top: int, stop: int | None = None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """Search the layers from `top` until before `stop` for the first that holds each sector."""
        count = self.layers[top].sector_count
        source = np.full(count, -1, dtype=np.int64)
        data = np.zeros((count, SECTOR), dtype=np.uint8)
        undecided = np.ones(count, dtype=np.bool_)
        for depth, layer in enumerate(self.layers[top:stop], start=top):
            undecided[layer.sector_count :] = False  # zeros beyond a link's end: look no further (B14)
            shared = min(count, layer.sector_count)
            found = np.flatnonzero(undecided[:shared] & layer.held[:shared])
            source[found], data[found], undecided[found] = depth, layer.data[found], False
        return source, data

    # Laws

    def assert_sound(self) -> None:
        """Only the base has no parent, fixed disks hold all, and what is not held is zero."""
        kinds = [layer.kind for layer in self.layers]
        assert kinds[-1] is not Kind.DIFFERENCING
        assert all(kind is Kind.DIFFERENCING for kind in kinds[:-1])
        for layer in self.layers:
            assert layer.held.all() or layer.kind not in {Kind.FIXED, Kind.RAW}
            assert not layer.data[~layer.held].any()

    def assert_merge_keeps_views(self, merge: Merge) -> None:
        """A merge leaves what the top source, and every layer above it, reads as unchanged (P1)."""
        after = self.copy()
        after.merge(merge)
        removed = 0 if merge.keep else merge.depth_to - merge.depth_from
        for depth in range(merge.depth_from + 1):
            assert np.array_equal(self.view(depth), after.view(depth)), f"depth {depth} reads otherwise"
        merged = after.view(merge.depth_to - removed)
        assert np.array_equal(self.view(merge.depth_from), merged), "the merged disk reads otherwise"

    def assert_merge_twice_is_once(self, merge: Merge) -> None:
        """A merge done again over kept sources changes nothing (P4)."""
        once = self.copy()
        once.merge(replace(merge, keep=True))
        twice = once.copy()
        twice.merge(replace(merge, keep=True))
        for left, right in zip(once.layers, twice.layers, strict=True):
            assert np.array_equal(left.held, right.held)
            assert np.array_equal(left.data, right.data)

    def assert_levels_compose(self, merge: Merge) -> None:
        """A merge of many levels reads as one level after the other does, where that is not refused."""
        at_once, stepwise = self.copy(), self.copy()
        at_once.merge(replace(merge, keep=False))
        for depth in range(merge.depth_to, merge.depth_from, -1):
            step = Merge(depth_from=depth - 1, depth_to=depth)
            if stepwise.refusal(step) is not None:
                return
            stepwise.merge(step)
        assert np.array_equal(at_once.view(), stepwise.view())


# Chains as files


def specs(chain: ModelChain) -> Iterator[tuple[str, ImageSpec | bytes]]:
    """Describe every layer as a file, leaf first: names, ids and locators fit; a raw base is its bytes."""
    names = [_file_name(chain, depth) for depth in range(len(chain.layers))]
    for depth, layer in enumerate(chain.layers):
        if layer.kind is Kind.RAW:
            yield names[depth], layer.data.tobytes()
            continue
        spec = ImageSpec(
            disk_type={Kind.FIXED: FIXED, Kind.DYNAMIC: DYNAMIC}.get(layer.kind, DIFFERENCING),
            size=layer.sector_count * SECTOR,
            block_size=layer.block_size,
            sectors={int(number): layer.data[number].tobytes() for number in np.flatnonzero(layer.held)},
            unique_id=_unique_id(chain, depth),
        )
        yield names[depth], spec if layer.kind is not Kind.DIFFERENCING else _link(chain, spec, depth, names)


def _link(chain: ModelChain, spec: ImageSpec, depth: int, names: list[str]) -> ImageSpec:
    parent = names[depth + 1]
    is_raw = chain.layers[depth + 1].kind is Kind.RAW
    return replace(
        spec,
        parent_id=ZERO_ID if is_raw else _unique_id(chain, depth + 1),
        parent_name=parent,
        locators=(locator(0, b"W2ku", f"C:\\vms\\{parent}"), locator(1, b"W2ru", f".\\{parent}")),
    )


def _file_name(chain: ModelChain, depth: int) -> str:
    suffix = {Kind.RAW: "img", Kind.DIFFERENCING: "avhd"}.get(chain.layers[depth].kind, "vhd")
    return f"layer-{len(chain.layers) - 1 - depth}.{suffix}"


def _unique_id(chain: ModelChain, depth: int) -> bytes:
    return b"vhdkit-model-" + (len(chain.layers) - depth).to_bytes(3, "big")


def write_files(
    chain: ModelChain, folder: Path, vary: Callable[[ImageSpec], ImageSpec] = lambda spec: spec
) -> list[Path]:
    """Write every layer with the tests' own writer, each after `vary`; return the paths, leaf first."""
    paths = []
    for name, spec in specs(chain):
        path = folder / name
        path.write_bytes(spec if isinstance(spec, bytes) else build(vary(spec)))
        paths.append(path)
    return paths
