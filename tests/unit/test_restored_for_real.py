"""Files put back, renamed, touched or removed between two runs, on a real disk: what people do to a merge cut off."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

import vhdkit
from tests.cutting import at_first, cut_off
from tests.typed import as_typed
from tests.unit.test_between_runs import BLOCK, MIB, merge, view, write
from vhdkit.chain.chain import Chain
from vhdkit.journal.merge_journal import read_journal
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.units import SECTOR
from vhdkit.vhd.open_image import open_image
from vhdkit.vhd.sparse_image import SparseImage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.test_merge_laws import Event

pytestmark = pytest.mark.thorough

JOURNAL = ".vhdkit-journal"


@pytest.fixture(autouse=True)
def _checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhdkit.merging.run.sector_copier._FEW_BYTES", 1)
    monkeypatch.setattr("vhdkit.merging.run.sector_copier._MANY_BYTES", BLOCK)


@pytest.fixture
def vms(tmp_path: Path) -> Path:
    """Three levels: half of what is merged lies in the base's blocks, and half in new ones."""
    vhdkit.create_image(str(tmp_path / "d0.vhd"), size=4 * MIB, block_size=BLOCK)
    write(tmp_path / "d0.vhd", 0, b"base" * (MIB // 4))
    for name, below, offset in (
        ("d1", "d0.vhd", MIB // 4),
        ("d2", "d1.avhd", MIB // 2),
        ("d3", "d2.avhd", 3 * MIB // 4),
    ):
        vhdkit.create_image(str(tmp_path / f"{name}.avhd"), parent=str(tmp_path / below))
        write(tmp_path / f"{name}.avhd", offset, name.encode() * (MIB // 4))
    return tmp_path


def cut(vms: Path, when: Callable[[Event], bool], top: str = "d3.avhd", **options: object) -> None:
    cut_off(LocalFolder(), str(vms / top), str(vms / "d0.vhd"), when, **options)


def after_records(count: int) -> Callable[[Event], bool]:
    left = [count]

    def when(event: Event) -> bool:
        left[0] -= event.operation == "sync" and event.path.endswith(JOURNAL)
        return left[0] < 0

    return when


def put_back(source: Path, target: Path, *, old_times: bool) -> None:
    (shutil.copy2 if old_times else shutil.copyfile)(source, target)


# Finding 1


@pytest.mark.parametrize("records", [2, 3, 5])
def test_a_block_that_another_program_has_added_to_the_destination_is_not_written_over(vms: Path, records: int) -> None:
    base, last = vms / "d0.vhd", 4 * MIB // BLOCK - 1
    cut(vms, after_records(records))
    with open_image(str(base), writable=True) as image:
        assert isinstance(image, SparseImage)
        at = image.data_end  # where such a program puts it
        image.table.assign(np.array([last]), np.array([at // SECTOR], np.uint32))
        image.write_at(at, b"\xff" * image.bitmap_size + b"else" * (BLOCK // 4))
    expected = view(vms / "d3.avhd")
    assert expected.endswith(b"else" * (BLOCK // 4))
    merge(vms / "d3.avhd", into=str(base))
    assert view(base) == expected


# Finding 2


def rolled_back_with(vms: Path, *names: str) -> None:
    """Cut a merge off, go on, cut off again, put files back as they were, go on to the end, and roll back."""
    undo = str(vms / "u.vhd")
    cut(vms, after_records(4), undo=undo)
    for name in names:
        shutil.copy2(vms / name, vms / f"{name}.kept")
    cut(vms, after_records(12), undo=undo)
    for name in names:
        os.replace(vms / f"{name}.kept", vms / name)
    merge(vms / "d3.avhd", into=str(vms / "d0.vhd"), undo=undo)
    vhdkit.rollback(undo)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhdkit.chain.resolve_layers._WINDOW_BYTES", 2 * BLOCK)


@pytest.mark.usefixtures("small_windows")
def test_an_older_journal_loses_nothing_of_what_the_undo_image_has(vms: Path) -> None:
    views = {name: view(vms / name) for name in ("d0.vhd", "d3.avhd")}
    rolled_back_with(vms, "d0.vhd" + JOURNAL)
    assert {name: view(vms / name) for name in views} == views


@pytest.mark.usefixtures("small_windows")
def test_an_older_undo_image_is_refused_and_the_disk_is_had_all_the_same(vms: Path) -> None:
    expected = view(vms / "d3.avhd")
    with pytest.raises(vhdkit.JournalError, match=r"Put the newest one back.*to='NEWFILE'") as caught:
        rolled_back_with(vms, "u.vhd")
    assert "--to NEWFILE` makes a new file of it" in as_typed(caught.value)
    with pytest.raises(vhdkit.JournalError, match="put back as it was"):
        vhdkit.rollback(str(vms / "u.vhd"))
    vhdkit.merge(vhdkit.plan_merge(str(vms / "d3.avhd"), to=str(vms / "new.vhd")))
    assert view(vms / "new.vhd") == view(vms / "d3.avhd") == expected


@pytest.mark.usefixtures("small_windows")
def test_journal_and_undo_image_put_back_together_end_the_roll_back_and_not_the_merge(vms: Path) -> None:
    expected = view(vms / "d3.avhd")
    # As a sector that both have; written past the layers that read through it.
    with Chain([open_image(str(vms / "d0.vhd"), writable=True)]) as chain:
        chain.write(MIB // 2, b"d2" * 1024, sync=True)
    with pytest.raises(vhdkit.JournalError, match="nothing proves"):
        rolled_back_with(vms, "d0.vhd" + JOURNAL, "u.vhd")
    assert view(vms / "d3.avhd") == expected
    vhdkit.drop_undo(str(vms / "u.vhd"))
    assert view(vms / "d0.vhd") == expected


# Findings 4 and 10


def test_a_layer_between_touched_after_the_cut_is_kept_and_never_merged(vms: Path) -> None:
    expected = view(vms / "d3.avhd")
    cut(vms, at_first("remove", "d1.avhd"))
    os.utime(vms / "d1.avhd", (2e9, 2e9))
    write_over = vms / "d1.avhd"
    content = write_over.read_bytes()
    plan = vhdkit.plan_merge(str(vms / "d1.avhd"), into=str(vms / "d0.vhd"))
    assert plan.resume is vhdkit.Resume.FINISHES
    vhdkit.merge(plan)
    assert view(vms / "d0.vhd") == expected
    assert not (vms / f"d0.vhd{JOURNAL}").exists()
    assert not write_over.exists() or write_over.read_bytes() == content


@pytest.mark.parametrize("records", [3, 6, 60])
def test_no_child_is_made_of_a_layer_whose_view_has_ended(vms: Path, records: int) -> None:
    if records < 60:
        cut(vms, after_records(records))
    else:
        cut(vms, at_first("remove", "d1.avhd"))
    with pytest.raises(vhdkit.JournalError, match="view has ended"):
        vhdkit.create_image(str(vms / "child.avhd"), parent=str(vms / "d1.avhd"))
    assert not (vms / "child.avhd").exists()
    merge(vms / "d1.avhd" if records == 60 else vms / "d3.avhd", into=str(vms / "d0.vhd"))
    vhdkit.create_image(str(vms / "child.avhd"), parent=str(vms / "d0.vhd"))


def test_a_new_leaf_with_the_name_of_one_just_merged_is_merged(vms: Path) -> None:
    cut(vms, at_first("remove", JOURNAL))
    vhdkit.create_image(str(vms / "d3.avhd"), parent=str(vms / "d0.vhd"))
    write(vms / "d3.avhd", 512, b"new" * 512)
    expected = view(vms / "d3.avhd")
    merge(vms / "d3.avhd")
    assert view(vms / "d0.vhd") == expected
    assert os.listdir(vms) == ["d0.vhd"]


def test_a_destination_put_back_once_the_sources_are_gone_is_not_said_to_be_merged(vms: Path) -> None:
    shutil.copyfile(vms / "d0.vhd", vms / "backup")
    cut(vms, at_first("remove", JOURNAL))
    shutil.copyfile(vms / "backup", vms / "d0.vhd")
    with pytest.raises(vhdkit.JournalError, match="put back"):
        merge(vms / "d3.avhd", into=str(vms / "d0.vhd"))


def test_a_journal_that_says_merged_of_what_was_not_removes_nothing(vms: Path) -> None:
    expected = view(vms / "d3.avhd")
    shutil.copy2(vms / "d0.vhd", vms / "backup")
    cut(vms, at_first("remove", "d3.avhd"))
    put_back(vms / "backup", vms / "d0.vhd", old_times=True)
    plan = vhdkit.plan_merge(str(vms / "d3.avhd"), into=str(vms / "d0.vhd"), verify=True)
    assert plan.resume is vhdkit.Resume.RESTARTS
    vhdkit.merge(plan)
    assert view(vms / "d0.vhd") == expected


# Findings 7 and 8


def test_a_drop_that_is_refused_for_a_child_leaves_the_roll_back(vms: Path) -> None:
    views = {name: view(vms / name) for name in ("d0.vhd", "d1.avhd", "d2.avhd", "d3.avhd")}
    merge(vms / "d3.avhd", into=str(vms / "d0.vhd"), undo=str(vms / "u.vhd"))
    journal = vms / f"d0.vhd{JOURNAL}"
    # With the journal out of sight, as another program would make it.
    os.rename(journal, vms / "aside")
    vhdkit.create_image(str(vms / "child.avhd"), parent=str(vms / "d2.avhd"))
    os.rename(vms / "aside", journal)
    before = (vms / f"d0.vhd{JOURNAL}").read_bytes()
    with pytest.raises(vhdkit.SiblingsError, match=r"child\.avhd"):
        vhdkit.drop_undo(str(vms / "u.vhd"))
    assert (vms / f"d0.vhd{JOURNAL}").read_bytes() == before
    (vms / "child.avhd").unlink()
    vhdkit.rollback(str(vms / "u.vhd"))
    assert {name: view(vms / name) for name in views} == views


@pytest.mark.parametrize("verb", [vhdkit.rollback, vhdkit.drop_undo])
def test_a_source_renamed_between_cut_and_resume_is_found_afterwards(vms: Path, verb: Callable[[str], object]) -> None:
    old, expected = view(vms / "d0.vhd"), view(vms / "d3.avhd")
    cut(vms, after_records(6), undo=str(vms / "u.vhd"))
    os.rename(vms / "d3.avhd", vms / "leaf.avhd")
    merge(vms / "leaf.avhd", into=str(vms / "d0.vhd"))
    journal = read_journal(LocalFolder(), str(vms / "d0.vhd"))
    assert journal is not None
    assert [source.path for source in journal.begin.sources] == ["leaf.avhd", "d2.avhd", "d1.avhd"]
    verb(str(vms / "u.vhd"))
    assert view(vms / "d0.vhd") == (old if verb is vhdkit.rollback else expected)
    assert (vms / "leaf.avhd").exists() == (verb is vhdkit.rollback)


def test_an_undo_image_renamed_between_cut_and_resume_is_found(vms: Path) -> None:
    old = view(vms / "d0.vhd")
    cut(vms, after_records(6), undo=str(vms / "u.vhd"))
    os.rename(vms / "u.vhd", vms / "kept.vhd")
    assert merge(vms / "d3.avhd", into=str(vms / "d0.vhd")).undo == str(vms / "kept.vhd")
    vhdkit.rollback(str(vms / "kept.vhd"))
    assert view(vms / "d0.vhd") == old


@pytest.mark.parametrize("top", ["d3.avhd", "d2.avhd"])
def test_the_undo_image_of_an_unfinished_merge_is_called_that_and_no_sibling(vms: Path, top: str) -> None:
    cut(vms, after_records(6), undo=str(vms / "u.vhd"))
    plan = vhdkit.plan_merge(str(vms / top), into=str(vms / "d0.vhd"), undo=str(vms / "other.vhd"))
    said = [str(each) for each in plan.obstacles]
    assert not any("ruin" in each and "u.vhd" in each for each in said)
    if top == "d3.avhd":
        assert len(said) == 1
        assert f"{vms / 'u.vhd'} (undo image of the unfinished merge)" in said[0]


@pytest.mark.parametrize("with_times", [False, True])
def test_a_folder_that_was_copied_goes_on_where_it_was(vms: Path, with_times: bool) -> None:
    expected = view(vms / "d3.avhd")
    cut(vms, after_records(6))
    copy = vms.with_name(f"{vms.name}-copy")
    shutil.copytree(vms, copy, copy_function=shutil.copy2 if with_times else shutil.copyfile)
    plan = vhdkit.plan_merge(str(copy / "d3.avhd"), into=str(copy / "d0.vhd"))
    assert plan.resume is vhdkit.Resume.CONTINUES
    assert plan.mark > 0
    vhdkit.merge(plan)
    assert view(copy / "d0.vhd") == expected


@pytest.mark.parametrize("verify", [False, True])
def test_a_complete_merge_whose_sources_are_kept_is_read_again_when_that_is_asked_for(
    vms: Path, monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    expected = view(vms / "d3.avhd")
    cut(vms, at_first("remove", JOURNAL), keep_sources=True)
    raw = (vms / "d0.vhd").read_bytes()
    (vms / "d0.vhd").write_bytes(raw.replace(b"d3" * 256, bytes(512), 1))
    # A disk that has lost a sector changes no time of the file.
    monkeypatch.setattr("vhdkit.journal.file_state.Seen.proves", lambda *_: True)
    plan = vhdkit.plan_merge(str(vms / "d3.avhd"), into=str(vms / "d0.vhd"), keep_sources=True, verify=verify)
    assert plan.resume is (vhdkit.Resume.RESTARTS if verify else vhdkit.Resume.FINISHES)
    vhdkit.merge(plan)
    assert (view(vms / "d0.vhd") == expected) == verify
