"""Both footers of an image change in one step: a cut leaves what is read and finished; a forged step does nothing."""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

import vhdkit
from tests.crash.failing import CHANGING, FailingFolder, Fault
from tests.crashfs import CrashFolder
from tests.keeping import keep
from tests.plainbuild import ImageSpec, build
from tests.plainvhd import DIFFERENCING, FIXED, FOOTER_CHECKSUM, SECTOR, seal
from vhdkit.corruption import Corruption
from vhdkit.errors import VhdError
from vhdkit.findings import Level
from vhdkit.journal import records
from vhdkit.journal.patch import Patch
from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhd import footer_update, header_update
from vhdkit.vhd.footer import Footer
from vhdkit.vhd.open_image import open_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.storage.protocols import Folder, Storage

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


# A file that becomes longer

BLOCK: Final = 4096
LONGER: Final = RAW + bytes(4096)
LONGER_END: Final = len(LONGER) - SECTOR


def lengthening(offset: int = LONGER_END, after: bytes = OLD) -> Patch:
    return Patch(offset=offset, before=bytes(SECTOR), after=after)


LENGTH: Final = lengthening()


@pytest.mark.parametrize("tail", [bytes(SECTOR), b"rubbish!" * 64])
def test_a_longer_file_without_its_footer_is_explained_by_its_step(tail: bytes) -> None:
    raw = LONGER[:LONGER_END] + tail
    folder = cut(raw, [LENGTH])
    report = vhdkit.check(PATH, folder=folder)
    assert not [str(item) for item in report.findings if item.level is Level.ERROR]
    with open_image(PATH, folder=folder) as image:
        assert image.has_whole_footer
        assert (image.has_step, image.is_sealed) == (True, True)
    assert content(folder) == raw
    open_image(PATH, folder=folder, writable=True, exclusive=True).close()
    assert content(folder) == LONGER[:LONGER_END] + OLD
    assert folder.names("/vms") == ("disk.vhd",)
    assert vhdkit.check(PATH, folder=folder).exit_code in {0, 3}


def test_a_lost_footer_without_a_step_is_an_error() -> None:
    folder = MemoryFolder({PATH: LONGER})
    errors = {item.corruption for item in vhdkit.check(PATH, folder=folder).findings if item.level is Level.ERROR}
    assert errors == {Corruption.FOOTER_TRAILING_LOST}


FORGED_LENGTHS: Final = {
    "not the copy": (LONGER, lengthening(after=NEW)),
    "another end": (LONGER, lengthening(offset=LONGER_END - SECTOR)),
    "behind the end": (LONGER, lengthening(offset=LONGER_END + SECTOR)),
    "no sector": (LONGER + b"0", lengthening(offset=LONGER_END + 1)),
    "over a footer": (LONGER[:LONGER_END] + NEW, LENGTH),
    # The file lost its footer, and the last sector of its only block with it.
    "over a block": (RAW[:END], lengthening(offset=END - SECTOR)),
    "over the copy": (RAW, lengthening(offset=0, after=NEW)),
    "of a fixed disk": (bytes(LONGER), lengthening(after=other(60, FIXED.to_bytes(4)))),
}


@pytest.mark.parametrize("name", FORGED_LENGTHS)
def test_a_forged_step_of_a_length_changes_nothing(name: str) -> None:
    raw, step = FORGED_LENGTHS[name]
    folder = cut(raw, [step])
    vhdkit.check(PATH, folder=folder)
    header_update.finish_all(folder, ["/vms"])
    with suppress(VhdError):
        open_image(PATH, folder=folder, writable=True, exclusive=True).close()
    assert content(folder) == raw


def sector(folder: Folder) -> bytes:
    with vhdkit.open_chain(PATH, folder=folder) as chain:
        return chain.read(BLOCK, SECTOR)


class NoStep(MemoryFolder):
    """A folder that takes no new file."""

    code = errno.EACCES

    def create(self, path: str, *, private: bool = False) -> Storage:
        del private
        raise OSError(self.code, "no", path)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.ENOSPC])
def test_where_no_step_file_can_be_an_image_is_written_all_the_same(code: int) -> None:
    folder = NoStep({PATH: RAW})
    folder.code = code
    with open_image(PATH, folder=folder, writable=True, exclusive=True) as image:
        if code == errno.ENOSPC:
            with pytest.raises(OSError, match="no"):
                image.write(BLOCK, b"y" * SECTOR, sync=True)
            assert content(folder) == RAW
            return
        image.write(BLOCK, b"y" * SECTOR, sync=True)
    assert sector(folder) == b"y" * SECTOR


@pytest.mark.parametrize("at", range(14))
def test_whatever_fails_as_a_file_becomes_longer_it_stays_valid(at: int) -> None:
    folder = FailingFolder(CrashFolder({PATH: RAW}), Fault(at=at, error=errno.ENOSPC, kinds=CHANGING, partly=True))
    with open_image(PATH, folder=folder, writable=True, exclusive=True) as image, suppress(OSError):
        image.write(BLOCK, b"y" * SECTOR, sync=True)
    report = vhdkit.check(PATH, folder=folder)
    assert not [str(item) for item in report.findings if item.level is Level.ERROR]
    with open_image(PATH, folder=folder.inner, writable=True, exclusive=True) as image:
        image.write(BLOCK, b"z" * SECTOR, sync=True)
    assert sector(folder) == b"z" * SECTOR
    assert folder.names("/vms") == ("disk.vhd",)
