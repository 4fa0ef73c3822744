"""The undo image: its view is the destination before the merge, and merged back it restores the whole chain."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cutting import JOURNAL, after_marks, at_first, cut_off, small_checkpoints
from tests.keeping import keep
from tests.model import Kind, ModelChain, Snapshot
from tests.plaincheck import validate
from tests.typed import as_typed
from tests.unit.test_merge_laws import Event, SpyFolder, chain_over, contents, in_memory, long_growth, plain_view, put
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from pathlib import Path

    from vhdkit.storage.memory import MemoryFolder

KINDS = [Kind.FIXED, Kind.DYNAMIC, Kind.DIFFERENCING]
UNDO = "/vms/undo.avhd"

CHAINS: dict[str, ModelChain] = {
    **{
        f"two levels {kind}": chain_over(
            kind, put(0, 50, 1), Snapshot(), put(3, 60, 2), Snapshot(), put(40, 9, 3), put(90, 9, 0), sectors=100
        )
        for kind in KINDS
    },
    **{f"nothing in common {kind}": chain_over(kind, Snapshot(), put(20, 9, 1), Snapshot()) for kind in KINDS},
    "growth dynamic": long_growth(Kind.DYNAMIC, 0, 1),
    "growth differencing": long_growth(Kind.DIFFERENCING, 0, 1),
    "grown in the last block": chain_over(
        Kind.DYNAMIC, put(36, 1, 9), Snapshot(sector_count=39), put(38, 1, 7), sectors=37
    ),
    "wipes": chain_over(
        Kind.DIFFERENCING, put(30, 9, 5), Snapshot(sector_count=60), put(55, 2, 6), put(1, 2, 7), sectors=40
    ),
}


def depth_of(chain: ModelChain) -> int:
    kinds = [layer.kind for layer in chain.layers]
    return len(kinds) - 1 if kinds[-1] is Kind.FIXED else min(2, len(kinds) - 1)


def merged_with_undo(chain: ModelChain) -> tuple[MemoryFolder, list[str], vhdkit.MergePlan, vhdkit.MergeResult]:
    folder, paths = in_memory(chain)
    plan = vhdkit.plan_merge(paths[0], into=paths[depth_of(chain)], undo=UNDO, folder=folder)
    return folder, paths, plan, vhdkit.merge(plan, folder=folder)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_the_undo_image_reads_as_the_destination_before_and_is_told_to_the_byte(chain: ModelChain) -> None:
    depth = depth_of(chain)
    folder, paths, plan, result = merged_with_undo(chain)
    assert plan.undo is not None
    assert len(folder[UNDO].content) == plan.undo.size
    assert plain_view(folder, [UNDO, *paths[depth:]]) == chain.view(depth).tobytes()
    assert plain_view(folder, paths[depth:]) == chain.view().tobytes()
    assert validate(bytes(folder[UNDO].content)) == []
    assert (result.undo, result.removed, plan.removals) == (UNDO, (), ())
    assert set(contents(folder)) == {*paths, UNDO, paths[depth] + JOURNAL}
    sizes = sum(len(raw) for path, raw in contents(folder).items() if not path.endswith(JOURNAL))
    before = sum(len(raw) for raw in contents(in_memory(chain)[0]).values())
    growth = plan.destination_size - plan.destination_size_before
    assert sizes - before == plan.undo.size + growth
    assert plan.undo.space <= plan.undo.size
    assert plan.space_needed == plan.undo.space + growth


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_rolling_back_restores_every_layer(chain: ModelChain) -> None:
    depth = depth_of(chain)
    folder, paths, _, _ = merged_with_undo(chain)
    changed = vhdkit.rollback(UNDO, folder=folder)
    assert changed == (paths[depth], UNDO)
    assert list(contents(folder)) == sorted(paths)
    for layer in range(len(paths)):
        assert plain_view(folder, paths[layer:]) == chain.view(layer).tobytes(), layer
        assert validate(bytes(folder[paths[layer]].content)) == []


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_dropping_makes_the_merge_final(chain: ModelChain) -> None:
    depth = depth_of(chain)
    folder, paths, _, _ = merged_with_undo(chain)
    result = vhdkit.drop_undo(UNDO, folder=folder)
    assert result.removed == tuple(paths[:depth])
    assert list(contents(folder)) == sorted(paths[depth:])
    assert plain_view(folder, paths[depth:]) == chain.view().tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("marks", [1, 3])
def test_a_merge_that_was_cut_off_can_be_rolled_back(kind: Kind, marks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small_checkpoints(monkeypatch)
    chain = CHAINS[f"two levels {kind}"]
    folder, paths = in_memory(chain)
    cut_off(folder, paths[0], paths[2], after_marks(marks), undo=UNDO)
    vhdkit.rollback(UNDO, folder=folder)
    assert list(contents(folder)) == sorted(paths)
    for layer in range(len(paths)):
        assert plain_view(folder, paths[layer:]) == chain.view(layer).tobytes()


def test_what_is_overwritten_is_durable_in_the_undo_image_first() -> None:
    folder, paths = in_memory(CHAINS["two levels dynamic"])
    before, durable = plain_view(folder, paths[2:]), b""

    def look(event: Event) -> None:
        nonlocal durable
        if event.path == UNDO and event.operation == "sync":
            durable = bytes(folder[UNDO].content)
        if event.path == paths[2] and event.operation in {"write", "copy"} and plain_view(folder, paths[2:]) != before:
            stash = bytes(folder[UNDO].content)
            folder[UNDO].content[:] = durable
            assert plain_view(folder, [UNDO, paths[2]]) == before
            folder[UNDO].content[:] = stash

    spy = SpyFolder(folder, look)
    vhdkit.merge(vhdkit.plan_merge(paths[0], into=paths[2], undo=UNDO, folder=spy), folder=spy)
    assert plain_view(folder, paths[2:]) != before


# Siblings


def with_sibling() -> tuple[MemoryFolder, list[str], str, bytes]:
    folder, paths = in_memory(CHAINS["two levels dynamic"])
    sibling = "/vms/sibling.avhd"
    vhdkit.create_image(sibling, parent=paths[2], folder=folder)
    with vhdkit.open_chain(sibling, writable=True, folder=folder) as chain:
        chain.write(512, b"sibling!" * 64)
    return folder, paths, sibling, plain_view(folder, [sibling, paths[2]])


def test_siblings_are_named_and_kept_alive_by_the_undo_image() -> None:
    folder, paths, sibling, expected = with_sibling()
    plan = vhdkit.plan_merge(paths[0], into=paths[2], undo=UNDO, folder=folder)
    with pytest.raises(vhdkit.SiblingsError) as caught:
        vhdkit.merge(plan, folder=folder)
    assert caught.value.siblings == (sibling,)
    assert "undo= and relink_siblings=True" in str(caught.value)
    assert "--undo FILE --relink-siblings" in as_typed(caught.value)
    view = plain_view(folder, paths)
    plan = vhdkit.plan_merge(paths[0], into=paths[2], undo=UNDO, relink_siblings=True, folder=folder)
    vhdkit.merge(plan, folder=folder)
    assert plain_view(folder, [sibling, UNDO, paths[2]]) == expected
    with vhdkit.open_chain(sibling, folder=folder) as chain:
        assert [layer.path for layer in chain.layers] == [sibling, UNDO, paths[2]]
        assert chain.read(0, chain.size) == expected
    with pytest.raises(vhdkit.SiblingsError) as caught:
        vhdkit.drop_undo(UNDO, folder=folder)
    assert caught.value.siblings == (sibling,)
    assert folder.exists(paths[0])
    vhdkit.drop_undo(UNDO, keep_file=True, folder=folder)
    assert sorted(contents(folder)) == sorted([paths[2], UNDO, sibling])
    assert plain_view(folder, [sibling, UNDO, paths[2]]) == expected
    assert plain_view(folder, paths[2:]) == view


def test_rolling_back_gives_siblings_their_parent_again() -> None:
    folder, paths, sibling, expected = with_sibling()
    views = [plain_view(folder, paths[depth:]) for depth in range(3)]
    plan = vhdkit.plan_merge(paths[0], into=paths[2], undo=UNDO, relink_siblings=True, folder=folder)
    vhdkit.merge(plan, folder=folder)
    assert sibling in vhdkit.rollback(UNDO, folder=folder)
    assert sorted(contents(folder)) == sorted([*paths, sibling])
    assert plain_view(folder, [sibling, paths[2]]) == expected
    assert [plain_view(folder, paths[depth:]) for depth in range(3)] == views


def test_children_of_the_topmost_source_are_relinked_and_back_again() -> None:
    chain = CHAINS["two levels dynamic"]
    folder, paths = in_memory(chain)
    plan = vhdkit.plan_merge(paths[1], into=paths[2], undo=UNDO, folder=folder)
    vhdkit.merge(plan, folder=folder)
    with vhdkit.open_chain(paths[0], folder=folder) as opened:
        assert [layer.path for layer in opened.layers] == [paths[0], paths[2]]
        assert opened.read(0, opened.size) == chain.view().tobytes()
    assert paths[0] in vhdkit.rollback(UNDO, folder=folder)
    with vhdkit.open_chain(paths[0], folder=folder) as opened:
        assert [layer.path for layer in opened.layers] == paths
        assert opened.read(0, opened.size) == chain.view().tobytes()


# What is refused


def refused(folder: MemoryFolder, error: type[vhdkit.VhdError], match: str) -> None:
    before = contents(folder)
    with pytest.raises(error, match=match):
        vhdkit.rollback(UNDO, folder=folder)
    assert contents(folder) == before


def test_a_destination_that_was_written_since_is_not_rolled_back() -> None:
    folder, paths, _, _ = merged_with_undo(CHAINS["two levels dynamic"])
    folder[paths[2]].mtime += 1
    refused(folder, vhdkit.MergeError, "written after the merge")


def test_a_destination_that_has_new_children_is_not_rolled_back() -> None:
    folder, paths, _, _ = merged_with_undo(CHAINS["two levels dynamic"])
    vhdkit.create_image("/vms/new.avhd", parent=paths[2], folder=folder)
    refused(folder, vhdkit.SiblingsError, "were made of it since")


@pytest.mark.parametrize("depth", [0, 1])
def test_without_one_of_its_sources_a_merge_is_not_rolled_back(depth: int) -> None:
    folder, paths, _, _ = merged_with_undo(CHAINS["two levels dynamic"])
    folder.remove(paths[depth])
    refused(folder, vhdkit.JournalError, "gone|cannot be opened")


def test_a_source_that_was_written_since_is_not_dropped_and_what_was_written_outlives_a_roll_back() -> None:
    folder, paths, _, _ = merged_with_undo(CHAINS["two levels dynamic"])
    with vhdkit.open_chain(paths[0], writable=True, folder=folder) as chain:
        chain.write(0, b"late" * 128)
    folder[paths[0]].mtime += 1
    expected, before = plain_view(folder, paths), contents(folder)
    with pytest.raises(vhdkit.JournalError, match="written after it was merged"):
        vhdkit.drop_undo(UNDO, folder=folder)
    assert contents(folder) == before
    vhdkit.rollback(UNDO, folder=folder)
    assert list(contents(folder)) == sorted(paths)
    assert plain_view(folder, paths) == expected
    assert plain_view(folder, paths[2:]) == CHAINS["two levels dynamic"].view(2).tobytes()


@pytest.mark.parametrize("verb", [vhdkit.rollback, vhdkit.drop_undo])
def test_an_image_that_is_no_undo_image_is_refused(verb: object) -> None:
    folder, paths, _, _ = merged_with_undo(CHAINS["two levels dynamic"])
    before = contents(folder)
    for path in paths:
        with pytest.raises(vhdkit.JournalError, match="no undo image"):
            verb(path, folder=folder)  # type: ignore[operator] # either of two functions
    assert contents(folder) == before


@pytest.mark.parametrize("has_one", [True, False])
def test_an_undo_image_that_was_never_made_is_not_said_to_be_there(has_one: bool) -> None:
    folder, paths = in_memory(chain_over(Kind.DYNAMIC, put(0, 50, 1), Snapshot(), put(3, 60, 2), sectors=100))
    if has_one:
        vhdkit.merge(vhdkit.plan_merge(paths[0], undo=UNDO, folder=folder), folder=folder)
    else:
        cut_off(folder, paths[0], paths[1], at_first("remove", paths[0]))
    found = contents(folder)
    with pytest.raises(vhdkit.JournalError, match="there will be no undo image"):
        vhdkit.plan_merge(paths[0], undo="/vms/other.vhd", folder=folder)
    assert contents(folder) == found


def test_a_job_may_be_called_anything() -> None:
    folder, paths = in_memory(chain_over(Kind.DYNAMIC, put(0, 50, 1), Snapshot(), put(3, 60, 2), sectors=100))
    view = plain_view(folder, paths)
    plan = vhdkit.plan_merge(paths[0], undo=UNDO, folder=folder)
    vhdkit.merge(plan, job="\udc80 no UUID", folder=folder)
    vhdkit.rollback(UNDO, folder=folder)
    assert plain_view(folder, paths) == view


def test_a_merge_that_was_cut_off_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    small_checkpoints(monkeypatch)
    folder, paths = in_memory(CHAINS["two levels dynamic"])
    cut_off(folder, paths[0], paths[2], after_marks(2), undo=UNDO)
    before = contents(folder)
    with pytest.raises(vhdkit.JournalError, match="cannot be dropped"):
        vhdkit.drop_undo(UNDO, folder=folder)
    assert contents(folder) == before


@pytest.mark.parametrize("verb", [vhdkit.rollback, vhdkit.drop_undo])
def test_while_somebody_reads_the_destination_nothing_is_done(verb: object) -> None:
    folder, paths, _, _ = merged_with_undo(CHAINS["two levels dynamic"])
    before = contents(folder)
    reader = keep(folder.open(paths[2]))
    reader.lock(exclusive=False)
    with pytest.raises(vhdkit.ImageInUseError):
        verb(UNDO, folder=folder)  # type: ignore[operator] # either of two functions
    assert contents(folder) == before


def test_an_undo_image_never_replaces_a_file() -> None:
    folder, paths = in_memory(CHAINS["two levels dynamic"])
    storage = folder.create(UNDO)
    storage.write_at(0, b"precious")
    storage.close()
    before = contents(folder)
    plan = vhdkit.plan_merge(paths[0], into=paths[2], undo=UNDO, folder=folder)
    with pytest.raises(vhdkit.MergeError, match="never replaces"):
        vhdkit.merge(plan, folder=folder)
    assert contents(folder) == before


@pytest.mark.parametrize("operation", ["create", "write", "sync", "reserve", "publish"])
def test_no_space_for_the_undo_image_leaves_nothing_behind(operation: str) -> None:
    folder, paths = in_memory(CHAINS["two levels dynamic"])
    before = contents(folder)
    plan = vhdkit.plan_merge(paths[0], into=paths[2], undo=UNDO, folder=folder)

    def run_full(event: Event) -> None:
        if event.operation == operation and event.path.startswith(UNDO):
            raise OSError(errno.ENOSPC, "No space left on device", event.path)

    with pytest.raises(vhdkit.NotEnoughSpaceError) as caught:
        vhdkit.merge(plan, folder=SpyFolder(folder, run_full))
    assert caught.value.needed > caught.value.available
    assert contents(folder) == before


def test_too_little_space_for_the_undo_image_is_told_before() -> None:
    folder, paths = in_memory(CHAINS["two levels dynamic"])
    needed = vhdkit.plan_merge(paths[0], into=paths[2], undo=UNDO, folder=folder).space_needed
    plan = vhdkit.plan_merge(paths[0], into=paths[2], undo=UNDO, folder=SpyFolder(folder, free=needed - 1))
    (obstacle,) = plan.obstacles
    assert isinstance(obstacle, vhdkit.NotEnoughSpaceError)
    assert obstacle.needed == needed
    vhdkit.merge(
        vhdkit.plan_merge(paths[0], into=paths[2], undo=UNDO, folder=SpyFolder(folder, free=needed)), folder=folder
    )


def test_an_undo_image_in_another_folder_is_found_with_its_destination() -> None:
    folder, paths = in_memory(CHAINS["two levels dynamic"])
    views = [plain_view(folder, paths[depth:]) for depth in range(3)]
    far = "/far/undo.avhd"
    vhdkit.merge(vhdkit.plan_merge(paths[0], into=paths[2], undo=far, folder=folder), folder=folder)
    assert plain_view(folder, [far, paths[2]]) == views[2]
    vhdkit.rollback(far, search=["/vms"], folder=folder)
    assert list(contents(folder)) == sorted(paths)
    assert [plain_view(folder, paths[depth:]) for depth in range(3)] == views


# Cut off once more


@pytest.mark.parametrize("operation", ["remove", "sync folder", "write", "sync"])
def test_a_roll_back_that_was_cut_off_is_finished_by_the_same_command(operation: str) -> None:
    from tests.cutting import CutError, CuttingFolder  # noqa: PLC0415 - used here alone

    chain = CHAINS["two levels dynamic"]
    for number in range(30):
        folder, paths, _, _ = merged_with_undo(chain)
        left = [number]

        def when(event: Event, left: list[int] = left) -> bool:
            left[0] -= event.operation == operation
            return left[0] < 0

        try:
            vhdkit.rollback(UNDO, folder=CuttingFolder(folder, when))
        except CutError:
            assert plain_view(folder, paths) == chain.view().tobytes()
            if folder.exists(UNDO) or folder.exists(paths[2] + JOURNAL):
                vhdkit.rollback(UNDO, folder=folder)
            assert list(contents(folder)) == sorted(paths)
            assert [plain_view(folder, paths[d:]) for d in range(3)] == [chain.view(d).tobytes() for d in range(3)]
            continue
        assert number > 0
        return
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("ending", ["layer-2.avhd", "layer-1.avhd", "undo.avhd", JOURNAL])
def test_a_drop_that_was_cut_off_is_finished_by_the_same_command(ending: str) -> None:
    from tests.cutting import CutError, CuttingFolder  # noqa: PLC0415 - used here alone

    chain = CHAINS["two levels dynamic"]
    folder, paths, _, _ = merged_with_undo(chain)
    with pytest.raises(CutError):
        vhdkit.drop_undo(UNDO, folder=CuttingFolder(folder, at_first("remove", ending)))
    assert plain_view(folder, paths[2:]) == chain.view().tobytes()
    with pytest.raises((vhdkit.VhdError, FileNotFoundError)):
        vhdkit.rollback(UNDO, folder=folder)
    vhdkit.drop_undo(UNDO, folder=folder)
    assert list(contents(folder)) == sorted(paths[2:])


# Half made


class FaultyFolder(LocalFolder):
    """A folder whose new files get their name, and then an error."""

    def publish(self, temporary: str, path: str) -> None:
        os.link(temporary, path)
        raise OSError(errno.EIO, "Input/output error", temporary)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    vhdkit.create_image(str(tmp_path / "base.vhd"), size=1 << 20)
    vhdkit.create_image(str(tmp_path / "leaf.avhd"), parent=str(tmp_path / "base.vhd"))
    with vhdkit.open_chain(str(tmp_path / "leaf.avhd"), writable=True) as chain:
        chain.write(0, b"leaf" * 1024)
    return tmp_path


def test_an_error_once_the_undo_image_has_its_name_leaves_nothing_behind(two: Path) -> None:
    before = {path.name: path.read_bytes() for path in two.iterdir()}
    plan = vhdkit.plan_merge(str(two / "leaf.avhd"), undo=str(two / "u.vhd"))
    with pytest.raises(OSError, match="Input/output") as caught:
        vhdkit.merge(plan, folder=FaultyFolder())
    assert caught.value.__notes__ == ["Nothing was changed."]
    assert {path.name: path.read_bytes() for path in two.iterdir()} == before
    vhdkit.merge(vhdkit.plan_merge(str(two / "leaf.avhd"), undo=str(two / "u.vhd")))


def test_a_roll_back_takes_away_the_second_name_that_a_cut_has_left_of_the_undo_image(two: Path) -> None:
    names = sorted(os.listdir(two))
    vhdkit.merge(
        vhdkit.plan_merge(str(two / "leaf.avhd"), undo=str(two / "u.vhd")), job="0123abcd-0000-0000-0000-000000000000"
    )
    os.link(two / "u.vhd", two / "u.vhd.0123abcd.partial")
    vhdkit.rollback(str(two / "u.vhd"))
    assert sorted(os.listdir(two)) == names
