"""What scan, info and chain cost in calls: as many as there are images, whatever the family's shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.counting import CountingFolder
from tests.keeping import keep
from tests.plainbuild import ImageSpec, build, locator
from tests.plainvhd import DIFFERENCING, SECTOR
from vhdkit.chain.parent_search import ParentSearch, find_parent, parent_identity
from vhdkit.errors import CorruptImageError
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.chain.scan import ScannedImage

    Parents = Callable[[int], int | None]

SIZE = BLOCK = 8 * SECTOR
GIB = 1 << 30


def name(number: int) -> str:
    return f"i{number:04}.vhd"


def folder_of(count: int, parent_of: Parents, *, named: bool = True) -> CountingFolder:
    """Images of which each has the parent that a function gives it; without `named` they tell it by its id alone."""
    files = {}
    for number in range(count):
        parent = parent_of(number)
        spec: dict[str, Any] = {"size": SIZE, "block_size": BLOCK, "unique_id": (number + 1).to_bytes(16, "big")}
        if parent is not None:
            spec |= {"disk_type": DIFFERENCING, "parent_id": (parent + 1).to_bytes(16, "big")}
            if named:
                spec |= {"parent_name": name(parent), "locators": (locator(0, b"W2ru", f".\\{name(parent)}"),)}
        files[f"/vms/{name(number)}"] = build(ImageSpec(**spec))
    return CountingFolder(memory(files))


def memory(files: dict[str, bytes]) -> MemoryFolder:
    folder = MemoryFolder()
    for path, content in files.items():
        storage = folder.create(path)
        storage.write_at(0, content)
        storage.close()
    return folder


SHAPES: dict[str, Parents] = {
    "chains of ten": lambda number: None if number % 10 == 0 else number - 1,
    "children of one base": lambda number: None if number == 0 else 0,
    "orphans": lambda number: number + 10_000,
}


@pytest.mark.parametrize("named", [True, False], ids=["named", "by-id"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_scan_does_a_bounded_number_of_calls_an_image(shape: str, *, named: bool) -> None:
    counts = []
    for count in (20, 200):
        folder = folder_of(count, SHAPES[shape], named=named)
        vhdkit.scan("/vms", folder=folder)
        counts.append(folder.calls)
    few, many = counts
    assert (many["walks"], many["names"]) == (1, 0)
    assert many["opens"] == 200
    assert many["reads"] <= 7 * 200
    assert many["bytes"] <= 4096 * 200
    assert many["exists"] <= 2 * 200
    assert max(many[call] / few[call] for call in few if call != "walks") <= 10.5


@pytest.mark.parametrize("verb", ["chain", "scan"])
def test_a_chain_of_a_thousand_layers_is_told(verb: str) -> None:
    folder = folder_of(1024, lambda number: None if number == 0 else number - 1)
    if verb == "chain":
        with vhdkit.open_chain(f"/vms/{name(1023)}", folder=folder, lock=False) as chain:
            assert len(chain.layers) == 1024
    else:
        found = vhdkit.scan("/vms", folder=folder)
        layers: list[ScannedImage] = list(found.bases)
        for layer in layers:
            layers += layer.children
        assert [layer.path for layer in layers] == [f"/vms/{name(number)}" for number in range(1024)]


def test_opening_a_chain_does_a_bounded_number_of_calls_a_layer() -> None:
    counts = []
    for count in (4, 40):
        folder = folder_of(count, lambda number: None if number == 0 else number - 1)
        vhdkit.open_chain(f"/vms/{name(count - 1)}", folder=folder, lock=False).close()
        counts.append(folder.calls)
    few, many = counts
    assert many["walks"] == 0
    assert many["opens"] == 40
    assert many["reads"] <= 8 * 40
    assert many["exists"] <= 8 * 40
    # Two real paths a layer, but for the leaf: 79 are more than ten times 7.
    assert max(many[call] / few[call] for call in few) <= 11.5


@pytest.mark.parametrize("block_size", [2 << 20, 512 << 10])
def test_the_largest_disk_is_opened_by_reading_its_table_once(block_size: int) -> None:
    folder = CountingFolder(MemoryFolder())
    vhdkit.create_image("/vms/a.vhd", size=2040 * GIB, block_size=block_size, folder=folder)
    folder.calls.clear()
    vhdkit.open_chain("/vms/a.vhd", folder=folder, lock=False).close()
    table = 2040 * GIB // block_size * 4
    assert folder.calls["bytes"] <= table + 8192
    assert folder.calls["reads"] <= table // 65536 + 8


@pytest.mark.parametrize("named", [True, False], ids=["named", "by-id"])
def test_who_is_a_parent_is_told_without_reading_tables(*, named: bool) -> None:
    folder = folder_of(2, lambda number: None if number == 0 else 0, named=named)
    # A table that a merge could not use is no reason to think that somebody else is the parent.
    base = keep(folder.inner.open(f"/vms/{name(0)}", writable=True))
    with vhdkit.open_image(f"/vms/{name(1)}", folder=folder) as child:
        base.write_at(1536, bytes(4))
        with pytest.raises(CorruptImageError):
            find_parent(child, ParentSearch(folder), {child.storage.identity})
        folder.calls.clear()
        found = parent_identity(child, ParentSearch(folder), {child.storage.identity})
    assert found == base.identity
    assert folder.calls["bytes"] <= 2 * 4096 * folder.calls["opens"]
