"""Chains of the model (tests/model) as VHDX files of the oracle's writer, with sectors of either size.

A sector of the model has 512 bytes; in a file with sectors of 4096 bytes each is there eight times in a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests import plainvhdx
from tests.model import Kind, Layer, ModelChain
from tests.plainvhd import SECTOR
from tests.plainvhdx import BAT_AT, FULL, METADATA_AT, PARTIAL, Disk, linked

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy.typing as npt

MIB = 1 << 20


def scaled(data: npt.NDArray[np.uint8], sector: int) -> npt.NDArray[np.uint8]:
    """Sectors of the model as those of a file: of shape (sectors, sector size)."""
    return np.tile(data.reshape(-1, SECTOR), (1, sector // SECTOR))


def view(model: ModelChain, sector: int, depth: int = 0) -> bytes:
    return scaled(model.view(depth), sector).tobytes()


def data_id(model: ModelChain, depth: int) -> bytes:
    return b"vhdkit-vhdx-" + (len(model.layers) - depth).to_bytes(4, "big")


def name_of(model: ModelChain, depth: int) -> str:
    return f"/vms/layer-{len(model.layers) - 1 - depth}.{'vhdx' if depth == len(model.layers) - 1 else 'avhdx'}"


def disk_of(model: ModelChain, depth: int, sector: int) -> Disk:
    layer = model.layers[depth]
    is_child = layer.kind is Kind.DIFFERENCING
    name = name_of(model, depth + 1).removeprefix("/vms/") if is_child else ""
    return Disk(
        size=layer.sector_count * sector,
        block_size=max(MIB, layer.block_size),
        sector=sector,
        data_id=data_id(model, depth),
        texts=linked(data_id(model, depth + 1), relative=f".\\{name}") if is_child else None,
        is_fixed=layer.kind is Kind.FIXED,
        blocks=blocks_of(layer, max(MIB, layer.block_size), sector),
    )


def blocks_of(layer: Layer, block_size: int, sector: int) -> dict[int, tuple[int, dict[int, bytes] | bytes]]:
    found: dict[int, tuple[int, dict[int, bytes] | bytes]] = {}
    per_block = block_size // sector
    data = scaled(layer.data, sector)
    for number in range(-(-layer.sector_count // per_block)):
        held = layer.held[number * per_block : (number + 1) * per_block]
        content = data[number * per_block : (number + 1) * per_block]
        if held.all() or (held.any() and layer.kind is not Kind.DIFFERENCING):
            found[number] = FULL, content.tobytes()
        elif held.any():
            found[number] = PARTIAL, {int(at): content[at].tobytes() for at in np.flatnonzero(held)}
    return found


def written(model: ModelChain, sector: int, dirty: Collection[int] = ()) -> dict[str, bytes]:
    """The files of a chain, leaf first; those of the depths in `dirty` read right under their logs only."""
    return {
        name_of(model, depth): (left_dirty if depth in dirty else plainvhdx.write)(disk_of(model, depth, sector))
        for depth in range(len(model.layers))
    }


def left_dirty(disk: Disk) -> bytes:
    """A file whose first table page, first bitmap page and items are in its log alone; on disk they are zeros."""
    places = [METADATA_AT, METADATA_AT + (64 << 10), BAT_AT]
    partial = [number for number, (state, _) in disk.blocks.items() if state == PARTIAL]
    if partial and disk.ratio < 8192:
        places.append(BAT_AT + 8 * disk.ratio // plainvhdx.PAGE * plainvhdx.PAGE)
    return plainvhdx.left_dirty(disk, sorted(set(places)))
