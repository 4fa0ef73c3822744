"""Parents of VHDX files are found as those of VHD files are, by either of the ids that a child may have of one."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

import vhdkit
from tests import plainvhdx
from tests.plainvhdx import FULL, Disk, linked
from vhdkit.chain.chain import open_chain
from vhdkit.errors import ChainError, ChainLoopError, ParentMismatchError, ParentNotFoundError, ParentRefusedError
from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhdx.corruption import VhdxCorruption

MIB: Final = 1 << 20
A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
BASE: Final = Disk(size=2 * MIB, data_id=A, blocks={1: (FULL, b"\x77" * MIB)})
CHILD: Final = Disk(size=2 * MIB, data_id=B, texts=linked(A, relative=".\\base.vhdx"))


def folder(**files: Disk) -> MemoryFolder:
    return MemoryFolder({f"/vms/{name.replace('__', '/')}": plainvhdx.write(disk) for name, disk in files.items()})


def read(place: MemoryFolder, path: str = "/vms/child", **options: object) -> list[str]:
    with open_chain(path, folder=place, **options) as chain:  # type: ignore[arg-type]
        assert chain.read(MIB, 16) == b"\x77" * 16
        return [layer.path for layer in chain.layers]


def test_a_renamed_parent_is_found_by_its_id() -> None:
    place = MemoryFolder({"/vms/child": plainvhdx.write(CHILD), "/vms/other.vhdx": plainvhdx.write(BASE)})
    assert read(place) == ["/vms/child", "/vms/other.vhdx"]


@pytest.mark.parametrize(
    "texts",
    [
        linked(A, absolute="C:\\VMs\\base.avhdx"),
        linked(A, absolute="\\\\?\\C:\\VMs\\BASE.vhdx"),
        linked(A, relative="BASE.VHDX"),
    ],
)
def test_a_parent_is_found_by_its_base_name(texts: dict[str, str]) -> None:
    place = MemoryFolder(
        {"/vms/child": plainvhdx.write(replace(CHILD, texts=texts)), "/vms/base.vhdx": plainvhdx.write(BASE)}
    )
    assert read(place) == ["/vms/child", "/vms/base.vhdx"]


def test_a_parent_with_the_second_id_fits() -> None:
    child = replace(CHILD, texts=linked(C, relative="base.vhdx", other=A))
    place = MemoryFolder({"/vms/child": plainvhdx.write(child), "/vms/base.vhdx": plainvhdx.write(BASE)})
    with open_chain("/vms/child", folder=place) as chain:
        assert VhdxCorruption.LOCATOR_SECOND_LINKAGE in {finding.corruption for finding in chain.findings}
    assert read(place) == ["/vms/child", "/vms/base.vhdx"]
    moved = MemoryFolder({"/vms/child.avhdx": plainvhdx.write(child), "/vms/x.vhdx": plainvhdx.write(BASE)})
    assert read(moved, "/vms/child.avhdx") == ["/vms/child.avhdx", "/vms/x.vhdx"]
    (tree,) = vhdkit.scan("/vms", folder=moved).bases
    assert [each.path for each in tree.children] == ["/vms/child.avhdx"]


def test_a_parent_that_was_changed_since_is_refused() -> None:
    changed = replace(BASE, data_id=C)
    place = MemoryFolder({"/vms/child": plainvhdx.write(CHILD), "/vms/base.vhdx": plainvhdx.write(changed)})
    with pytest.raises(ParentMismatchError):
        open_chain("/vms/child", folder=place)
    assert read(place, accept_id_mismatch=True) == ["/vms/child", "/vms/base.vhdx"]


def test_a_parent_outside_of_the_folders_is_refused_until_they_are_named() -> None:
    child = replace(CHILD, texts=linked(A, relative="..\\base.vhdx"))
    place = MemoryFolder({"/vms/sub/child": plainvhdx.write(child), "/vms/base.vhdx": plainvhdx.write(BASE)})
    with pytest.raises(ParentRefusedError):
        open_chain("/vms/sub/child", folder=place)
    assert read(place, "/vms/sub/child", search=["/vms"])[1] == "/vms/base.vhdx"
    assert read(place, "/vms/sub/child", parent="/vms/base.vhdx")[1] == "/vms/base.vhdx"


def test_a_missing_parent_and_a_loop_are_refused() -> None:
    with pytest.raises(ParentNotFoundError):
        open_chain("/vms/child", folder=MemoryFolder({"/vms/child": plainvhdx.write(CHILD)}))
    own = replace(CHILD, data_id=A, texts=linked(A, relative="child"))
    with pytest.raises(ChainLoopError):
        open_chain("/vms/child", folder=MemoryFolder({"/vms/child": plainvhdx.write(own)}))


def test_a_parent_with_other_sectors_is_refused() -> None:
    place = MemoryFolder(
        {"/vms/child": plainvhdx.write(CHILD), "/vms/base.vhdx": plainvhdx.write(replace(BASE, sector=4096))}
    )
    with pytest.raises(ChainError, match="its sectors have 512 bytes"):
        open_chain("/vms/child", folder=place)


def test_a_vhd_with_the_right_id_is_no_parent_of_a_vhdx() -> None:
    place = MemoryFolder({"/vms/child": plainvhdx.write(CHILD)})
    vhdkit.create_image("/vms/base.vhd", size=2 * MIB, unique_id=A, folder=place)
    with pytest.raises(ChainError, match=r"it is a VHDX, and its parent /vms/base\.vhd is a VHD"):
        open_chain("/vms/child", folder=place)


def test_a_parent_with_a_log_is_replayed_too() -> None:
    log_guid = b"L" * 16
    entry = plainvhdx.log_entry(
        log_guid, 4, 0, [(plainvhdx.BAT_AT, (4 * MIB | FULL).to_bytes(16, "big")[::-1].ljust(4096, b"\0"))]
    )
    dirty = replace(BASE, log_guid=log_guid, log=entry)
    place = MemoryFolder({"/vms/child": plainvhdx.write(CHILD), "/vms/base.vhdx": plainvhdx.write(dirty)})
    with open_chain("/vms/child", folder=place) as chain:
        assert chain.read(0, 2 * MIB) == b"\x77" * MIB + bytes(MIB)
        assert {finding.path for finding in chain.findings} == {"/vms/base.vhdx"}
