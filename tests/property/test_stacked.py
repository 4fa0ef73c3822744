"""Layers resolved at once say what they say when laid over one another one by one."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model import Create, Kind, ModelChain, Program, Snapshot, write_files
from tests.strategies import programs
from vhdkit.chain.chain import Chain, open_chain
from vhdkit.chain.resolve_layers import resolve
from vhdkit.chain.stacked import resolve_stacked, stack_of
from vhdkit.disk.extents import Kind as Source
from vhdkit.storage.fast_paths import FastPath, without

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.disk.extents import Extents

SECTOR = 512


@contextmanager
def opened(program: Program) -> Iterator[Chain]:
    with TemporaryDirectory() as folder:
        paths = write_files(ModelChain.run(program), Path(folder), lambda spec: spec)
        with open_chain(str(paths[0])) as chain:
            yield chain


def sectors(extents: Extents) -> list[tuple[int, int, int, int]]:
    """Say of every sector its number, kind, depth and file offset; they follow one another."""
    found: list[tuple[int, int, int, int]] = []
    for item in extents:
        assert not found or item.start == (found[-1][0] + 1) * SECTOR
        for inside in range(0, item.length, SECTOR):
            at = item.file_offset + inside if item.kind is Source.DATA else -1
            found.append(((item.start + inside) // SECTOR, item.kind, item.depth, at))
    return found


@settings(deadline=None, max_examples=60)
@given(programs(kinds=[Kind.DYNAMIC, Kind.FIXED], shorter=True), st.data())
def test_layers_at_once_are_layers_one_by_one(program: Program, data: st.DataObject) -> None:
    with opened(program) as chain:
        edges = st.integers(0, chain.size // SECTOR)
        start, stop = sorted(SECTOR * data.draw(edges) for _ in range(2))
        images = stack_of(chain.layers, stop)
        assert tuple(images) == chain.layers[: len(images)]
        if images and start < stop:
            with without(FastPath.STACKED):
                one_by_one = resolve(images, start, stop)
            assert sectors(resolve_stacked(images, start, stop)) == sectors(one_by_one)


def test_a_stack_ends_at_a_disk_without_a_parent_and_before_one_that_ends_too_soon() -> None:
    program = (Create(kind=Kind.DYNAMIC, sector_count=64), Snapshot(), Snapshot())
    with opened(program) as chain:
        assert len(stack_of(chain.layers, chain.size)) == 3
        assert len(stack_of(chain.layers[1:], chain.size)) == 2
        assert not stack_of(chain.layers, chain.size + SECTOR)
