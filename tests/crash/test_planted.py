"""Faults planted in the engine, each of which a walk must find; and by which law.

The laws are told by the words of what they find: `found` says some of them.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.crash.acts import small_steps, uncut
from tests.crash.programs import PROGRAMS
from tests.crash.walking import How, walk
from tests.crashfs import CrashStorage, FolderSynced, Named, Synced
from vhdkit.journal.journal_writer import JournalWriter
from vhdkit.journal.merge_journal import SUFFIX as JOURNAL
from vhdkit.merging.plan import placement
from vhdkit.merging.run import engine, sector_copier
from vhdkit.merging.run.undo_image import UndoSaver
from vhdkit.vhd import grow, header_update
from vhdkit.vhd.image import VhdImage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.thorough

BY_NAME = {program.name: program for program in PROGRAMS}


def finding(name: str, *, without: frozenset[int] = frozenset(), first: int = 0) -> str:
    """Return the first law broken by what the test has planted, from a cut on: before it the log is as it should be."""
    return "".join(findings(name, 1, without=without, first=first))


def findings(name: str, enough: int, *, without: frozenset[int] = frozenset(), first: int = 0) -> list[str]:
    """Return the first laws broken by what the test has planted."""
    how = How(enough=enough, first=first)
    # Most faults show at many cuts: a few are tried before all of them are.
    few = walk(BY_NAME[name], replace(how, share=0.1), without=without).findings
    return few if len(few) >= enough else walk(BY_NAME[name], how, without=without).findings


class NoSyncing:
    """What a sync is that never was begun."""

    def is_done(self) -> bool:
        return False

    def wait(self) -> float:
        return 0.0


@contextmanager
def no_image_synced() -> Iterator[None]:
    """Let no image be synced, neither at once nor begun."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VhdImage, "sync", lambda _: None)
        patch.setattr(VhdImage, "begin_sync", lambda _: NoSyncing())
        yield


def deaf(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Let no image be synced while one of the engine's functions runs."""
    during: Callable[..., object] = getattr(owner, name)

    def quietly(*arguments: object, **named: object) -> object:
        with no_image_synced():
            return during(*arguments, **named)

    monkeypatch.setattr(owner, name, quietly)


@pytest.mark.parametrize("name", ["seams differencing 4096", "seams differencing 512", "2 levels differencing"])
def test_a_missing_barrier_before_the_table_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    # In a dynamic destination it is not one: what is lost reads as zeros, as before.
    deaf(monkeypatch, sector_copier.SectorCopier, "_begin_checkpoint")
    assert "neither old nor new" in finding(name)


@pytest.mark.fast_path("overlap")
@pytest.mark.parametrize("name", ["seams differencing 4096", "seams differencing 512", "2 levels differencing"])
def test_references_written_before_the_sync_under_way_has_ended_are_found(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    begin = sector_copier.SectorCopier._begin_checkpoint  # noqa: SLF001

    def hasty(self: sector_copier.SectorCopier) -> None:
        begin(self)
        under_way = self._under_way
        if under_way is not None:
            self._under_way = under_way._replace(syncing=NoSyncing())
            self._end_checkpoint()
            under_way.syncing.wait()

    monkeypatch.setattr(sector_copier.SectorCopier, "_begin_checkpoint", hasty)
    assert "neither old nor new" in finding(name)


@pytest.mark.parametrize("name", ["seams differencing 4096", "seams differencing 512", "2 levels differencing"])
def test_a_sync_under_way_that_stands_for_what_is_copied_meanwhile_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    begin = sector_copier.SectorCopier._begin_checkpoint  # noqa: SLF001
    stood: list[object] = []

    def hasty(self: sector_copier.SectorCopier) -> None:
        before, self._under_way = self._under_way, None
        if before is None:
            begin(self)
            return
        with no_image_synced():
            begin(self)
        meanwhile, self._under_way = self._under_way, before
        self._end_checkpoint()
        self._under_way = meanwhile
        stood.append(meanwhile)
        self._end_checkpoint()

    monkeypatch.setattr(sector_copier.SectorCopier, "_begin_checkpoint", hasty)
    with small_steps():
        assert "neither old nor new" in finding(name)
    assert any(stood)


@pytest.mark.parametrize("name", ["seams dynamic 4096", "seams differencing 512", "longer BAT dynamic over 1 blocks"])
def test_a_footer_moved_without_a_sync_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    deaf(monkeypatch, engine._Merge, "reserve")  # noqa: SLF001
    assert finding(name)


@pytest.mark.parametrize("name", ["relinked dynamic from 1 to 2", "two children relinked fixed", "2 levels dynamic"])
def test_a_relink_before_the_payload_is_durable_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    deaf(monkeypatch, engine._Merge, "write_sectors")  # noqa: SLF001
    assert finding(name)


def test_a_block_linked_before_its_copy_is_durable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    deaf(monkeypatch, grow, "_move_blocks")
    assert finding("longer BAT dynamic over 4 blocks")


def test_a_source_removed_before_the_merge_is_durable_is_found() -> None:
    name = "seams dynamic 4096"
    log = uncut(BY_NAME[name]).log
    numbers = [change.number for change in log if isinstance(change, Synced)]
    last = max(at for at, change in enumerate(log) if isinstance(change, Synced) and change.number != numbers[-1])
    assert finding(name, without=frozenset([last]), first=last)


def test_a_journal_removed_before_the_removals_are_durable_is_found() -> None:
    name = "3 levels dynamic"
    log = uncut(BY_NAME[name]).log
    gone = [at for at, change in enumerate(log) if isinstance(change, Named) and change.number is None]
    assert str(log[gone[-1]]).count(JOURNAL)
    between = [at for at in range(gone[0], gone[-1]) if isinstance(log[at], FolderSynced)]
    assert finding(name, without=frozenset(between), first=gone[0])


@pytest.mark.parametrize("name", ["undo fixed", "undo dynamic"])
def test_what_is_saved_after_it_was_overwritten_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    save, move = UndoSaver.save, sector_copier.SectorCopier.copy
    late: list[tuple[Any, ...]] = []

    def late_move(self: sector_copier.SectorCopier, *arguments: Any) -> None:
        move(self, *arguments)
        while late:
            save(*late.pop())

    monkeypatch.setattr(UndoSaver, "save", lambda *arguments: late.append(arguments))
    monkeypatch.setattr(sector_copier.SectorCopier, "copy", late_move)
    assert UNDO_LOST in finding(name)


UNDO_LOST = "/vms/undo.avhd: the independent reader finds other bytes"


@pytest.mark.parametrize("name", ["undo fixed", "undo dynamic"])
def test_an_undo_image_that_is_not_durable_when_its_sectors_are_overwritten_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    deaf(monkeypatch, UndoSaver, "save")
    # Bits without data, or data without bits, are found in it first.
    assert any(UNDO_LOST in text for text in findings(name, 30, first=20))


@pytest.mark.parametrize("name", ["undo fixed", "undo dynamic"])
def test_a_word_that_sectors_are_saved_and_is_not_durable_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What the undo image holds is never saved again, whatever the journal says: the word decides nothing any more."""
    write = JournalWriter.write

    def hasty(self: JournalWriter, kind: str, **fields: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if kind == "saved":
                patch.setattr(CrashStorage, "sync", lambda _: None)
            write(self, kind, **fields)

    monkeypatch.setattr(JournalWriter, "write", hasty)
    assert not walk(BY_NAME[name], How(first=20, share=0.3)).findings


def mark_before_the_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = sector_copier.SectorCopier._begin_checkpoint  # noqa: SLF001

    def hasty(self: sector_copier.SectorCopier) -> None:
        self.durable(*self._reached)
        begin(self)

    monkeypatch.setattr(sector_copier.SectorCopier, "_begin_checkpoint", hasty)


def mark_before_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    end = sector_copier.SectorCopier._end_checkpoint  # noqa: SLF001

    def hasty(self: sector_copier.SectorCopier) -> None:
        is_one = self._under_way is not None
        end(self)
        if is_one:
            self.durable(*self._linked)

    monkeypatch.setattr(sector_copier.SectorCopier, "_end_checkpoint", hasty)


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (mark_before_the_payload, "seams differencing 4096"),
        (mark_before_the_payload, "seams dynamic 4096"),
        (mark_before_the_payload, "seams fixed 4096"),
        (mark_before_the_references, "seams differencing 4096"),
        (mark_before_the_references, "seams dynamic 4096"),
    ],
)
def test_a_mark_before_its_checkpoint_is_durable_is_found(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None], name: str
) -> None:
    plant(monkeypatch)
    with small_steps():
        # What is below the mark is looked at again, all of it in a merge as small as this: the fault does no harm.
        assert not walk(BY_NAME[name], How(share=0.3)).findings
        monkeypatch.setattr(placement, "linked_as_planned", lambda *_: True)
        monkeypatch.setattr(placement, "has_what_sources_hold", lambda *_: True)
        assert finding(name)


@pytest.mark.parametrize("name", ["relinked dynamic from 1 to 2", "locators make way"])
def test_a_header_changed_before_its_step_file_is_durable_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    # A longer table alone changes one sector of the header, which cannot be halved.
    sync = CrashStorage.sync
    monkeypatch.setattr(
        CrashStorage, "sync", lambda self: None if self.path.endswith(header_update.SUFFIX) else sync(self)
    )
    assert "/vms/layer" in finding(name)


@pytest.mark.parametrize("name", ["relinked dynamic from 1 to 2", "locators make way"])
def test_a_header_changed_before_its_step_file_has_a_durable_name_is_found(name: str) -> None:
    log = uncut(BY_NAME[name]).log
    made = [
        at for at, change in enumerate(log) if isinstance(change, Named) and change.path.endswith(header_update.SUFFIX)
    ]
    after = next(at for at in range(made[0], len(log)) if isinstance(log[at], FolderSynced))
    assert "/vms/layer" in finding(name, without=frozenset([after]))
