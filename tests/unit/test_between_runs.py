"""What people do between the runs of a merge: write, take snapshots, put files back. Nothing of it may cost a byte."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cutting import CutError, CuttingFolder, at_first
from tests.typed import as_typed
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
BLOCK = 65536


@pytest.fixture
def vms(tmp_path: Path) -> Path:
    vhdkit.create_image(str(tmp_path / "base.vhd"), size=8 * MIB, block_size=BLOCK)
    write(tmp_path / "base.vhd", 0, b"base" * (MIB // 4))
    vhdkit.create_image(str(tmp_path / "leaf.avhd"), parent=str(tmp_path / "base.vhd"))
    write(tmp_path / "leaf.avhd", MIB // 2, b"leaf" * (MIB // 2))
    return tmp_path


def write(path: Path, offset: int, data: bytes) -> None:
    with vhdkit.open_chain(str(path), writable=True) as chain:
        chain.write(offset, data, sync=True)


def view(path: Path) -> bytes:
    with vhdkit.open_chain(str(path)) as chain:
        return chain.read(0, chain.size)


def merge(path: Path, **options: object) -> vhdkit.MergeResult:
    return vhdkit.merge(vhdkit.plan_merge(str(path), **options))  # type: ignore[arg-type] # by name


def cancelled(path: Path, after: int, **options: object) -> None:
    left = [after]

    def stop(state: vhdkit.Progress) -> None:
        if state.phase is vhdkit.Phase.COPYING:
            left[0] -= 1
            if left[0] < 0:
                raise vhdkit.MergeCancelled("enough")

    with pytest.raises(vhdkit.MergeCancelled):
        vhdkit.merge(vhdkit.plan_merge(str(path), **options), progress=stop)  # type: ignore[arg-type] # by name


def test_a_destination_put_back_after_the_merge_was_complete_keeps_the_leaf(vms: Path) -> None:
    expected = view(vms / "leaf.avhd")
    shutil.copy2(vms / "base.vhd", vms / "backup")
    merge(vms / "leaf.avhd", undo=str(vms / "undo.vhd"))
    shutil.copy2(vms / "backup", vms / "base.vhd")
    (vms / "backup").unlink()
    with pytest.raises(vhdkit.JournalError, match="written after it was merged into"):
        vhdkit.drop_undo(str(vms / "undo.vhd"))
    assert view(vms / "leaf.avhd") == expected
    merge(vms / "leaf.avhd")
    vhdkit.drop_undo(str(vms / "undo.vhd"))
    assert view(vms / "base.vhd") == expected
    assert os.listdir(vms) == ["base.vhd"]


def test_a_destination_put_back_between_two_runs_is_merged_from_the_start(
    vms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhdkit.merging.run.sector_copier._FEW_BYTES", 1)
    monkeypatch.setattr("vhdkit.merging.run.sector_copier._MANY_BYTES", BLOCK)
    # The leaf differs from the base in one sector of what is copied first: no sample may decide about it.
    write(vms / "leaf.avhd", MIB // 2, b"base" * (MIB // 8))
    write(vms / "leaf.avhd", MIB // 2 + 77 * 512, b"precious" * 64)
    expected = view(vms / "leaf.avhd")
    shutil.copy(vms / "base.vhd", vms / "backup")
    cancelled(vms / "leaf.avhd", 20)
    os.replace(vms / "backup", vms / "base.vhd")
    assert vhdkit.plan_merge(str(vms / "leaf.avhd")).resume is vhdkit.Resume.RESTARTS
    merge(vms / "leaf.avhd")
    assert view(vms / "base.vhd") == expected


def test_a_snapshot_taken_while_the_sources_are_kept_is_relinked_when_they_go(vms: Path) -> None:
    merge(vms / "leaf.avhd", undo=str(vms / "undo.vhd"))
    vhdkit.create_image(str(vms / "next.avhd"), parent=str(vms / "leaf.avhd"))
    write(vms / "next.avhd", 3 * MIB, b"next" * 999)
    expected = view(vms / "next.avhd")
    result = vhdkit.drop_undo(str(vms / "undo.vhd"))
    assert result.relinked == (str(vms / "next.avhd"),)
    assert view(vms / "next.avhd") == expected
    assert sorted(os.listdir(vms)) == ["base.vhd", "next.avhd"]


def test_a_leaf_written_while_it_is_kept_is_merged_again_and_can_still_be_rolled_back(vms: Path) -> None:
    before = view(vms / "base.vhd")
    merge(vms / "leaf.avhd", undo=str(vms / "undo.vhd"), verify=True)
    write(vms / "leaf.avhd", 2 * MIB, b"later" * 4000)
    expected = view(vms / "leaf.avhd")
    with pytest.raises(vhdkit.JournalError, match="merges them again") as caught:
        vhdkit.drop_undo(str(vms / "undo.vhd"))
    assert "vhdkit merge" in as_typed(caught.value)
    merge(vms / "leaf.avhd", verify=True)
    assert view(vms / "base.vhd") == view(vms / "leaf.avhd") == expected
    vhdkit.rollback(str(vms / "undo.vhd"))
    assert view(vms / "base.vhd") == before
    assert view(vms / "leaf.avhd") == expected


def test_children_relinked_before_a_merge_began_again_are_rolled_back_too(vms: Path) -> None:
    vhdkit.create_image(str(vms / "child.avhd"), parent=str(vms / "leaf.avhd"))
    write(vms / "child.avhd", 5 * MIB, b"child" * 999)
    views = {name: view(vms / name) for name in ("base.vhd", "leaf.avhd", "child.avhd")}
    merge(vms / "leaf.avhd", undo=str(vms / "undo.vhd"))
    os.utime(vms / "leaf.avhd", (1e9, 1e9))
    merge(vms / "leaf.avhd")
    vhdkit.rollback(str(vms / "undo.vhd"))
    assert {name: view(vms / name) for name in views} == views


def test_a_snapshot_of_the_merged_disk_is_never_relinked_to_the_undo_image(vms: Path) -> None:
    merge(vms / "leaf.avhd", undo=str(vms / "undo.vhd"), relink_siblings=True)
    vhdkit.create_image(str(vms / "new.avhd"), parent=str(vms / "base.vhd"))
    expected = view(vms / "new.avhd")
    write(vms / "leaf.avhd", 4 * MIB, b"later" * 999)
    with pytest.raises(vhdkit.SiblingsError, match=r"new\.avhd"):
        merge(vms / "leaf.avhd", relink_siblings=True, undo=str(vms / "undo.vhd"))
    assert view(vms / "new.avhd") == expected


def test_an_undo_image_is_not_written_as_if_it_were_any_leaf(vms: Path) -> None:
    merge(vms / "leaf.avhd", undo=str(vms / "undo.vhd"))
    with pytest.raises(vhdkit.ReadOnlyImageError, match="taking back a merge"):
        write(vms / "undo.vhd", 0, b"spoilt")


@pytest.mark.skipif(not hasattr(os, "chown") or os.geteuid() != 0, reason="only the superuser gives files away")
def test_a_journal_of_another_user_is_not_believed(vms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhdkit.merging.plan.destination_pieces.STAGING_BYTES", BLOCK)
    cancelled(vms / "leaf.avhd", 3)
    os.chown(vms / "base.vhd.vhdkit-journal", 65534, 65534)
    with pytest.raises(vhdkit.JournalError, match="another user"):
        vhdkit.plan_merge(str(vms / "leaf.avhd"))


def test_a_destination_put_back_is_found_out_behind_stretches_where_nothing_was_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhdkit.chain.resolve_layers._WINDOW_BYTES", MIB)
    monkeypatch.setattr("vhdkit.merging.run.sector_copier._FEW_BYTES", 1)
    monkeypatch.setattr("vhdkit.merging.run.sector_copier._MANY_BYTES", BLOCK)
    vhdkit.create_image(str(tmp_path / "base.vhd"), size=8 * MIB, block_size=BLOCK)
    write(tmp_path / "base.vhd", 0, b"base" * (2 * MIB))
    vhdkit.create_image(str(tmp_path / "leaf.avhd"), parent=str(tmp_path / "base.vhd"))
    write(tmp_path / "leaf.avhd", 3 * MIB, b"leaf" * (MIB // 2))
    expected = view(tmp_path / "leaf.avhd")
    shutil.copy(tmp_path / "base.vhd", tmp_path / "backup")
    cancelled(tmp_path / "leaf.avhd", 20)
    os.replace(tmp_path / "backup", tmp_path / "base.vhd")
    merge(tmp_path / "leaf.avhd")
    assert view(tmp_path / "base.vhd") == expected


def test_an_undo_image_that_somebody_reads_is_not_removed(vms: Path) -> None:
    merge(vms / "leaf.avhd", undo=str(vms / "undo.vhd"))
    with vhdkit.open_image(str(vms / "undo.vhd"), exclusive=False), pytest.raises(vhdkit.ImageInUseError):
        vhdkit.drop_undo(str(vms / "undo.vhd"))
    assert {"base.vhd", "leaf.avhd", "undo.vhd"} <= set(os.listdir(vms))
    vhdkit.drop_undo(str(vms / "undo.vhd"))
    assert os.listdir(vms) == ["base.vhd"]


def test_dropping_that_is_refused_for_a_file_in_use_can_still_be_rolled_back(vms: Path) -> None:
    before = view(vms / "base.vhd")
    merge(vms / "leaf.avhd", undo=str(vms / "undo.vhd"))
    with vhdkit.open_image(str(vms / "leaf.avhd"), exclusive=False), pytest.raises(vhdkit.ImageInUseError):
        vhdkit.drop_undo(str(vms / "undo.vhd"))
    vhdkit.rollback(str(vms / "undo.vhd"))
    assert view(vms / "base.vhd") == before


def test_a_child_that_appears_after_the_plan_to_finish_is_not_orphaned(vms: Path) -> None:
    merge(vms / "leaf.avhd", undo=str(vms / "undo.vhd"))
    plan = vhdkit.plan_merge(str(vms / "leaf.avhd"))
    assert plan.resume is vhdkit.Resume.FINISHES
    vhdkit.create_image(str(vms / "late.avhd"), parent=str(vms / "leaf.avhd"))
    # As if the undo image had been dropped: the plan would remove the leaf, and does not know of the child.
    plan = replace(plan, removals=(str(vms / "leaf.avhd"),))
    with pytest.raises(vhdkit.MergeError, match="since"):
        vhdkit.merge(plan)
    assert (vms / "leaf.avhd").exists()


def test_a_relinked_child_that_was_put_back_holds_nothing_up_once_it_is_elsewhere(vms: Path) -> None:
    kid, journal = vms / "kid.avhd", vms / "base.vhd.vhdkit-journal"
    vhdkit.create_image(str(kid), parent=str(vms / "leaf.avhd"))
    write(kid, 0, b"kid!" * 1024)
    expected, before = view(kid), kid.read_bytes()
    cutting = CuttingFolder(LocalFolder(), at_first("remove", journal.name))
    plan = vhdkit.plan_merge(str(vms / "leaf.avhd"), folder=cutting)
    with pytest.raises(CutError):
        vhdkit.merge(plan, folder=cutting)
    assert view(kid) == expected
    kid.write_bytes(before)
    with pytest.raises(vhdkit.JournalError, match=r"kid\.avhd.*move it elsewhere"):
        merge(vms / "leaf.avhd")
    elsewhere = kid.rename(vms.parent / "kid.avhd")
    merge(vms / "leaf.avhd")
    assert [path.name for path in vms.iterdir()] == ["base.vhd"]
    elsewhere.rename(kid)
    vhdkit.rebase(str(kid), str(vms / "base.vhd"), ignore_id_mismatch=True)
    assert view(kid) == expected
