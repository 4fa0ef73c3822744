"""Verifying: what a disk reads as has one digest whatever its layers, and a byte that went wrong costs no source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cutting import JOURNAL
from tests.model import Create, Kind, ModelChain, Snapshot
from tests.unit.test_merge_laws import SpyFolder, SpyStorage, chain_over, contents, in_memory, plain_view, put
from vhdkit.merging.run.view_digest import view_digest

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from vhdkit.storage.protocols import Folder, Storage

MIB_SECTORS = 2048
WRITES = [put(3, 9, 2), put(2040, 20, 5), put(4100, 3, 0), put(6000, 100, 7)]
LAYOUTS = {
    "one dynamic": ModelChain.run([Create(kind=Kind.DYNAMIC, sector_count=8000), *WRITES]),
    "one fixed": ModelChain.run([Create(kind=Kind.FIXED, sector_count=8000), *WRITES]),
    "large blocks": ModelChain.run([Create(kind=Kind.DYNAMIC, sector_count=8000, block_size=2 << 20), *WRITES]),
    "two": ModelChain.run([Create(kind=Kind.DYNAMIC, sector_count=8000), *WRITES[:2], Snapshot(), *WRITES[2:]]),
    "a layer each": ModelChain.run(
        [Create(kind=Kind.FIXED, sector_count=8000), *(each for write in WRITES for each in (Snapshot(), write))]
    ),
    "overwritten": ModelChain.run(
        [Create(kind=Kind.DYNAMIC, sector_count=8000), put(0, 6100, 9), put(0, 6100, 0), Snapshot(), *WRITES]
    ),
}


def digest(folder: Folder, path: str) -> str:
    with vhdkit.open_chain(path, folder=folder) as chain:
        return view_digest(chain.layers)


def test_the_digest_does_not_depend_on_the_layout() -> None:
    found = set()
    for chain in LAYOUTS.values():
        folder, paths = in_memory(chain)
        found.add(digest(folder, paths[0]))
    assert len(found) == 1


@pytest.mark.parametrize("windows", [4096, 1 << 19, 3 << 19])
def test_the_digest_does_not_depend_on_how_the_disk_is_cut(windows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, paths = in_memory(LAYOUTS["two"])
    expected = digest(folder, paths[0])
    monkeypatch.setattr("vhdkit.chain.resolve_layers._WINDOW_BYTES", windows)
    assert digest(folder, paths[0]) == expected


@pytest.mark.parametrize("sector", [0, 2, 2047, 2048, 4101, 7999])
def test_a_sector_more_or_elsewhere_is_another_digest(sector: int) -> None:
    folder, paths = in_memory(LAYOUTS["two"])
    with vhdkit.open_chain(paths[0], writable=True, folder=folder) as chain:
        before = view_digest(chain.layers)
        chain.write(sector * 512, b"\1")
        one = view_digest(chain.layers)
        chain.write(sector * 512, b"\0\1")
        assert len({before, one, view_digest(chain.layers)}) == 3


def test_a_longer_disk_is_another_one() -> None:
    digests = set()
    for sectors in (8000, 8001):
        folder, paths = in_memory(ModelChain.run([Create(kind=Kind.DYNAMIC, sector_count=sectors), *WRITES]))
        digests.add(digest(folder, paths[0]))
    assert len(digests) == 2


class FaultyStorage(SpyStorage):
    def __init__(self, inner: Storage, folder: FaultyFolder) -> None:
        super().__init__(inner, folder)
        self.faulty = folder

    def write_at(self, offset: int, buffer: Buffer) -> None:
        raw = bytearray(memoryview(buffer).cast("B"))
        self.spoil(raw)
        super().write_at(offset, raw)

    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> None:
        super().copy_from(source, source_offset, offset, length)
        raw = bytearray(length)
        assert source.read_into(source_offset, raw) == length
        if self.spoil(raw):
            self.inner.write_at(offset, raw)

    def spoil(self, raw: bytearray) -> bool:
        """Flip the bit if these are the bytes, and there is one left to flip."""
        at = raw.find(self.faulty.wanted) if self.path == self.faulty.victim else -1
        if at < 0 or not self.faulty.left:
            return False
        self.faulty.left -= 1
        raw[at + 7] ^= 0x10
        return True


class FaultyFolder(SpyFolder):
    """A disk that flips a bit of certain bytes when it writes or copies them to one file, so many times."""

    def __init__(self, inner: Folder, victim: str, wanted: bytes) -> None:
        super().__init__(inner)
        self.victim, self.wanted, self.left = victim, wanted, 1

    def open(self, path: str, *, writable: bool = False) -> Storage:
        return FaultyStorage(self.inner.open(path, writable=writable), self)


@pytest.mark.parametrize("kind", [Kind.FIXED, Kind.DYNAMIC, Kind.DIFFERENCING])
def test_a_byte_that_the_disk_got_wrong_is_found_costs_no_source_and_is_mended_by_a_repeat(kind: Kind) -> None:
    chain = chain_over(kind, put(0, 9, 1), Snapshot(), put(3, 20, 2), Snapshot(), put(5, 1, 7))
    folder, paths = in_memory(chain)
    faulty = FaultyFolder(folder, paths[2], chain.read(5 * 512, 512))
    plan = vhdkit.plan_merge(paths[0], into=paths[2], verify=True, folder=faulty)
    with pytest.raises(vhdkit.VerificationError, match="no source was removed") as caught:
        vhdkit.merge(plan, folder=faulty)
    assert caught.value.path == paths[2]
    assert faulty.left == 0
    assert plain_view(folder, paths) == chain.view().tobytes()
    assert set(paths) < set(contents(folder))
    again = vhdkit.plan_merge(paths[0], into=paths[2], folder=faulty)
    assert again.bytes_done == 0, "nothing of it is believed"
    vhdkit.merge(again, folder=faulty)
    assert plain_view(folder, paths[2:]) == chain.view().tobytes()
    assert list(contents(folder)) == sorted(paths[2:])


def test_a_repeat_still_verifies_though_nobody_asks_again() -> None:
    chain = chain_over(Kind.DYNAMIC, put(0, 9, 1), Snapshot(), put(3, 20, 2))
    folder, paths = in_memory(chain)
    faulty = FaultyFolder(folder, paths[1], chain.read(5 * 512, 512))
    faulty.left = 2
    with pytest.raises(vhdkit.VerificationError):
        vhdkit.merge(vhdkit.plan_merge(paths[0], verify=True, folder=faulty), folder=faulty)
    with pytest.raises(vhdkit.VerificationError):
        vhdkit.merge(vhdkit.plan_merge(paths[0], folder=faulty), folder=faulty)
    vhdkit.merge(vhdkit.plan_merge(paths[0], folder=faulty), folder=faulty)
    assert plain_view(folder, paths[1:]) == chain.view().tobytes()


def test_without_verify_the_fault_would_not_be_seen() -> None:
    """So that the tests above prove something."""
    chain = chain_over(Kind.DYNAMIC, put(0, 9, 1), Snapshot(), put(3, 20, 2))
    folder, paths = in_memory(chain)
    faulty = FaultyFolder(folder, paths[1], chain.read(5 * 512, 512))
    vhdkit.merge(vhdkit.plan_merge(paths[0], folder=faulty), folder=faulty)
    assert plain_view(folder, paths[1:]) != chain.view().tobytes()
    assert not folder.exists(paths[1] + JOURNAL)


def test_a_verified_merge_says_that_it_verifies() -> None:
    folder, paths = in_memory(LAYOUTS["two"])
    seen: list[vhdkit.Progress] = []
    plan = vhdkit.plan_merge(paths[0], verify=True, folder=folder)
    vhdkit.merge(plan, progress=seen.append, folder=folder)
    assert vhdkit.Phase.VERIFYING in {state.phase for state in seen}
    assert list(contents(folder)) == [paths[1]]
