"""What a step file may have written: a header, its locators' data, and never a byte of anything else."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cutting import at_first, cut_off
from tests.keeping import keep
from tests.model import Kind, Snapshot
from tests.plainbuild import build
from tests.plainvhd import HEADER_CHECKSUM, SECTOR, seal
from tests.side_files import taken_apart
from tests.unit.test_header_update import AFTER, BEFORE, HEADER, LEAF, PATH, finished, lying, patches, step_file
from tests.unit.test_merge_laws import chain_over, contents, in_memory, put, vhdkit_view
from vhdkit.journal import records
from vhdkit.journal.patch import Patch
from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhd import header_update
from vhdkit.vhd.header_update_check import rest_digest

if TYPE_CHECKING:
    from collections.abc import Sequence


# Where the entries of the locators begin in the header, and the bytes of each (docs/reference/vhd.md 1.4).
ENTRIES, ENTRY = 576, 24
EVIL = b"EVIL" * 4


def header_of(raw: bytes, *, slot: int, offset: int, space: int = 4096, length: int = 16) -> bytes:
    """Return an image's header with a locator that claims a place for itself."""
    entry = struct.pack(">4sIIIQ", b"W2ku", space, length, 0, offset)
    at = ENTRIES + slot * ENTRY
    header = raw[HEADER : HEADER + 1024]
    return seal(header[:at] + entry + header[at + ENTRY :], HEADER_CHECKSUM)


def change(raw: bytes, offset: int, before: bytes, after: bytes) -> list[Patch]:
    """Return a step that writes EVIL at an offset, with these headers."""
    data = Patch(offset=offset, before=raw[offset : offset + len(EVIL)], after=EVIL)
    return [data, Patch(offset=HEADER, before=before, after=after)]


def forged_steps(raw: bytes) -> dict[str, tuple[int, list[Patch]]]:
    """Return steps that reach for what is not theirs, by name, with the place that they write to."""
    block = BEFORE.index(b"l" * SECTOR)
    places = {"a block": block, "a bitmap": block - SECTOR, "the BAT": 1536, "the copy": 16, "the end": len(raw) - 512}
    now = raw[HEADER : HEADER + 1024]
    found: dict[str, tuple[int, list[Patch]]] = {}
    for name, at in places.items():
        claims = header_of(raw, slot=5, offset=at)
        # The file is "after" already, so that no sector of it holds "before" against what is said.
        found[f"{name}, which a header before has claimed"] = at, change(raw, at, claims, now)
        # Its first sector says the same: the checksum is made up for in a reserved byte.
        found[f"{name}, which both headers claim"] = at, change(raw, at, claims, claims)
        found[f"{name}, which the header to come claims"] = at, change(raw, at, now, claims)
        found[f"{name}, which no header claims"] = at, change(raw, at, now, now)
        found[f"{name}, with room over the whole file"] = (
            at,
            change(raw, at, header_of(raw, slot=5, offset=HEADER + 1024, space=len(raw)), now),
        )
    return found


FORGED = forged_steps(AFTER)


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_step_changes_no_byte_outside_of_header_and_locators(name: str) -> None:
    at, forged = FORGED[name]
    folder = lying(AFTER, step_file(forged))
    with vhdkit.open_chain(PATH, folder=folder) as chain:
        chain.read(0, chain.size)
    assert bytes(folder[PATH].content) == AFTER
    finished(folder)
    assert bytes(folder[PATH].content)[at : at + 16] == AFTER[at : at + 16], name
    assert bytes(folder[PATH].content) == AFTER


def test_steps_that_say_less_than_they_do_are_not_believed() -> None:
    """Another table, block size, place, or a table that is shorter; one locator's room twice; no header at all."""
    *data, last = patches()
    changed = []
    for at, raw in ((16, struct.pack(">Q", 4096)), (28, struct.pack(">I", 9)), (32, struct.pack(">I", 8192))):
        after = seal(last.after[:at] + raw + last.after[at + len(raw) :], HEADER_CHECKSUM)
        changed.append([*data, Patch(offset=HEADER, before=last.before, after=after)])
    changed += [[*data, Patch(offset=HEADER + 512, before=last.before, after=last.after)], [*data, *data, last], data]
    for forged in changed:
        folder = lying(BEFORE, step_file(forged))
        assert header_update.pending(folder, keep(folder.open(PATH))) == ()
        assert not finished(folder)
        assert bytes(folder[PATH].content) == BEFORE


# The rest of the file


def step_of(raw: bytes, of: Sequence[Patch]) -> bytes:
    """Return a step file as it is written now, for an image of these bytes."""
    rest = rest_digest(keep(MemoryFolder({"/i": raw}).open("/i")), of)
    return records.encode([{"image": "leaf.avhd", "patches": [patch.to_record() for patch in of], "rest": rest}])


def others() -> dict[str, bytes]:
    """Return images whose header is the same, and the rest is not."""
    found = {
        "longer": BEFORE[:-512] + bytes(512) + BEFORE[-512:],
        "another block": build(replace(LEAF, sectors={9: b"l" * SECTOR, 40: b"m" * SECTOR})),
        "another id": build(replace(LEAF, unique_id=b"copy" * 4)),
        "another size": build(replace(LEAF, size=60 * SECTOR)),
    }
    assert all(raw[HEADER : HEADER + 1024] == BEFORE[HEADER : HEADER + 1024] for raw in found.values())
    return found


@pytest.mark.parametrize("name", others())
def test_a_step_that_was_made_for_another_file_is_passed_over_and_told_of(name: str) -> None:
    raw = others()[name]
    folder = lying(raw, step_of(BEFORE, patches()))
    with vhdkit.open_chain(PATH, folder=folder) as chain:
        assert chain.layers[1].path == "/vms/base.vhd"
        (finding,) = [item for item in chain.findings if item.corruption is vhdkit.Corruption.HEADER_UNFINISHED]
    assert finding.level is vhdkit.Level.WARNING
    assert "passed over" in finding.message
    assert not finished(folder)
    assert bytes(folder[PATH].content) == raw
    begun = bytearray(BEFORE)
    begun[HEADER : HEADER + SECTOR] = AFTER[HEADER : HEADER + SECTOR]
    folder = lying(bytes(begun), step_of(BEFORE, patches()))
    assert finished(folder)
    assert bytes(folder[PATH].content) == AFTER


def test_whatever_of_it_is_done_the_rest_is_the_same() -> None:
    wanted = rest_digest(keep(MemoryFolder({"/i": BEFORE}).open("/i")), patches())
    for patch in patches():
        raw = bytearray(BEFORE)
        raw[patch.offset : patch.offset + len(patch.after)] = patch.after
        assert rest_digest(keep(MemoryFolder({"/i": bytes(raw)}).open("/i")), patches()) == wanted


def test_a_step_file_is_written_with_what_the_rest_is() -> None:
    folder = lying(BEFORE)
    seen: list[bytes] = []

    class Keeping(MemoryFolder):
        def remove(self, path: str) -> None:
            seen.append(bytes(self[path].content))
            super().remove(path)

    folder.__class__ = Keeping
    with vhdkit.open_image(PATH, writable=True, folder=folder) as image:
        header_update.apply(folder, image.storage, patches())
    assert seen == [step_of(BEFORE, patches())]


def growing() -> tuple[MemoryFolder, list[str]]:
    """A leaf that is larger than its parent, whose blocks lie where the longer table will."""
    chain = chain_over(Kind.DYNAMIC, put(0, 40, 1), Snapshot(sector_count=20_000), put(100, 9, 2))
    return in_memory(chain)


@pytest.mark.parametrize("has_rest", [True, False], ids=["of this version", "of an earlier version"])
def test_the_step_of_a_longer_table_is_not_done_to_a_base_that_was_put_back(has_rest: bool) -> None:
    """Its blocks still lie where the table would: a file put back from a backup, the step file left beside it."""
    folder, paths = growing()
    expected = vhdkit_view(folder, paths[0])
    backup = bytes(folder[paths[1]].content)
    cut_off(folder, paths[0], paths[1], at_first("remove", header_update.SUFFIX))
    assert folder.exists(paths[1] + header_update.SUFFIX)
    folder[paths[1]].content[:] = backup
    if not has_rest:
        found, _, _ = taken_apart(bytes(folder[paths[1] + header_update.SUFFIX].content))
        del found[0]["rest"]
        folder[paths[1] + header_update.SUFFIX].content[:] = records.encode(found)
    assert vhdkit_view(folder, paths[0]) == expected
    storage = keep(folder.open(paths[1], writable=True))
    assert not header_update.finish(folder, storage)
    storage.close()
    assert bytes(folder[paths[1]].content) == backup


def test_a_merge_is_finished_that_was_cut_off_while_the_table_grew() -> None:
    folder, paths = growing()
    expected = vhdkit_view(folder, paths[0])
    cut_off(folder, paths[0], paths[1], at_first("remove", header_update.SUFFIX))
    before = contents(folder)
    assert vhdkit_view(folder, paths[0]) == expected
    vhdkit.plan_merge(paths[0], folder=folder)
    assert contents(folder) == before
    vhdkit.merge(vhdkit.plan_merge(paths[0], folder=folder), folder=folder)
    assert list(contents(folder)) == [paths[1]]
    assert vhdkit_view(folder, paths[1]) == expected
