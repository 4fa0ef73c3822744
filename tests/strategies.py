"""What hypothesis draws: programs over chains (tests/model.py) and single files (tests/plainbuild.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

from hypothesis import strategies as st

from tests.model import (
    SMALL_BLOCK,
    Create,
    Kind,
    Merge,
    Operation,
    Program,
    Shape,
    Snapshot,
    Write,
    merge_refusal,
    shapes_after,
)
from tests.plainbuild import ImageSpec, locator
from tests.plainvhd import DIFFERENCING, DYNAMIC, FIXED, PAGE, SECTOR

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK_SIZES: Final = (SMALL_BLOCK, 8 * SMALL_BLOCK, 512 * 1024, 2 * 1024 * 1024)
# One sector a block, and a sector bitmap of more than one sector (1.7).
ODD_BLOCK_SIZES: Final = (SECTOR, 4 * 1024 * 1024)
LOCATOR_UNITS: Final[tuple[Literal["bytes", "sectors"], ...]] = ("bytes", "sectors")
sector_data: Final = st.integers(0, 255).map(lambda value: bytes([value]) * SECTOR)


@st.composite
def _sector_counts(draw: st.DrawFn, block_size: int) -> int:
    """Sizes around whole numbers of blocks, and tiny ones."""
    per_block = block_size // SECTOR
    blocks = draw(st.integers(0, 2 if per_block > 128 else 5))
    extra = draw(st.sampled_from([0, 1, -1, per_block // 2, per_block - 2]) | st.integers(0, per_block - 1))
    return max(1, blocks * per_block + extra)


@st.composite
def writes(draw: st.DrawFn, shape: Shape) -> Write:
    """Writes at seams: the first and last sector of the disk and of its blocks, whole sectors and parts."""
    size, per_block = shape.sector_count * SECTOR, shape.block_size // SECTOR
    block = draw(st.integers(0, (shape.sector_count - 1) // per_block))
    seam = draw(st.sampled_from([block * per_block, (block + 1) * per_block, shape.sector_count]))
    sector = min(max(seam + draw(st.integers(-2, 2)), 0), shape.sector_count - 1)
    offset = sector * SECTOR + draw(st.sampled_from([0, 0, 0, 1, SECTOR - 1]) | st.integers(0, SECTOR - 1))
    lengths = [1, SECTOR - 1, SECTOR, SECTOR + 1, 3 * SECTOR, shape.block_size, size]
    length = draw(st.sampled_from(lengths) | st.integers(1, 4 * SECTOR))
    fill = draw(st.just(0) | st.integers(1, 255) | st.integers(1, 255))
    return Write(offset=offset, length=min(length, size - offset), fill=fill)


@st.composite
def snapshots(draw: st.DrawFn, parent: Shape, block_sizes: Sequence[int], *, shorter: bool) -> Snapshot:
    """Children of the parent's size mostly, else larger (and, if allowed, smaller)."""
    # A parent without blocks gives its child no block size (2.7), so that one is always named.
    block_size = draw(st.just(parent.block_size) | st.sampled_from(block_sizes))
    if draw(st.integers(0, 2)):
        return Snapshot(block_size=block_size)
    count = draw(_sector_counts(parent.block_size))
    if shorter:
        return Snapshot(sector_count=count, block_size=block_size)
    return Snapshot(sector_count=parent.sector_count + min(count, 4096), block_size=block_size)


def merges(shapes: Sequence[Shape], *, refused: bool) -> st.SearchStrategy[Merge]:
    """Merges of any stretch of layers, those that must be refused only if asked for."""
    possible = [
        Merge(depth_from=top, depth_to=bottom, keep=keep)
        for bottom in range(1, len(shapes))
        for top in range(bottom)
        for keep in (False, True)
    ]
    fitting = [merge for merge in possible if refused or merge_refusal(shapes, merge) is None]
    return st.sampled_from(fitting) if fitting else st.nothing()


@st.composite
def programs(
    draw: st.DrawFn,
    *,
    max_layers: int = 6,
    max_operations: int = 16,
    kinds: Sequence[Kind] = (Kind.DYNAMIC, Kind.FIXED),
    block_sizes: Sequence[int] = BLOCK_SIZES,
    shorter: bool = False,
    refused: bool = False,
) -> Program:
    """Programs that start with a Create. Add Kind.RAW to `kinds` for raw bases.

    `shorter` lets children be smaller than their parents, which only other tools make (3.6); `refused` puts
    in merges that must be refused.
    """
    block_size = draw(st.sampled_from(block_sizes))
    count = draw(_sector_counts(block_size))
    create = Create(kind=draw(st.sampled_from(kinds)), sector_count=count, block_size=block_size)
    program: list[Operation] = [create]
    shapes = [Shape(create.kind, count, block_size)]
    for _ in range(draw(st.integers(0, max_operations))):
        choices: list[st.SearchStrategy[Operation]] = [writes(shapes[0]), writes(shapes[0])]
        if len(shapes) < max_layers:
            choices.append(snapshots(shapes[0], block_sizes, shorter=shorter))
        choices.append(merges(shapes, refused=refused))
        operation = draw(st.one_of(choices))
        program.append(operation)
        if not isinstance(operation, Merge) or merge_refusal(shapes, operation) is None:
            shapes = shapes_after(shapes, operation)
    return tuple(program)


@st.composite
def image_specs(
    draw: st.DrawFn,
    *,
    disk_types: Sequence[int] = (FIXED, DYNAMIC, DIFFERENCING),
    block_sizes: Sequence[int] = (*BLOCK_SIZES, *ODD_BLOCK_SIZES),
) -> ImageSpec:
    """Single files as good as real ones and as odd (1.12): layouts, orders, paddings, all-ones bitmaps.

    Sectors of the last block past the disk's end may hold junk, and have their bits set.
    """
    disk_type, block_size = draw(st.sampled_from(disk_types)), draw(st.sampled_from(block_sizes))
    count = draw(_sector_counts(block_size))
    per_block = block_size // SECTOR
    past_end = disk_type != FIXED and draw(st.booleans())
    end = -(-count // per_block) * per_block if past_end else count
    numbers = draw(st.sets(st.integers(0, end - 1) | st.sampled_from([0, count - 1, end - 1]), max_size=12))
    spec = ImageSpec(
        disk_type=disk_type,
        size=count * SECTOR,
        block_size=block_size,
        sectors={number: draw(sector_data) for number in sorted(numbers)},
        bits_past_end=past_end,
        unique_id=draw(st.binary(min_size=16, max_size=16)),
        timestamp=draw(st.integers(0, 0xFFFFFFFF)),
        creator_app=draw(st.sampled_from([b"win ", b"tap\0", b"qemu", b"vpc "])),
        reserved=draw(st.sampled_from([b"", b"\1", b"\0" * 11 + b"RD51"])),
    )
    if disk_type == FIXED:
        return spec
    return replace(spec, **draw(_layouts(spec)), **(draw(_parents()) if disk_type == DIFFERENCING else {}))


@st.composite
def _layouts(draw: st.DrawFn, spec: ImageSpec) -> dict[str, Any]:
    """Where things lie in a file, and how paddings are filled."""
    per_block = spec.block_size // SECTOR
    empty = draw(st.sets(st.integers(0, (spec.sector_count - 1) // per_block), max_size=2))
    blocks = replace(spec, empty_blocks=frozenset(empty)).blocks
    return {
        "empty_blocks": frozenset(empty),
        "order": draw(st.permutations(blocks)),
        "all_ones": draw(st.booleans()),
        "data_alignment": draw(st.sampled_from([SECTOR, PAGE])),
        "gap": draw(st.sampled_from([0, 0, 5 * SECTOR])),
        "footer_gap": draw(st.sampled_from([0, 0, 7 * SECTOR])),
        "table_multiple": draw(st.sampled_from([SECTOR, PAGE])),
        "table_fill": draw(st.sampled_from([0xFF, 0])),
        "extra_entries": draw(st.sampled_from([0, 0, 1, 200])),
    }


@st.composite
def _parents(draw: st.DrawFn) -> dict[str, Any]:
    """How a child names its parent: slots, codes, texts and units as in section 2."""
    text = draw(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40))
    codes = draw(st.permutations([b"W2ku", b"W2ru", b"MacX"]))
    slots = draw(st.permutations(range(8)))
    unit = draw(st.sampled_from(LOCATOR_UNITS))
    used = draw(st.integers(1, 3))
    return {
        "parent_id": draw(st.binary(min_size=16, max_size=16).filter(any)),
        "parent_name": text,
        "parent_timestamp": draw(st.integers(0, 0xFFFFFFFF)),
        "locators": tuple(
            locator(slot, code, text, unit=unit) for slot, code in zip(slots[:used], codes[:used], strict=True)
        ),
        "locators_first": draw(st.booleans()),
    }
