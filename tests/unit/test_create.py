"""A new file that cannot be made leaves nothing: neither under its own name nor under the one it had while made."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.through import ThroughFolder
from tests.unit.test_merge_laws import contents
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.storage.protocols import Folder

MIB = 1 << 20
LEAF = "/vms/leaf.avhd"
NEW = "/new/new.vhd"


class FailingLate(ThroughFolder):
    """Fails once the new file has its name: the sync of its folder, or the removal of its other name."""

    def __init__(self, inner: Folder, call: str) -> None:
        super().__init__(inner)
        self.call = call

    def publish(self, temporary: str, path: str) -> None:
        super().publish(temporary, path)
        if self.call == "publish":
            raise OSError(errno.EIO, "failed", temporary)

    def sync(self, directory: str) -> None:
        super().sync(directory)
        if self.call == "sync" and directory == "/new":
            raise OSError(errno.EIO, "failed", directory)


def merged_to_new(folder: Folder) -> None:
    vhdkit.merge(vhdkit.plan_merge(LEAF, to=NEW, folder=folder), folder=folder)


MAKING: dict[str, Callable[[Folder], object]] = {
    "create": lambda folder: vhdkit.create_image(NEW, size=MIB, folder=folder),
    "create a child": lambda folder: vhdkit.create_image(NEW, parent="/vms/base.vhd", folder=folder),
    "convert": lambda folder: vhdkit.convert(LEAF, NEW, folder=folder),
    "merge": merged_to_new,
}


@pytest.mark.parametrize("call", ["publish", "sync"])
@pytest.mark.parametrize("make", MAKING.values(), ids=MAKING.keys())
def test_a_file_that_fails_once_it_has_its_name_is_not_left(make: Callable[[Folder], object], call: str) -> None:
    inner = MemoryFolder({})
    vhdkit.create_image("/vms/base.vhd", size=MIB, folder=inner)
    vhdkit.create_image(LEAF, parent="/vms/base.vhd", folder=inner)
    before = sorted(contents(inner))
    with pytest.raises(OSError, match="failed"):
        make(FailingLate(inner, call))
    assert sorted(contents(inner)) == before
    make(inner)
    assert sorted(contents(inner)) == sorted([*before, NEW])
