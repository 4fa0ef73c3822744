"""The power cut in every operation on snapshots: each happens or does not, and nothing stays that nobody knows of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.crash.disks import Disk
from tests.crash.survivals import cuts
from tests.crashfs import CrashFolder, Replaced, Synced
from tests.histories import (
    Act,
    Apply,
    Delete,
    Model,
    Rename,
    Revert,
    Settle,
    Take,
    Write,
    begin,
    carry_out,
    machine_on,
    strays,
    views_on,
)
from vhdkit.errors import SnapshotError, VhdError
from vhdkit.journal.merge_journal import SUFFIX as JOURNAL
from vhdkit.snapshot.adopt import adopt
from vhdkit.vhd.header_update import SUFFIX as STEP

if TYPE_CHECKING:
    from tests.crash.survivals import Survival

pytestmark = pytest.mark.thorough


def line(*names: str, disks: int = 1) -> list[Act]:
    """Return a history that takes snapshots one after another, with something written before each."""
    acts: list[Act] = []
    for at, name in enumerate(names):
        acts += [Write(disk, 3 * at + disk, 5, name[0]) for disk in range(disks)]
        acts.append(Take(name))
    return [*acts, *(Write(disk, 1 + disk, 9, "z") for disk in range(disks))]


def all_deleted(names: str) -> list[Act]:
    return [act for name in names for act in (Delete(name), Settle())]


# Each is carried out whole; the last acts, as many as the number says, are cut.
PROGRAMS: list[tuple[str, int, list[Act], int]] = [
    ("take the first", 1, [Write(0, 2, 7, "a"), Take("a")], 1),
    ("take with a file", 1, [Write(0, 2, 7, "a"), Take("a", state="memory")], 1),
    ("take on two disks", 2, [Write(0, 2, 7, "a"), Write(1, 0, 3, "b"), Take("a", state="memory")], 1),
    ("take on three disks", 3, [Write(2, 2, 7, "a"), Take("a"), Write(1, 4, 4, "x"), Take("b")], 1),
    ("take a second", 1, [*line("a"), Take("b")], 1),
    ("take after applying", 1, [*line("a", "b"), Apply("a"), Write(0, 4, 8, "y"), Take("c")], 1),
    ("apply the last", 1, [*line("a"), Apply("a")], 1),
    ("apply the first", 1, [*line("a", "b", "c"), Apply("a")], 1),
    ("apply on two disks", 2, [*line("a", "b", disks=2), Apply("a")], 1),
    ("apply twice", 1, [*line("a", "b"), Apply("a"), Write(0, 9, 9, "q"), Apply("a")], 1),
    ("revert", 1, [*line("a", "b"), Revert()], 1),
    ("revert on three disks", 3, [*line("a", disks=3), Revert()], 1),
    ("rename", 1, [*line("a", "b"), Rename("a", "x")], 1),
    ("delete the only one", 1, [*line("a"), Delete("a"), Settle()], 2),
    ("delete the middle", 1, [*line("a", "b", "c"), Delete("b"), Settle()], 2),
    ("delete the last", 1, [*line("a", "b", "c"), Delete("c"), Settle()], 2),
    ("delete the first", 1, [*line("a", "b", "c"), Delete("a"), Settle()], 2),
    ("delete with a file", 1, [Write(0, 2, 7, "a"), Take("a", state="memory"), Delete("a"), Settle()], 2),
    ("delete on two disks", 2, [*line("a", "b", disks=2), Delete("a"), Settle()], 2),
    ("delete a dead leaf", 1, [*line("a", "b"), Apply("a"), Delete("b"), Settle()], 2),
    ("delete a dead branch", 1, [*line("a", "b", "c", "d"), Apply("a"), Delete("b", subtree=True), Settle()], 2),
    ("delete a fork", 1, [*line("a", "b"), Apply("a"), Write(0, 1, 1, "w"), Take("c"), Delete("a"), Settle()], 2),
    (
        "delete a fork, then a branch of it",
        1,
        [*line("a", "b"), Apply("a"), Write(0, 1, 1, "w"), Take("c"), Delete("a"), Delete("b"), Settle()],
        2,
    ),
    ("delete everything at once", 1, [*line("a", "b", "c"), Delete("a", subtree=True), Settle()], 2),
    ("delete everything one by one", 1, [*line("a", "b", "c"), *all_deleted("bac")], 6),
    ("delete two, settle once", 1, [*line("a", "b", "c", "d"), Delete("b"), Delete("c"), Settle()], 1),
    ("several merges in one settling", 1, [*line("a", "b", "c", "d"), Delete("a"), Delete("c"), Settle()], 1),
    ("settle after applying", 1, [*line("a", "b"), Delete("a"), Apply("b"), Settle()], 2),
    ("take while merges are owed", 1, [*line("a", "b"), Delete("a"), Take("c"), Settle()], 2),
    (
        "take, delete, take",
        2,
        [*line("a", disks=2), Delete("a"), Take("b"), Settle(), Write(0, 0, 3, "k"), Take("c")],
        3,
    ),
]


def walk(acts: list[Act], disks: int, cut_acts: int, *, share: int, seed: int) -> tuple[int, int]:
    """Carry a program out, and cut its last acts everywhere; return how many cuts and how many survivals."""
    folder = CrashFolder({}, clock=True)
    begin(folder, disks)
    model = Model.empty(disks)
    cut_count = survival_count = 0
    for at, act in enumerate(acts):
        folder = Disk.of(folder).folder()
        before = model.copy()
        carry_out(folder, act, at)
        model.carry_out(act)
        assert views_on(folder) == model.views(), f"uncut, after {act}"
        if at < len(acts) - cut_acts:
            continue
        for cut in cuts(folder):
            if (cut.index + seed) % share:
                continue
            cut_count += 1
            for survival in cut.survivals(seed, missing=5, alone=2, drawn=2):
                survival_count += 1
                hold(survival, act, at, before, model)
    return cut_count, survival_count


def hold(survival: Survival, act: Act, at: int, before: Model, after: Model) -> None:
    """Assert what must hold on one disk that a cut may leave."""
    where = f"{act}, cut {survival.cut}, {survival.label}"
    folder = survival.folder(clock=True)
    found = views_on(folder)
    assert found in (before.views(), after.views()), where
    if survival.cut % 2:
        start_first(survival, before if found == before.views() else after, at, where)
    # Whoever only looks changes nothing; whoever settles finishes or takes back, and leaves nothing behind.
    machine = machine_on(folder, 1000 + at)
    named = {remark.path for remark in machine.check()}
    left = {path.removesuffix(JOURNAL).removesuffix(STEP) for path in strays(folder)}
    assert left <= named, where
    machine.settle()
    assert views_on(folder) == found, where
    assert machine.owed().is_nothing, where
    assert strays(folder) == [], where
    if found == before.views() != after.views():
        carry_out(folder, act, 2000 + at)
        assert views_on(folder) == after.views(), where
        machine.settle()
        assert views_on(folder) == after.views(), where
        assert strays(folder) == [], where


def start_first(survival: Survival, model: Model, at: int, where: str) -> None:
    """Let the machine run before anything is settled: what it writes stays, and settling goes on all the same."""
    folder, written = survival.folder(clock=True), model.copy()
    for disk in range(len(model.active)):
        act = Write(disk, 7 + disk, 11, "W")
        carry_out(folder, act, 5000 + at)
        written.carry_out(act)
    assert views_on(folder) == written.views(), where
    machine_on(folder, 6000 + at).settle()
    assert views_on(folder) == written.views(), where
    assert strays(folder) == [], where


@pytest.mark.parametrize(
    ("disks", "acts", "cut_acts"), [program[1:] for program in PROGRAMS], ids=[p[0] for p in PROGRAMS]
)
def test_a_cut_leaves_each_operation_done_or_not_done(disks: int, acts: list[Act], cut_acts: int) -> None:
    cut_count, survivals = walk(acts, disks, cut_acts, share=12, seed=len(acts) + disks)
    assert cut_count > 0
    assert survivals >= cut_count


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_every_cut_leaves_each_operation_done_or_not_done(seed: int) -> None:
    walked = [walk(acts, disks, cut_acts, share=1, seed=seed) for _, disks, acts, cut_acts in PROGRAMS]
    print([sum(counts) for counts in zip(*walked, strict=True)])  # noqa: T201 - figures for the commit


@pytest.mark.parametrize("lost", ["manifest", "layer"])
def test_a_sync_that_is_forgotten_is_found(lost: str) -> None:
    """The walk itself is tested: without a barrier it must find what is wrong."""
    acts = [*line("a", "b")]
    folder = CrashFolder({}, clock=True)
    begin(folder, 1)
    model = Model.empty(1)
    for at, act in enumerate(acts):
        carry_out(folder, act, at)
        model.carry_out(act)
    folder, before, act = Disk.of(folder).folder(), model.copy(), Take("c")
    carry_out(folder, act, len(acts))
    model.carry_out(act)
    numbers = {path: file.number for path, file in folder.names_of.items()}
    manifest = {change.number for change in folder.log if isinstance(change, Replaced)}
    layer = {number for path, number in numbers.items() if path.endswith(".avhd")}
    forgotten = frozenset(
        index
        for index, change in enumerate(folder.log)
        if isinstance(change, Synced) and change.number in (manifest if lost == "manifest" else layer)
    )
    assert forgotten

    def walk_all() -> None:
        for cut in cuts(folder, without=forgotten):
            if cut.index < min(forgotten) or cut.index % 3:
                continue  # until then nothing was forgotten, and what was shows at most cuts
            for survival in cut.survivals(1):
                hold(survival, act, len(acts), before, model)

    with pytest.raises((AssertionError, VhdError, OSError)):
        walk_all()


def test_a_cut_leaves_a_machine_adopted_or_not_adopted() -> None:
    folder = CrashFolder({}, clock=True)
    begin(folder, 2)
    for at, act in enumerate(line("a", "b", disks=2)):
        carry_out(folder, act, at)
    machine = machine_on(folder, 50)
    actives, before = machine.active, views_on(folder)
    for path in list(folder.names_of):
        if "vhdkit-snapshots" in path:
            folder.remove(path)
    folder = Disk.of(folder).folder()
    adopt(actives, folder=folder)
    assert views_on(folder).active == before.active
    found = set()
    for cut in cuts(folder):
        for survival in cut.survivals(5):
            again = survival.folder(clock=True)
            try:
                views = views_on(again)
            except SnapshotError:
                found.add("not adopted")
                adopt(actives, folder=again)
                views = views_on(again)
            else:
                found.add("adopted")
            assert views.active == before.active
            assert sorted(views.snapshots.values()) == sorted(before.snapshots.values())
            machine_on(again, 60).settle()
            assert strays(again) == []
    assert found == {"adopted", "not adopted"}
