"""Going on with a merge that was cut off: nothing is copied twice, and no mark is believed that the files belie."""

from __future__ import annotations

import pytest

import vhdkit
from tests.crash.programs import CrashProgram
from tests.crash.walking import How, walk
from tests.cutting import JOURNAL, CutError, CuttingFolder, after_marks, at_first, cut_off, small_checkpoints
from tests.model import Create, Kind, Merge, ModelChain, Snapshot
from tests.plainvhd import SECTOR
from tests.tampering import write_behind
from tests.typed import as_typed
from tests.unit.test_merge_laws import SpyFolder, chain_over, contents, fold, in_memory, plain_view, put
from vhdkit.journal.merge_journal import read_journal
from vhdkit.storage.memory import MemoryFolder

KINDS = [Kind.FIXED, Kind.DYNAMIC, Kind.DIFFERENCING]
UNDO = "/vms/undo.avhd"


@pytest.mark.parametrize("gap", range(512, 6144, 512))
def test_what_lies_where_new_blocks_go_is_gone_before_the_journal_says_that_there_is_room(gap: int) -> None:
    """The old footer lies inside a block that is added, which holds fewer sectors than it has."""
    build = (Create(kind=Kind.DYNAMIC, sector_count=40), put(0, 8, 9), Snapshot(), put(16, 1, 7))
    program = CrashProgram(name=f"footer gap {gap}", build=build, vary={1: {"footer_gap": gap}})
    assert walk(program, How(seed=1)).findings == []


def long_chain(kind: Kind) -> ModelChain:
    """Every fourth sector of 200, in old and in new blocks, from two layers."""
    top = [put(sector, 2, sector) for sector in range(2, 200, 4)]
    middle = [put(sector, 1, sector) for sector in range(0, 200, 8)]
    return chain_over(kind, put(0, 50, 1), Snapshot(), *middle, Snapshot(), *top, sectors=200)


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_checkpoints(monkeypatch)


def payload_written(spy: SpyFolder, path: str) -> int:
    return sum(event.length for event in spy.events if event.operation in {"write", "copy"} and event.path == path)


def uncut(kind: Kind) -> dict[str, bytes]:
    folder, paths = in_memory(long_chain(kind))
    fold(folder, paths, Merge(depth_to=2))
    return contents(folder)


# Going on


@pytest.mark.usefixtures("marks")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 4, 8])
def test_it_goes_on_at_the_mark_copies_nothing_again_and_ends_in_the_same_bytes(kind: Kind, count: int) -> None:
    folder, paths = in_memory(long_chain(kind))
    cut_off(folder, paths[0], paths[2], after_marks(count))
    journal = read_journal(folder, paths[2])
    assert journal is not None
    assert 0 < journal.mark < 200 * SECTOR
    mark, done = journal.mark, journal.bytes_done
    spy = SpyFolder(folder)
    plan, result = fold(spy, paths, Merge(depth_to=2))
    assert plan.resume is vhdkit.Resume.CONTINUES
    assert (plan.mark, plan.bytes_done) == (mark, done)
    assert result.resumed
    assert result.bytes_copied == plan.payload_bytes - done
    writes = [event for event in spy.events if event.operation in {"write", "copy"} and event.path == paths[2]]
    if kind is Kind.FIXED:
        assert min(event.offset for event in writes) >= mark
    # Gaps between neighbouring pieces are written along; bitmaps and table entries come to 20 sectors and less.
    assert payload_written(spy, paths[2]) < (200 * SECTOR - mark) + 40 * SECTOR
    assert contents(folder) == uncut(kind)


@pytest.mark.usefixtures("marks")
@pytest.mark.parametrize("kind", [Kind.DYNAMIC, Kind.DIFFERENCING])
def test_going_on_needs_no_space_again(kind: Kind) -> None:
    folder, paths = in_memory(long_chain(kind))
    plan = cut_off(folder, paths[0], paths[2], after_marks(1))
    assert plan.space_needed > 0
    full = SpyFolder(folder, free=0)
    again = vhdkit.plan_merge(paths[0], into=paths[2], folder=full)
    assert (again.obstacles, again.space_needed) == ((), 0)
    vhdkit.merge(again, folder=full)
    assert contents(folder) == uncut(kind)


@pytest.mark.usefixtures("marks")
@pytest.mark.parametrize("kind", KINDS)
def test_it_may_be_cut_off_again_and_again(kind: Kind) -> None:
    """Each run gets one mark further."""
    folder, paths = in_memory(long_chain(kind))
    runs, expected = 0, plain_view(folder, paths)
    while True:
        plan = vhdkit.plan_merge(paths[0], into=paths[2], folder=folder)
        syncs = (2 if plan.resume is None else 0) + 1
        seen = 0

        def when(event: object, limit: int = syncs) -> bool:
            nonlocal seen
            seen += getattr(event, "operation", "") == "sync" and str(getattr(event, "path", "")).endswith(JOURNAL)
            return seen > limit

        try:
            vhdkit.merge(plan, folder=CuttingFolder(folder, when))
        except CutError:
            runs += 1
            assert plain_view(folder, paths) == expected
            assert runs < 100
            continue
        break
    assert runs > 5
    assert contents(folder) == uncut(kind)


@pytest.mark.usefixtures("marks")
def test_progress_begins_where_the_earlier_run_was() -> None:
    folder, paths = in_memory(long_chain(Kind.DYNAMIC))
    cut_off(folder, paths[0], paths[2], after_marks(4))
    plan = vhdkit.plan_merge(paths[0], into=paths[2], folder=folder)
    seen: list[vhdkit.Progress] = []
    vhdkit.merge(plan, progress=seen.append, folder=folder)
    assert seen[0].bytes_done == plan.bytes_done > 0
    assert seen[-1].bytes_done == seen[-1].bytes_total == plan.payload_bytes


# Beginning again


@pytest.mark.usefixtures("marks")
@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_was_written_since_is_copied_again(kind: Kind, depth: int) -> None:
    folder, paths = in_memory(long_chain(kind))
    cut_off(folder, paths[0], paths[2], after_marks(8))
    write_behind(paths[depth], 0, b"late" * 128, folder=folder)
    folder[paths[depth]].mtime += 1
    expected = plain_view(folder, paths)
    plan, _ = fold(folder, paths, Merge(depth_to=2))
    assert plan.resume is vhdkit.Resume.RESTARTS
    assert plan.bytes_done == 0
    assert plain_view(folder, paths[2:]) == expected
    assert (b"late" in expected) or depth == 1


@pytest.mark.usefixtures("marks")
@pytest.mark.parametrize("kind", KINDS)
def test_a_destination_that_was_put_back_from_a_backup_is_merged_from_the_start(kind: Kind) -> None:
    folder, paths = in_memory(long_chain(kind))
    backup = bytes(folder[paths[2]].content)
    expected = plain_view(folder, paths)
    cut_off(folder, paths[0], paths[2], after_marks(8))
    folder[paths[2]].content[:] = backup
    plan, _ = fold(folder, paths, Merge(depth_to=2))
    assert plan.resume is vhdkit.Resume.RESTARTS
    assert plain_view(folder, paths[2:]) == expected
    assert list(contents(folder)) == sorted(paths[2:])


@pytest.mark.usefixtures("marks")
@pytest.mark.parametrize("depth", range(4))
def test_times_alone_begin_nothing_again(depth: int) -> None:
    """As in a folder that was copied without them: what the files hold is read, and fits."""
    folder, paths = in_memory(long_chain(Kind.DIFFERENCING))
    cut_off(folder, paths[0], paths[2], after_marks(4))
    folder[paths[depth]].mtime += 1
    plan, _ = fold(folder, paths, Merge(depth_to=2))
    assert plan.resume is vhdkit.Resume.CONTINUES
    assert contents(folder) == uncut(Kind.DIFFERENCING)


# Other wishes than before


@pytest.mark.usefixtures("marks")
def test_another_destination_is_refused_until_the_first_is_done() -> None:
    folder, paths = in_memory(long_chain(Kind.DYNAMIC))
    expected = plain_view(folder, paths)
    cut_off(folder, paths[0], paths[2], after_marks(2))
    before = contents(folder)
    for top, into in ((paths[0], paths[1]), (paths[1], paths[2])):
        plan = vhdkit.plan_merge(top, into=into, folder=folder)
        (obstacle,) = [each for each in plan.obstacles if isinstance(each, vhdkit.JournalError)]
        assert "finish that first" in str(obstacle)
        assert f"{paths[0]} shows its disk all the same, and the layers below it no longer" in str(obstacle)
        assert obstacle.path == paths[2]
        with pytest.raises(vhdkit.JournalError):
            vhdkit.merge(plan, folder=folder)
    assert contents(folder) == before
    plan = vhdkit.plan_merge(paths[0], to="/vms/new.vhd", folder=folder)
    vhdkit.merge(plan, folder=folder)
    assert plain_view(folder, ["/vms/new.vhd"]) == expected


@pytest.mark.usefixtures("marks")
@pytest.mark.parametrize("first", [None, UNDO])
def test_another_undo_image_than_before_is_refused(first: str | None) -> None:
    folder, paths = in_memory(long_chain(Kind.DYNAMIC))
    cut_off(folder, paths[0], paths[2], after_marks(2), undo=first)
    before = contents(folder)
    plan = vhdkit.plan_merge(paths[0], into=paths[2], undo="/vms/second.avhd", folder=folder)
    with pytest.raises(vhdkit.JournalError, match="earlier run"):
        vhdkit.merge(plan, folder=folder)
    assert contents(folder) == before


@pytest.mark.usefixtures("marks")
def test_the_undo_image_of_an_earlier_run_is_gone_on_with_even_if_nobody_asks_for_one() -> None:
    folder, paths = in_memory(long_chain(Kind.DYNAMIC))
    old = plain_view(folder, paths[2:])
    cut_off(folder, paths[0], paths[2], after_marks(4), undo=UNDO)
    plan, result = fold(folder, paths, Merge(depth_to=2))
    assert plan.undo is not None
    assert (plan.undo.path, result.undo, result.removed) == (UNDO, UNDO, ())
    assert plain_view(folder, [UNDO, paths[2]]) == old


@pytest.mark.usefixtures("marks")
def test_an_undo_image_that_is_gone_stops_it() -> None:
    folder, paths = in_memory(long_chain(Kind.DYNAMIC))
    cut_off(folder, paths[0], paths[2], after_marks(4), undo=UNDO)
    undo = bytes(folder[UNDO].content)
    folder.remove(UNDO)
    with pytest.raises(vhdkit.JournalError, match="is gone; put it back"):
        fold(folder, paths, Merge(depth_to=2))
    storage = folder.create(UNDO)
    storage.write_at(0, undo)
    storage.close()
    fold(folder, paths, Merge(depth_to=2))


@pytest.mark.usefixtures("marks")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_sources_are_kept_if_either_run_was_asked_to(first: bool, second: bool) -> None:
    folder, paths = in_memory(long_chain(Kind.DYNAMIC))
    cut_off(folder, paths[0], paths[2], after_marks(4), keep_sources=first)
    fold(folder, paths, Merge(depth_to=2, keep=second))
    kept = [*paths, f"{paths[1]}.vhdkit-ended"]
    assert sorted(contents(folder)) == sorted(kept if first or second else paths[2:])


# Asking for it


@pytest.mark.usefixtures("marks")
def test_resume_finds_where_the_merge_was_going() -> None:
    folder, paths = in_memory(long_chain(Kind.DYNAMIC))
    cut_off(folder, paths[0], paths[2], after_marks(2))
    plan = vhdkit.plan_merge(paths[0], resume=True, folder=folder)
    assert (plan.destination, plan.resume) == (paths[2], vhdkit.Resume.CONTINUES)
    vhdkit.merge(plan, folder=folder)
    assert contents(folder) == uncut(Kind.DYNAMIC)


def test_there_must_be_something_to_resume() -> None:
    folder, paths = in_memory(long_chain(Kind.DYNAMIC))
    with pytest.raises(vhdkit.MergeError, match="no merge of it that could be resumed"):
        vhdkit.plan_merge(paths[0], resume=True, folder=folder)


@pytest.mark.usefixtures("marks")
def test_a_plan_made_before_another_run_is_void() -> None:
    folder, paths = in_memory(long_chain(Kind.DYNAMIC))
    old = vhdkit.plan_merge(paths[0], into=paths[2], folder=folder)
    cut_off(folder, paths[0], paths[2], after_marks(2))
    before = contents(folder)
    with pytest.raises(vhdkit.MergeError):
        vhdkit.merge(old, folder=folder)
    assert contents(folder) == before


# Complete but for the names


@pytest.mark.parametrize("ending", ["layer-2.avhd", "layer-1.avhd", JOURNAL])
@pytest.mark.parametrize("resume", [False, True])
def test_a_merge_whose_topmost_source_is_gone_is_finished(ending: str, resume: bool) -> None:
    folder, paths = in_memory(long_chain(Kind.DYNAMIC))
    expected = plain_view(folder, paths)
    cut_off(folder, paths[0], paths[2], at_first("remove", ending))
    options = {"resume": True} if resume else {"into": paths[2]}
    plan = vhdkit.plan_merge(paths[0], folder=folder, **options)
    assert plan.resume is vhdkit.Resume.FINISHES
    assert (plan.payload_bytes, plan.space_needed) == (0, 0)
    spy = SpyFolder(folder)
    vhdkit.merge(plan, folder=spy)
    written = [event for event in spy.changes() if not event.path.endswith(JOURNAL)]
    assert {event.operation for event in written} <= {"remove", "sync folder"}
    assert contents(folder) == uncut(Kind.DYNAMIC)
    assert plain_view(folder, paths[2:]) == expected


def test_a_merge_that_was_finished_has_nothing_to_finish() -> None:
    folder, paths = in_memory(long_chain(Kind.DYNAMIC))
    fold(folder, paths, Merge(depth_to=2))
    with pytest.raises(FileNotFoundError):
        vhdkit.plan_merge(paths[0], into=paths[2], folder=folder)


@pytest.mark.parametrize("into_block", [0, 150])
def test_a_source_that_was_written_after_the_merge_was_complete_is_merged_again(into_block: int) -> None:
    folder, paths = in_memory(long_chain(Kind.DYNAMIC))
    cut_off(folder, paths[0], paths[2], at_first("remove", "layer-2.avhd"))
    with vhdkit.open_chain(paths[0], writable=True, folder=folder) as chain:
        chain.write(into_block * SECTOR, b"late" * 128)
    folder[paths[0]].mtime += 1
    expected = plain_view(folder, paths)
    plan, _ = fold(folder, paths, Merge(depth_to=2))
    assert plan.resume is vhdkit.Resume.RESTARTS
    assert list(contents(folder)) == [paths[2]]
    assert plain_view(folder, paths[2:]) == expected
    assert b"late" in expected


def test_a_lower_source_that_was_touched_once_the_topmost_is_gone_is_kept_and_said_to_be() -> None:
    """With the topmost gone nothing tells what it hides of it: it is neither removed nor merged."""
    folder, paths = in_memory(chain_over(Kind.DYNAMIC, Snapshot(), put(3, 9, 2), Snapshot(), put(5, 2, 3)))
    expected = plain_view(folder, paths)
    cut_off(folder, paths[0], paths[2], at_first("remove", "layer-1.avhd"))
    folder[paths[1]].mtime += 1
    plan, result = fold(folder, paths, Merge(depth_to=2))
    ended = [finding.path for finding in plan.findings if finding.corruption is vhdkit.Corruption.VIEW_ENDED]
    assert (ended, result.removed) == ([paths[1]], ())
    assert {paths[1], paths[2]} <= set(contents(folder))
    assert plain_view(folder, paths[2:]) == expected


def test_a_lower_source_that_was_touched_goes_if_the_destination_shows_all_of_it() -> None:
    folder, paths = in_memory(chain_over(Kind.DYNAMIC, Snapshot(), put(3, 9, 2), Snapshot(), put(15, 2, 3)))
    expected = plain_view(folder, paths)
    cut_off(folder, paths[0], paths[2], at_first("remove", "layer-1.avhd"))
    folder[paths[1]].mtime += 1
    fold(folder, paths, Merge(depth_to=2))
    assert list(contents(folder)) == [paths[2]]
    assert plain_view(folder, paths[2:]) == expected


# Who else comes by


def half_merged() -> tuple[MemoryFolder, list[str], bytes]:
    folder, paths = in_memory(long_chain(Kind.DYNAMIC))
    expected = plain_view(folder, paths)
    cut_off(folder, paths[0], paths[2], after_marks(4))
    return folder, paths, expected


@pytest.mark.usefixtures("marks")
def test_whoever_opens_the_chain_is_told_how_far_it_is() -> None:
    folder, paths, expected = half_merged()
    journal = read_journal(folder, paths[2])
    assert journal is not None
    percent = 100 * journal.bytes_done // journal.begin.payload_bytes
    with vhdkit.open_chain(paths[0], folder=folder) as chain:
        assert chain.read(0, chain.size) == expected
        (finding,) = [f for f in chain.findings if f.corruption is vhdkit.Corruption.MERGE_UNFINISHED]
    assert finding.path == paths[2]
    assert f"{percent} %" in finding.message
    assert "goes on, unless somebody is still at it" in finding.text
    assert 0 < percent < 100


@pytest.mark.usefixtures("marks")
def test_no_child_is_made_of_a_half_merged_destination() -> None:
    folder, paths, _ = half_merged()
    before = contents(folder)
    with pytest.raises(vhdkit.JournalError, match="no child can be made"):
        vhdkit.create_image("/vms/child.avhd", parent=paths[2], folder=folder)
    assert contents(folder) == before
    vhdkit.create_image("/vms/child.avhd", parent=paths[0], folder=folder)


@pytest.mark.usefixtures("marks")
def test_a_merge_that_is_under_way_elsewhere_in_the_chain_is_an_obstacle() -> None:
    """Into the lowest layer first; then another higher up, and one of what lies above it."""
    chain = chain_over(Kind.DYNAMIC, put(0, 40, 1), Snapshot(), put(3, 30, 2), Snapshot(), put(9, 3, 3), Snapshot())
    folder, paths = in_memory(chain)
    cut_off(folder, paths[2], paths[3], after_marks(1))
    before = contents(folder)
    for top, into in ((0, 1), (0, 2), (1, 2), (1, 3)):
        plan = vhdkit.plan_merge(paths[top], into=paths[into], folder=folder)
        assert any(isinstance(each, vhdkit.JournalError) and each.path == paths[3] for each in plan.obstacles)
    assert contents(folder) == before


@pytest.mark.usefixtures("marks")
def test_converting_a_half_merged_chain_is_not_hindered() -> None:
    folder, paths, expected = half_merged()
    vhdkit.convert(paths[0], "/vms/copy.vhd", folder=folder)
    assert plain_view(folder, ["/vms/copy.vhd"]) == expected


@pytest.mark.usefixtures("marks")
def test_a_merge_without_an_undo_image_goes_on_without_one_and_says_so() -> None:
    folder, paths, _ = half_merged()
    before = contents(folder)
    for into, resume in ((paths[2], False), (None, True)):
        plan = vhdkit.plan_merge(paths[0], into=into, undo=UNDO, resume=resume, folder=folder)
        (obstacle,) = plan.obstacles
        assert "keeps nothing for an undo; go on without --undo" in as_typed(obstacle)
        assert vhdkit.Corruption.UNDO_DOUBTED not in {finding.corruption for finding in plan.findings}
    assert contents(folder) == before
    fold(folder, paths, Merge(depth_to=2))


@pytest.mark.usefixtures("marks")
def test_the_command_to_go_on_finds_a_destination_in_another_folder() -> None:
    folder = MemoryFolder({})
    vhdkit.create_image("/base disks/base.vhd", size=1 << 24, folder=folder)
    vhdkit.create_image("/vms/leaf.avhd", parent="/base disks/base.vhd", folder=folder)
    with vhdkit.open_chain("/vms/leaf.avhd", writable=True, search=["/base disks"], folder=folder) as chain:
        chain.write(0, b"x" * (3 << 20))
    plan = vhdkit.plan_merge("/vms/leaf.avhd", search=["base disks"], folder=folder)

    def stop(state: vhdkit.Progress) -> None:
        if state.phase is vhdkit.Phase.FINISHING:
            raise vhdkit.MergeCancelled("enough")

    with pytest.raises(vhdkit.MergeCancelled) as stopped:
        vhdkit.merge(plan, folder=folder, progress=stop)
    command = "`vhdkit merge /vms/leaf.avhd --into '/base disks/base.vhd' --search '/base disks'`"
    call = "merge(plan_merge('/vms/leaf.avhd', into='/base disks/base.vhd', search=('/base disks',)))"
    assert call in "".join(stopped.value.__notes__)
    journal = read_journal(folder, "/base disks/base.vhd")
    assert journal is not None
    assert command in as_typed(journal.hint)
