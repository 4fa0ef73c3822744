"""Both footers of an image change in one step: a cut leaves what is read and finished; a forged step does nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

import vhdkit
from tests.keeping import keep
from tests.plainbuild import ImageSpec, build
from tests.plainvhd import DIFFERENCING, FIXED, FOOTER_CHECKSUM, SECTOR, seal
from vhdkit.findings import Level
from vhdkit.journal import records
from vhdkit.journal.patch import Patch
from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhd import footer_update, header_update
from vhdkit.vhd.corruption import Corruption
from vhdkit.vhd.footer import Footer
from vhdkit.vhd.open_image import open_image

if TYPE_CHECKING:
    from collections.abc import Sequence

PATH: Final = "/vms/disk.vhd"
SPEC: Final = ImageSpec(size=6 * 4096, block_size=4096, sectors={1: b"x" * SECTOR}, extra_entries=2)
RAW: Final = build(SPEC)
OLD: Final = RAW[:SECTOR]
NEW: Final = replace(Footer.from_bytes(OLD), current_size=8 * 4096).to_bytes()
END: Final = len(RAW) - SECTOR
COPY: Final = Patch(offset=0, before=OLD, after=NEW)
TRAILING: Final = Patch(offset=END, before=OLD, after=NEW)


def cut(raw: bytes, patches: Sequence[Patch]) -> MemoryFolder:
    """Return a folder with an image and a step file beside it."""
    record = {"image": "disk.vhd", "patches": [patch.to_record() for patch in patches]}
    return MemoryFolder({PATH: raw, PATH + header_update.SUFFIX: records.encode([record])})


def content(folder: MemoryFolder) -> bytes:
    return bytes(folder[PATH].content)


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_step_that_was_cut_off_is_read_checked_and_finished(done: int) -> None:
    raw = RAW[:END] + (NEW if done else OLD)
    raw = (NEW if done == 2 else OLD) + raw[SECTOR:]
    folder = cut(raw, [TRAILING, COPY])
    report = vhdkit.check(PATH, folder=folder)
    assert not [str(item) for item in report.findings if item.level is Level.ERROR]
    unfinished = [item for item in report.findings if item.corruption is Corruption.HEADER_UNFINISHED]
    assert [item.level for item in unfinished] == [Level.INFO]
    with open_image(PATH, folder=folder) as image:
        assert (image.size, image.metadata.copy_ok) == (8 * 4096 if done else 6 * 4096, True)
    assert content(folder) == raw
    open_image(PATH, folder=folder, writable=True, exclusive=True).close()
    after = NEW if done else OLD
    assert content(folder) == after + RAW[SECTOR:END] + after


def test_footers_that_are_written_need_no_step_where_they_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = MemoryFolder({PATH: RAW})
    applied = []
    monkeypatch.setattr(header_update, "apply", lambda *arguments: applied.append(arguments))
    with open_image(PATH, folder=folder, writable=True) as image:
        footer_update.write_footers(folder, image)
        assert applied == []
        image.footer = replace(image.footer, current_size=8 * 4096)
        footer_update.write_footers(folder, image)
        assert len(applied) == 1
    assert content(folder) == RAW


def other(at: int, new: bytes) -> bytes:
    return seal(NEW[:at] + new + NEW[at + len(new) :], FOOTER_CHECKSUM)


FORGED: Final = [
    [Patch(offset=END - SECTOR, before=OLD, after=NEW), COPY],
    [Patch(offset=512, before=OLD, after=NEW), COPY],
    [Patch(offset=END, before=OLD, after=other(68, b"else")), COPY],
    [TRAILING, Patch(offset=0, before=OLD, after=other(48, bytes(6) + b"\x10\0"))],
    [TRAILING, Patch(offset=0, before=other(68, b"else"), after=NEW)],
    [TRAILING, Patch(offset=0, before=bytes(SECTOR), after=NEW)],
    [TRAILING, Patch(offset=0, before=OLD, after=bytes(SECTOR))],
]


@pytest.mark.parametrize("patches", FORGED)
@pytest.mark.parametrize("is_begun", [True, False])
def test_a_forged_step_changes_nothing(patches: list[Patch], is_begun: bool) -> None:
    raw = RAW[:END] + (NEW if is_begun else OLD)
    folder = cut(raw, patches)
    vhdkit.check(PATH, folder=folder)
    open_image(PATH, folder=folder, writable=True, exclusive=True).close()
    assert content(folder) == raw


@pytest.mark.parametrize("disk_type", [FIXED, DIFFERENCING])
def test_a_step_that_makes_another_disk_changes_nothing(disk_type: int) -> None:
    changed = other(60, disk_type.to_bytes(4))
    raw = RAW[:END] + changed
    patches = [Patch(offset=END, before=OLD, after=changed), Patch(offset=0, before=OLD, after=changed)]
    folder = cut(raw, patches)
    assert header_update.pending(folder, keep(folder.open(PATH))) == ()
    assert content(folder) == raw
