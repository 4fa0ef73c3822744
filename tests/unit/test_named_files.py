"""Names in a journal: they lead to files of the chain's folders and of those that the user named, or nowhere."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.cutting import JOURNAL, at_first, cut_off, small_checkpoints
from tests.model import Kind, Snapshot, write_files
from tests.side_files import taken_apart
from tests.typed import as_typed
from tests.unit.test_merge_laws import chain_over, put, vhdkit_view
from vhdkit.journal import records
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.new_file import partial_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Record = dict[str, Any]


@pytest.fixture
def vms(tmp_path: Path) -> Path:
    """A chain of two in `in`, and a copy of it in `victim`, which is none of its business."""
    for name in ("in", "victim"):
        (tmp_path / name).mkdir()
        chain = chain_over(Kind.DYNAMIC, put(0, 9, 1), Snapshot(), put(3, 9, 2))
        write_files(chain, tmp_path / name)
    (tmp_path / "victim" / "backup.vhd").write_bytes(b"precious")
    return tmp_path / "in"


def forge(vms: Path, change: Callable[[Record], object]) -> None:
    journal = vms / ("layer-0.vhd" + JOURNAL)
    found, _, _ = taken_apart(journal.read_bytes())
    change(found[0])
    journal.write_bytes(records.encode(found))


def looked_at(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), os.stat(path).st_mode) for path in sorted(folder.iterdir())}


def begin(vms: Path, *, undo: str = "", before: str = "create") -> list[str]:
    """Cut a merge off when its journal has begun; with an undo image before that is made, or gets its name."""
    paths = [str(vms / "layer-1.avhd"), str(vms / "layer-0.vhd")]
    options = {"undo": str(vms / undo)} if undo else {}
    when = at_first(before, ".partial") if undo and before == "create" else at_first(before, "undo.vhd")
    cut_off(LocalFolder(), paths[0], paths[1], when if undo else at_first("write", ".vhd"), **options)
    return paths


OUTSIDE = ["../victim/pwned.vhd", "../victim/backup.vhd", "../../pwned.vhd", "../in2/pwned.vhd"]


@pytest.mark.parametrize("undo", OUTSIDE)
def test_no_undo_image_is_made_where_a_journal_says(vms: Path, undo: str) -> None:
    paths = begin(vms, undo="undo.vhd")
    forge(vms, lambda begun: begun.update(undo=undo))
    before = {path: looked_at(path) for path in (vms, vms.parent / "victim")}
    for options in ({}, {"resume": True}, {"undo": str(vms / "undo.vhd")}):
        with pytest.raises(vhdkit.JournalError, match="outside of the folders"):
            vhdkit.merge(vhdkit.plan_merge(paths[0], **options))
    assert {path: looked_at(path) for path in before} == before
    assert sorted(os.listdir(vms.parent)) == ["in", "victim"]


def test_an_undo_image_that_was_never_made_is_made_for_who_names_it_alone(vms: Path) -> None:
    paths = begin(vms, undo="undo.vhd")
    before, view = looked_at(vms), vhdkit_view(LocalFolder(), paths[0])
    with pytest.raises(vhdkit.JournalError, match="goes on") as caught:
        vhdkit.merge(vhdkit.plan_merge(paths[0]))
    assert re.search(r"--undo \S*undo.vhd` goes on", as_typed(caught.value))
    assert looked_at(vms) == before
    vhdkit.merge(vhdkit.plan_merge(paths[0], undo=str(vms / "undo.vhd")))
    assert vhdkit_view(LocalFolder(), paths[1]) == view
    assert (vms / "undo.vhd").exists()


def test_a_file_elsewhere_is_allowed_where_its_folder_is_named(vms: Path) -> None:
    """The undo image lies on another disk, say."""
    paths = [str(vms / "layer-1.avhd"), str(vms / "layer-0.vhd")]
    elsewhere = vms.parent / "elsewhere"
    elsewhere.mkdir()
    undo = str(elsewhere / "undo.vhd")
    cut_off(LocalFolder(), paths[0], paths[1], at_first("write", "layer-0.vhd"), undo=undo)
    with pytest.raises(vhdkit.JournalError, match=r"if that is right, add search=\[.*elsewhere") as caught:
        vhdkit.plan_merge(paths[0])
    assert f"if that is right, add --search {elsewhere}" in as_typed(caught.value)
    assert vhdkit.plan_merge(paths[0], undo=undo).obstacles == ()
    vhdkit.merge(vhdkit.plan_merge(paths[0], search=[str(elsewhere)]))
    assert undo in vhdkit.rollback(undo, search=[str(vms)])


@pytest.mark.skipif(os.name == "nt", reason="links are for administrators there")
def test_a_name_that_is_a_link_is_not_followed(vms: Path) -> None:
    paths = begin(vms, undo="undo.vhd")
    os.symlink(vms.parent / "victim" / "backup.vhd", vms / "link.vhd")
    os.symlink(vms.parent / "victim", vms / "folder")
    for undo, why in (("link.vhd", "a link"), ("folder/new.vhd", "outside of the folders")):
        forge(vms, lambda begun, undo=undo: begun.update(undo=undo))  # type: ignore[misc]
        with pytest.raises(vhdkit.JournalError, match=why):
            vhdkit.plan_merge(paths[0])
    assert sorted(os.listdir(vms.parent / "victim")) == ["backup.vhd", "layer-0.vhd", "layer-1.avhd"]


@pytest.mark.parametrize("job", ["deadbeef-0000", "x/../../y", "nightly", "0123abcd-0000-4000-8000-000000000000"])
def test_a_half_made_file_that_is_not_the_jobs_is_not_removed(vms: Path, job: str) -> None:
    paths = begin(vms, undo="undo.vhd")
    forge(vms, lambda begun: begun.update(job=job))
    names = {"undo.vhd.deadbeef.partial", "undo.vhd.0123abcd.partial", "undo.vhd.nightly.partial"}
    for name in names:
        shutil.copyfile(vms.parent / "victim" / "layer-0.vhd", vms / name)
    plan = vhdkit.plan_merge(paths[0], undo=str(vms / "undo.vhd"))
    if job.startswith("0123abcd"):
        with pytest.raises(FileExistsError):
            vhdkit.merge(plan)
    else:
        vhdkit.merge(plan)
    assert names <= {*os.listdir(vms)}


def test_a_half_made_file_that_is_the_jobs_is_removed(vms: Path) -> None:
    paths = begin(vms, undo="undo.vhd", before="publish")
    left = [name for name in os.listdir(vms) if name.endswith(".partial")]
    assert len(left) == 1
    vhdkit.merge(vhdkit.plan_merge(paths[0], undo=str(vms / "undo.vhd")))
    assert [name for name in os.listdir(vms) if name.endswith(".partial")] == []
    assert partial_name("x", "0123abcdef") == "x.0123abcd.partial"


@pytest.mark.parametrize(("length", "goes"), [(0, True), (1, True), (512, True), (513, False)])
def test_a_half_made_file_of_stale_bytes_goes_only_if_nothing_of_it_was_durable_yet(
    vms: Path, length: int, goes: bool
) -> None:
    paths = begin(vms, undo="undo.vhd", before="publish")
    (left,) = vms.glob("*.partial")
    left.write_bytes(b"\xac" * length)
    plan = vhdkit.plan_merge(paths[0], undo=str(vms / "undo.vhd"))
    if goes:
        vhdkit.merge(plan)
    else:
        with pytest.raises(FileExistsError, match="partial"):
            vhdkit.merge(plan)
    assert left.exists() is not goes


def test_a_journal_that_is_none_is_named_where_its_merge_may_be_meant(
    vms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_checkpoints(monkeypatch)
    paths = begin(vms)
    forge(vms, lambda begun: begun.update(started=10**400))
    os.remove(paths[0])
    for call in (lambda: vhdkit.plan_merge(paths[0]), lambda: vhdkit.rollback(str(vms / "undo.vhd"))):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        assert "layer-0.vhd.vhdkit-journal" in "".join(caught.value.__notes__)
    assert any("that cannot be read" in finding.message for finding in vhdkit.scan(str(vms)).unfinished)


def test_one_journal_that_is_none_hides_only_itself_from_the_list(
    vms: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VHDKIT_STATE", str(vms.parent / "state"))
    begin(vms)
    begin(vms.parent / "victim")
    forge(vms, lambda begun: begun.update(started=10**400))
    found = vhdkit.jobs(search=[str(vms.parent)])
    assert [job.destination for job in found] == [str(vms.parent / "victim" / "layer-0.vhd")]
    assert "in/layer-0.vhd.vhdkit-journal" in caplog.text
    assert [job.destination for job in vhdkit.jobs()] == [str(vms.parent / "victim" / "layer-0.vhd")]


def test_a_job_of_a_journal_that_names_files_elsewhere_is_not_listed(
    vms: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VHDKIT_STATE", str(vms.parent / "state"))  # a list of its own, without other tests' jobs
    begin(vms, undo="undo.vhd")
    forge(vms, lambda begun: begun.update(undo="../victim/pwned.vhd"))
    assert vhdkit.jobs(search=[str(vms)]) == ()
    assert "outside of the folders" in caplog.text
