"""Which files are held while chains are read and children made, and that nothing is believed before it is held."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.keeping import keep
from tests.plainbuild import ImageSpec, build, locator
from tests.plainvhd import DIFFERENCING, SECTOR
from vhdkit.chain.compare import compare
from vhdkit.chain.convert import convert
from vhdkit.errors import ChainError, ChainLoopError, ImageInUseError
from vhdkit.storage.memory import MemoryFile, MemoryFolder, MemoryStorage
from vhdkit.vhd.open_image import open_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.storage.protocols import Storage

BLOCK = 8 * SECTOR
SIZE = 4 * BLOCK
LEAF, MIDDLE, BASE = NAMES = ("/vms/leaf.avhd", "/vms/middle.avhd", "/vms/base.vhd")


def ident(number: int) -> bytes:
    return bytes([number]) * 16


def layer(number: int, *, at: int | None = None, own_id: int | None = None) -> bytes:
    """Build one of three layers, 1 the base; each has one sector of its own, `at` or at its number."""
    parent = NAMES[4 - number].rpartition("/")[2] if number > 1 else ""
    spec = ImageSpec(
        size=SIZE,
        block_size=BLOCK,
        sectors={number if at is None else at: bytes([7]) * SECTOR},
        unique_id=ident(own_id or number),
    )
    if parent:
        links = (locator(0, b"W2ru", f".\\{parent}"),)
        spec = replace(spec, disk_type=DIFFERENCING, parent_id=ident(number - 1), parent_name=parent, locators=links)
    return build(spec)


def files() -> dict[str, bytes]:
    return {LEAF: layer(3), MIDDLE: layer(2), BASE: layer(1)}


@pytest.fixture
def folder() -> MemoryFolder:
    return MemoryFolder(files())


def held(folder: MemoryFolder, path: str) -> str:
    """Say how a file is held, by what another may."""
    for word, exclusive in (("free", True), ("shared", False)):
        storage = folder.open(path)
        try:
            storage.lock(exclusive=exclusive)
        except ImageInUseError:
            continue
        finally:
            storage.close()
        return word
    return "exclusive"


@pytest.mark.parametrize(
    ("writable", "lock", "expected"),
    [
        (False, True, ["shared", "shared", "shared"]),
        (True, True, ["exclusive", "shared", "shared"]),
        (False, False, ["free", "free", "free"]),
        (True, False, ["free", "free", "free"]),
    ],
)
@pytest.mark.parametrize("parent", [None, MIDDLE, BASE])
def test_layers_are_shared_and_the_leaf_is_not_if_it_is_written(
    folder: MemoryFolder, parent: str | None, writable: bool, lock: bool, expected: list[str]
) -> None:
    with vhdkit.open_chain(LEAF, writable=writable, lock=lock, parent=parent, folder=folder) as chain:
        assert len(chain.layers) == 3
        assert [held(folder, path) for path in NAMES] == expected
    assert [held(folder, path) for path in NAMES] == ["free"] * 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parent", [None, MIDDLE, BASE])
def test_a_layer_that_is_written_is_not_read_and_named(folder: MemoryFolder, name: str, parent: str | None) -> None:
    other = folder.open(name)
    other.lock(exclusive=True)
    with pytest.raises(ImageInUseError) as caught:
        vhdkit.open_chain(LEAF, parent=parent, folder=folder)
    assert caught.value.path == name
    assert [held(folder, path) for path in NAMES if path != name] == ["free"] * 2
    with vhdkit.open_chain(LEAF, lock=False, folder=folder) as chain:
        assert chain.read(3 * SECTOR, SECTOR) == bytes([7]) * SECTOR
    other.close()
    vhdkit.open_chain(LEAF, folder=folder).close()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_is_not_written(folder: MemoryFolder, name: str) -> None:
    with vhdkit.open_chain(name, folder=folder):
        with pytest.raises(ImageInUseError):
            vhdkit.open_chain(name, writable=True, folder=folder)
        vhdkit.open_chain(name, folder=folder).close()


def test_a_chain_that_cannot_be_opened_leaves_nothing_held(folder: MemoryFolder) -> None:
    folder.remove(BASE)
    with pytest.raises(ChainError):
        vhdkit.open_chain(LEAF, writable=True, folder=folder)
    assert [held(folder, path) for path in NAMES[:2]] == ["free"] * 2


@pytest.mark.parametrize("explicit", [False, True])
def test_a_loop_is_a_loop_and_not_a_file_in_use(folder: MemoryFolder, explicit: bool) -> None:
    content = build(
        ImageSpec(
            size=SIZE,
            block_size=BLOCK,
            disk_type=DIFFERENCING,
            unique_id=ident(1),
            parent_id=ident(1),
            parent_name="self.vhd",
            locators=(locator(0, b"W2ru", ".\\self.vhd"),),
        )
    )
    folder = MemoryFolder({"/vms/self.vhd": content})
    with pytest.raises(ChainLoopError):
        vhdkit.open_chain("/vms/self.vhd", writable=True, parent="/vms/self.vhd" if explicit else None, folder=folder)


class ChangingStorage(MemoryStorage):
    """A file that another changed just before it could be locked."""

    def __init__(self, path: str, file: MemoryFile, before: Callable[[], None]) -> None:
        super().__init__(path, file, writable=False)
        self.before = before

    def lock(self, *, exclusive: bool) -> None:
        self.before()
        super().lock(exclusive=exclusive)


class ChangingFolder(MemoryFolder):
    def __init__(self, files: dict[str, bytes], path: str, content: bytes) -> None:
        super().__init__(files)
        self.changing, self.after = path, content

    def open(self, path: str, *, writable: bool = False) -> Storage:
        if path != self.changing:
            return super().open(path, writable=writable)
        file = self[path]

        def change() -> None:
            file.content[:] = self.after

        return ChangingStorage(path, file, change)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("explicit", [False, True])
def test_nothing_is_believed_of_a_file_before_it_is_held(number: int, explicit: bool) -> None:
    name = NAMES[3 - number]
    folder = ChangingFolder(files() | {name: layer(number, at=30)}, name, layer(number))
    with vhdkit.open_chain(LEAF, parent=name if explicit and number < 3 else None, folder=folder) as chain:
        assert chain.read(number * SECTOR, SECTOR) == bytes([7]) * SECTOR
        assert chain.read(30 * SECTOR, SECTOR) == bytes(SECTOR)


@pytest.mark.parametrize("explicit", [False, True])
def test_a_parent_that_became_another_before_it_was_held_is_refused(explicit: bool) -> None:
    folder = ChangingFolder(files(), MIDDLE, layer(2, own_id=8))
    with pytest.raises(ChainError, match="another id"):
        vhdkit.open_chain(LEAF, parent=MIDDLE if explicit else None, folder=folder)
    assert held(folder, LEAF) == "free"


def test_a_raw_parent_is_held(folder: MemoryFolder) -> None:
    content = build(
        ImageSpec(size=SIZE, block_size=BLOCK, disk_type=DIFFERENCING, parent_id=bytes(16), parent_name="raw.img")
    )
    folder = MemoryFolder({"/a.avhd": content, "/raw.img": bytes(SIZE)})
    with vhdkit.open_chain("/a.avhd", parent="/raw.img", folder=folder):
        assert held(folder, "/raw.img") == "shared"
    other = keep(folder.open("/raw.img"))
    other.lock(exclusive=True)
    with pytest.raises(ImageInUseError):
        vhdkit.open_chain("/a.avhd", parent="/raw.img", folder=folder)
    with pytest.raises(ImageInUseError):
        compare("/raw.img", "/raw.img", folder=folder)
    assert compare("/raw.img", "/raw.img", lock=False, folder=folder).equal


def test_converting_holds_every_layer_until_the_end(folder: MemoryFolder) -> None:
    seen: list[list[str]] = []
    convert(LEAF, "/new.vhd", folder=folder, progress=lambda *_: seen.append([held(folder, path) for path in NAMES]))
    assert seen
    assert all(ways == ["shared"] * 3 for ways in seen)
    other = keep(folder.open(BASE))
    other.lock(exclusive=True)
    with pytest.raises(ImageInUseError):
        convert(LEAF, "/other.vhd", folder=folder)
    assert not folder.exists("/other.vhd")
    assert convert(LEAF, "/other.vhd", lock=False, folder=folder) > 0
    with pytest.raises(ImageInUseError):
        compare("/other.vhd", LEAF, folder=folder)
    assert compare("/other.vhd", LEAF, lock=False, folder=folder).equal


class WatchedFolder(MemoryFolder):
    """Notes how the parent is held while a child is made and published."""

    ways: tuple[str, ...] = ()

    def create(self, path: str, *, private: bool = False) -> Storage:
        self.ways += (held(self, BASE),)
        return super().create(path, private=private)

    def publish(self, temporary: str, path: str) -> None:
        self.ways += (held(self, BASE),)
        super().publish(temporary, path)


def test_a_parent_is_held_until_its_child_is_there() -> None:
    folder = WatchedFolder(files())
    vhdkit.create_image("/vms/child.avhd", parent=BASE, folder=folder)
    assert folder.ways == ("shared", "shared")
    assert held(folder, BASE) == "free"
    with vhdkit.open_chain(LEAF, folder=folder):
        vhdkit.create_image("/vms/other.avhd", parent=BASE, folder=folder)


def test_no_child_is_made_of_what_is_written(folder: MemoryFolder) -> None:
    with open_image(BASE, writable=True, exclusive=True, folder=folder):
        with pytest.raises(ImageInUseError):
            vhdkit.create_image("/vms/child.avhd", parent=BASE, folder=folder)
        assert not folder.exists("/vms/child.avhd")


def test_planning_a_merge_holds_for_reading_and_gives_back(folder: MemoryFolder) -> None:
    other = folder.open(BASE)
    other.lock(exclusive=True)
    with pytest.raises(ImageInUseError):
        vhdkit.plan_merge(MIDDLE, folder=folder)
    other.lock(exclusive=False)
    vhdkit.plan_merge(MIDDLE, folder=folder)
    other.close()
    assert [held(folder, path) for path in NAMES] == ["free"] * 3


def test_a_glance_at_headers_is_nobodys_affair(folder: MemoryFolder) -> None:
    others = [keep(folder.open(path)) for path in NAMES]
    for other in others:
        other.lock(exclusive=True)
    assert len(vhdkit.scan("/vms", folder=folder).bases) == 1
    vhdkit.open_image(LEAF, folder=folder).close()
