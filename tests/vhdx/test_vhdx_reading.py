"""Chains of VHDX files read as the oracle reads them, with sectors of both sizes; and no file changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import plainvhdx
from tests.plainvhdx import FULL, NOT_PRESENT, PARTIAL, UNDEFINED, UNMAPPED, ZERO, Disk, linked
from vhdkit.chain.chain import open_chain
from vhdkit.chain.resolve_layers import layer_extents
from vhdkit.disk import extents
from vhdkit.disk.extents import Kind
from vhdkit.disk.image import Image
from vhdkit.errors import ReadOnlyImageError
from vhdkit.formats import open_image
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1 << 20


def data_id(number: int) -> bytes:
    return bytes([number + 1]) * 16


def chain_of(layers: Sequence[Disk]) -> dict[str, bytes]:
    """Files of a chain, base first, each linked to the one before."""
    return {f"/vms/{number}.vhdx": plainvhdx.write(layer) for number, layer in enumerate(layers)}


@st.composite
def disks(draw: st.DrawFn) -> list[Disk]:
    sector = draw(st.sampled_from([512, 4096]))
    found: list[Disk] = []
    for number in range(draw(st.integers(1, 4))):
        block_size = draw(st.sampled_from([MIB, MIB, 2 * MIB]))
        size = draw(st.sampled_from([3 * MIB, 3 * MIB, 2 * MIB + sector, 4 * MIB - sector]))
        states = [NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, FULL] + ([PARTIAL] * 3 if number else [])
        blocks: dict[int, tuple[int, dict[int, bytes] | bytes]] = {}
        for block in range(-(-size // block_size)):
            state = draw(st.sampled_from(states))
            sectors = draw(st.lists(st.integers(0, block_size // sector - 1), max_size=8))
            fill = draw(st.integers(0, 3))
            blocks[block] = (
                state,
                {at: bytes([fill * 16 + number]) * sector if fill else bytes(sector) for at in sectors},
            )
        texts = linked(data_id(number - 1), relative=f".\\{number - 1}.vhdx") if number else None
        found.append(
            Disk(size=size, block_size=block_size, sector=sector, data_id=data_id(number), texts=texts, blocks=blocks)
        )
    return found


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(layers=disks(), data=st.data())
def test_a_chain_reads_as_the_oracle_reads_it(layers: list[Disk], data: st.DataObject) -> None:
    files = chain_of(layers)
    expected = plainvhdx.read(list(files.values())[::-1])
    folder = MemoryFolder(files)
    with open_chain(list(files)[-1], folder=folder) as chain:
        assert chain.read(0, chain.size) == expected
        start = data.draw(st.integers(0, len(expected)))
        length = data.draw(st.integers(0, 9000))
        assert chain.read(start, length) == expected[start : start + length]
        for found in chain.extents():
            assert not (found.kind == Kind.PARENT).any()
            one = layer_extents(chain.layers[0], 0, int(found.start[0]), int(found.stop[-1]))
            for depth, layer in enumerate(chain.layers[1:], 1):
                one = extents.overlay(one, layer_extents(layer, depth, int(found.start[0]), int(found.stop[-1])))
            assert (_bytes(found) == _bytes(one)).all()
    assert {path: bytes(folder[path].content) for path in files} == files


def _bytes(found: extents.Extents):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """Where each sector of 512 bytes comes from."""
    whole = extents.split(found, 512)
    columns = whole.kind.astype("i8"), (whole.kind == Kind.DATA) * whole.depth.astype("i8"), whole.file_offset
    return sum(column * (1 << 50 - 10 * number) for number, column in enumerate(columns))


@pytest.mark.parametrize("sector", [512, 4096])
def test_an_image_is_one_of_the_protocol(sector: int) -> None:
    base = Disk(size=2 * MIB, sector=sector, blocks={1: (FULL, b"x")})
    with open_image("/b.vhdx", folder=MemoryFolder({"/b.vhdx": plainvhdx.write(base)})) as image:
        assert isinstance(image, Image)
        assert (image.size, image.logical_sector_size, image.block_size) == (2 * MIB, sector, MIB)
        assert image.allocated_blocks(0, 2 * MIB).tolist() == [1]
        assert image.block_places(0, 2 * MIB).offsets.tolist() == [4 * MIB]
        assert not image.is_empty()
        assert image.checksums() == image.checksums()
        with pytest.raises(ReadOnlyImageError, match="not written yet"):
            image.check_writable()


@pytest.mark.parametrize("state", [UNDEFINED, ZERO, UNMAPPED])
def test_a_block_without_payload_hides_the_parent(state: int) -> None:
    base = Disk(size=2 * MIB, data_id=data_id(0), blocks={0: (FULL, b"\xa5" * MIB), 1: (FULL, b"\xa5" * MIB)})
    leaf = Disk(size=2 * MIB, data_id=data_id(1), texts=linked(data_id(0), relative="0.vhdx"), blocks={0: (state, b"")})
    folder = MemoryFolder(chain_of([base, leaf]))
    with open_chain("/vms/1.vhdx", folder=folder) as chain:
        assert chain.read(0, 2 * MIB) == bytes(MIB) + b"\xa5" * MIB
        assert not chain.leaf.is_empty()


def test_blocks_far_apart_are_in_chunks_of_their_own() -> None:
    # 16 blocks of 256 MiB are a chunk of 4 GiB.
    size = 17 << 28
    base = Disk(size=size, block_size=MIB, data_id=data_id(0))
    sectors = {5: b"a" * 512, 2047: b"b" * 512}
    blocks: dict[int, tuple[int, dict[int, bytes] | bytes]] = {4095: (PARTIAL, sectors), 4096: (PARTIAL, sectors)}
    leaf = Disk(size=size, data_id=data_id(1), texts=linked(data_id(0), relative="0.vhdx"), blocks=blocks)
    with open_chain("/vms/1.vhdx", folder=MemoryFolder(chain_of([base, leaf]))) as chain:
        for block in (4095, 4096):
            assert chain.read(block * MIB + 5 * 512 - 1, 514) == b"\0" + b"a" * 512 + b"\0"
            assert chain.read(block * MIB + 2047 * 512, 512) == b"b" * 512
