"""Files put back as they were earlier, between the runs of a merge: right bytes, or a refusal that changes none.

Here files have no times: content alone decides. On a real disk they do, see `test_restored_for_real`.
"""

from __future__ import annotations

from itertools import combinations
from random import Random
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cutting import JOURNAL, at_first, cut_off, small_checkpoints
from tests.model import Kind, ModelChain, Snapshot
from tests.typed import as_typed
from tests.unit.test_merge_laws import (
    CHANGES,
    Event,
    SpyFolder,
    chain_over,
    contents,
    in_memory,
    long_growth,
    plain_view,
    put,
)
from vhdkit.journal.merge_journal import read_journal
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.storage.protocols import Folder

    Files = dict[str, bytes]

pytestmark = pytest.mark.thorough

UNDO = "/vms/undo.avhd"

CHAINS: dict[str, ModelChain] = {
    **{
        f"in place {kind}": chain_over(
            kind, put(0, 60, 1), Snapshot(), put(3, 30, 2), Snapshot(), put(20, 40, 3), sectors=64
        )
        for kind in (Kind.FIXED, Kind.DYNAMIC, Kind.DIFFERENCING)
    },
    **{
        f"new blocks {kind}": chain_over(
            kind, put(40, 9, 1), Snapshot(), put(3, 20, 2), Snapshot(), put(30, 20, 3), sectors=64
        )
        for kind in (Kind.DYNAMIC, Kind.DIFFERENCING)
    },
    "growth dynamic": long_growth(Kind.DYNAMIC, 0, 1),
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_checkpoints(monkeypatch, 1024)


class Family:
    """One chain, and what its files were at each instant of a merge."""

    def __init__(self, chain: ModelChain, *, undo: bool) -> None:
        kinds = [layer.kind for layer in chain.layers]
        self.depth = len(kinds) - 1 if kinds[-1] is not Kind.DIFFERENCING else len(kinds) - 2
        folder, self.paths = in_memory(chain)
        self.depth = min(2, self.depth)
        self.undo = undo
        self.growth_count = chain.layers[0].shape.sector_count - chain.layers[self.depth].shape.sector_count
        self.views = [plain_view(folder, self.paths[depth:]) for depth in range(len(self.paths))]
        self.versions: list[Files] = []

        def look(event: Event) -> None:
            if event.operation in CHANGES:
                now = contents(folder)
                if not self.versions or now != self.versions[-1]:
                    self.versions.append(now)

        spy = SpyFolder(folder, look)
        self.merge(spy)
        self.versions.append(contents(folder))

    @property
    def destination(self) -> str:
        return self.paths[self.depth]

    def merge(self, folder: Folder) -> None:
        undo = UNDO if self.undo else None
        plan = vhdkit.plan_merge(self.paths[0], into=self.destination, undo=undo, folder=folder)
        vhdkit.merge(plan, folder=folder)

    def mixtures(self) -> list[tuple[str, Files]]:
        """Return some of what the files are if up to two of a version are put back as they were in an earlier one.

        A table that is lengthened makes every merge a hundred times as long as those of the other chains.
        """
        most = 24 if self.growth_count == 0 else 3
        names = [self.destination, self.destination + JOURNAL, *([UNDO] if self.undo else [])]
        subsets = [set(some) for count in (1, 2) for some in combinations(names, count)]
        draw = Random(17)
        found: list[tuple[str, Files]] = []
        while len(found) < most:
            number = draw.randrange(1, len(self.versions))
            earlier, some = draw.randrange(number), draw.choice(subsets)
            now, then = self.versions[number], self.versions[earlier]
            files = {path: raw for path, raw in now.items() if path not in some}
            files |= {path: then[path] for path in some if path in then}
            # Without a journal and an undo image nothing says that a merge has begun: then one begins.
            if not {*now} - {*files} >= {self.destination + JOURNAL, UNDO}:
                found.append((f"{number} with {sorted(some)} of {earlier}", files))
        return found


def outcome(act: Callable[[], object], folder: MemoryFolder) -> str:
    before = contents(folder)
    try:
        act()
    except vhdkit.VhdError as error:
        said = str(error)
    else:
        return "done"
    assert contents(folder) == before, said
    return "refused"


def views_are(family: Family, folder: MemoryFolder, first: int = 0, last: int | None = None) -> None:
    for depth in range(first, len(family.paths) if last is None else last):
        assert plain_view(folder, family.paths[depth:]) == family.views[depth], depth


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_a_merge_ends_in_right_bytes_whatever_was_put_back(chain: ModelChain) -> None:
    family = Family(chain, undo=False)
    refused = count = 0
    for said, files in family.mixtures():
        if family.paths[0] not in files:
            continue
        count += 1
        folder = MemoryFolder(files)
        try:
            result = outcome(lambda folder=folder: family.merge(folder), folder)  # type: ignore[misc]
            if result == "done":
                assert plain_view(folder, family.paths[family.depth :]) == family.views[0]
                assert family.paths[0] not in contents(folder)
            else:
                assert plain_view(folder, family.paths) == family.views[0]
        except Exception as error:
            raise AssertionError(said) from error
        refused += result == "refused"
    assert count > 2
    assert refused == 0


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
@pytest.mark.parametrize("verb", ["merge and roll back", "roll back"])
def test_a_roll_back_restores_every_layer_or_is_refused_whatever_was_put_back(chain: ModelChain, verb: str) -> None:
    family = Family(chain, undo=True)
    restored = count = 0
    for said, files in family.mixtures():
        folder = MemoryFolder(files)
        count += 1
        try:
            if verb == "merge and roll back":
                outcome(lambda folder=folder: family.merge(folder), folder)  # type: ignore[misc]
                assert plain_view(folder, family.paths) == family.views[0]
            if not folder.exists(UNDO):
                continue
            if outcome(lambda folder=folder: vhdkit.rollback(UNDO, folder=folder), folder) == "done":  # type: ignore[misc]
                views_are(family, folder)
                restored += 1
            else:
                assert plain_view(folder, family.paths) == family.views[0]
        except Exception as error:
            raise AssertionError(said) from error
    assert restored > count // 4, (restored, count)


@pytest.mark.parametrize("verify", [False, True])
def test_a_leftover_that_is_named_goes_only_if_the_destination_shows_it_whatever_the_journal_says(verify: bool) -> None:
    """As a forger has it who knows what the files' sizes and times are: the destination never got the source's data."""
    folder, paths = in_memory(
        chain_over(Kind.FIXED, put(0, 60, 1), Snapshot(), put(3, 9, 2), Snapshot(), put(20, 2, 3), sectors=64)
    )
    before = bytes(folder[paths[2]].content)
    cut_off(folder, paths[0], paths[2], at_first("remove", "layer-1.avhd"))
    source = bytes(folder[paths[1]].content)
    folder[paths[2]].content[:] = before
    plan = vhdkit.plan_merge(paths[1], into=paths[2], verify=verify, folder=folder)
    ended = [finding.path for finding in plan.findings if finding.corruption is vhdkit.Corruption.VIEW_ENDED]
    assert (plan.removals, {*ended}) == ((), {paths[1]})
    assert vhdkit.merge(plan, folder=folder).removed == ()
    assert bytes(folder[paths[1]].content) == source


def test_a_merge_that_verifies_removes_no_leftover_unread_where_the_topmost_source_is_named() -> None:
    folder, paths = in_memory(
        chain_over(Kind.FIXED, put(0, 60, 1), Snapshot(), put(3, 9, 2), Snapshot(), put(20, 2, 3), sectors=64)
    )
    before = bytes(folder[paths[2]].content)
    cut_off(folder, paths[0], paths[2], at_first("remove", "layer-1.avhd"))
    folder[paths[2]].content[:] = before
    plan = vhdkit.plan_merge(paths[0], into=paths[2], verify=True, folder=folder)
    assert vhdkit.merge(plan, folder=folder).removed == ()
    assert folder.exists(paths[1])


def test_a_leftover_that_is_named_goes_if_the_destination_shows_it_and_is_kept_if_newer_data_hid_it() -> None:
    for sector, removed in ((20, True), (5, False)):
        chain = chain_over(
            Kind.FIXED, put(0, 60, 1), Snapshot(), put(3, 9, 2), Snapshot(), put(sector, 2, 3), sectors=64
        )
        folder, paths = in_memory(chain)
        expected = plain_view(folder, paths)
        cut_off(folder, paths[0], paths[2], at_first("remove", "layer-1.avhd"))
        plan = vhdkit.plan_merge(paths[1], into=paths[2], verify=True, folder=folder)
        assert vhdkit.merge(plan, folder=folder).removed == ((paths[1],) if removed else ())
        assert folder.exists(paths[1]) is not removed
        assert not folder.exists(paths[2] + JOURNAL)
        assert plain_view(folder, paths[2:]) == expected


def test_what_is_left_to_be_done_names_no_source_that_is_gone() -> None:
    folder, paths = in_memory(chain_over(Kind.FIXED, Snapshot(), put(3, 9, 2), Snapshot(), put(20, 2, 3), sectors=64))
    cut_off(folder, paths[0], paths[2], at_first("remove", "layer-1.avhd"))
    journal = read_journal(folder, paths[2])
    assert journal is not None
    assert "layer-2.avhd was merged into layer-0.vhd and is gone" in journal.say()
    assert f"merge {paths[1]} --into {paths[2]}" in as_typed(journal.hint)
    assert paths[0] not in as_typed(journal.hint)


def test_a_merge_that_is_not_finished_says_that_its_topmost_source_is_gone() -> None:
    folder, paths = in_memory(chain_over(Kind.FIXED, Snapshot(), put(3, 9, 2), Snapshot(), put(20, 2, 3), sectors=64))
    cut_off(folder, paths[0], paths[2], at_first("sync", "layer-0.vhd"))
    folder.remove(paths[0])
    journal = read_journal(folder, paths[2])
    assert journal is not None
    assert journal.say().endswith("layer-2.avhd is gone, and it cannot go on until that is put back")
