"""Writes, snapshots, merges, cuts, cancels, resumes, roll-backs and drops in any order, held against the model.

The machine is one chain on a CrashFolder. Whatever is done to it may be cut by the power at any operation, which leaves
any of the disks that tests/crashfs.py allows; what is found then is gone on with. After every step the model says what
every layer reads as whose view has not ended, and nothing may be corrupt.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import vhdkit
from tests.crash.disks import Disk
from tests.crash.survivals import cuts
from tests.crashfs import CrashFolder
from tests.model import Create, Kind, Merge, ModelChain, Snapshot, merge_refusal
from tests.plainvhd import SECTOR
from tests.strategies import writes
from vhdkit.journal.ended_view import SUFFIX as ENDED_SUFFIX
from vhdkit.journal.merge_journal import read_journal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.model import Shape
    from vhdkit.journal.merge_journal import Journal

FOLDER: Final = "/vms"
BLOCKS: Final = (SECTOR, 4096)
MAX_LAYERS: Final = 5
COUNTS: Counter[str] = Counter()


# How an action ends


@dataclass(frozen=True, slots=True)
class Whole:
    """It comes to its end."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The power goes at a place between begin (0) and end (1); `pick` says which of the possible disks is found."""

    place: float
    pick: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """It is asked to stop after so many calls of the progress function."""

    after: int


Fate = Whole | Cut | Cancel
fates = st.one_of(
    st.just(Whole()),
    st.builds(Cut, st.floats(0, 1), st.integers(0, 40)),
    st.builds(Cut, st.floats(0.6, 1), st.integers(0, 40)),
    st.builds(Cancel, st.integers(0, 8)),
)


class State(Enum):
    """Where the one merge is that may be under way. CUT: it was begun, perhaps; DONE: all but what is kept for undo."""

    IDLE = auto()
    CUT = auto()
    DONE = auto()
    ROLLING_BACK = auto()
    DROPPING = auto()


@dataclass(slots=True)
class UnderWay:
    """A merge: its files, leaf first, whatever becomes of them."""

    merge: Merge
    sources: list[str]
    destination: str
    undo: str
    verify: bool
    written: bool = False

    @property
    def top(self) -> str:
        return self.sources[0]


@st.composite
def creates(draw: st.DrawFn) -> Create:
    block_size = draw(st.sampled_from(BLOCKS))
    per_block = block_size // SECTOR
    count = max(1, draw(st.integers(0, 5)) * per_block + draw(st.integers(-1, per_block)))
    return Create(kind=draw(st.sampled_from([Kind.DYNAMIC, Kind.FIXED])), sector_count=count, block_size=block_size)


@st.composite
def small_snapshots(draw: st.DrawFn, parent: Shape) -> Snapshot:
    """Children of the parent's size mostly, sometimes so much larger that the parent's table must grow."""
    more = draw(st.sampled_from([0, 0, 0, 1, 9, 130]))
    block_size = draw(st.sampled_from(BLOCKS))
    return Snapshot(sector_count=parent.sector_count + more if more else None, block_size=block_size)


class Machine(RuleBasedStateMachine):
    """See the module. `model` is the chain as it reads while the merge under way counts as not done."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = CrashFolder({}, clock=True)
        self.model = ModelChain()
        self.paths: list[str] = []
        self.state = State.IDLE
        self.way: UnderWay | None = None
        self.made = 0
        self.turn = 0

    # Doing things

    def act(self, action: Callable[[Callable[[object], None]], object], fate: Fate) -> bool:
        """Do something that everything before is durable for; return whether it came to its end."""
        self.folder = Disk.of(self.folder).folder()
        left = fate.after if isinstance(fate, Cancel) else 1 << 30

        def progress(_state: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise vhdkit.MergeCancelled("as the test wants it")

        try:
            action(progress)
        except vhdkit.MergeCancelled:
            COUNTS["cancelled"] += 1
            return False
        if isinstance(fate, Cut):
            at = round(fate.place * len(self.folder.log))
            cut = next(cut for cut in cuts(self.folder) if cut.index == at)
            found = list(cut.survivals(fate.pick, missing=4, alone=2, drawn=3, stale=fate.pick % 2 == 1))
            self.folder = found[fate.pick % len(found)].folder(clock=True)
            COUNTS["cut"] += 1
            return False
        return True

    def merged(self) -> None:
        """Follow a merge that is final."""
        assert self.way is not None
        merge = self.way.merge
        for path in self.way.sources if merge.keep else ():
            self.folder.remove(path)
        self.model.merge(replace(merge, keep=False))
        del self.paths[merge.depth_from : merge.depth_to]
        self.way, self.state = None, State.IDLE

    def new_path(self, kind: str) -> str:
        self.made += 1
        return f"{FOLDER}/{kind}-{self.made}.{'vhd' if kind == 'base' else 'avhd'}"

    # Rules

    @initialize(create=creates())
    def create(self, create: Create) -> None:
        path = self.new_path("base")
        size = create.sector_count * SECTOR
        make(self.folder, path, self.made, size=size, disk_type=create.kind.value, block_size=create.block_size)
        self.model.apply(create)
        self.paths = [path]

    @precondition(lambda self: self.may_write)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        """Write to the leaf, the topmost source of a merge that was cut off perhaps."""
        write = data.draw(writes(self.model.shapes[0]))
        with vhdkit.open_chain(self.paths[0], writable=True, folder=self.folder) as chain:
            chain.write(write.offset, write.data)
        if self.way is not None and self.paths[0] == self.way.top:
            self.way.written = True
        self.model.apply(write)
        COUNTS[f"write, {self.state.name}"] += 1

    @property
    def may_write(self) -> bool:
        """Whether the leaf is there, and its writing leaves the merge a way to its end and back."""
        way = self.way
        if way is None or self.paths[0] != way.top:
            return True
        journal = self.journal
        return self.state is State.CUT and self.folder.exists(way.top) and not (journal and journal.merged)

    @property
    def journal(self) -> Journal | None:
        return None if self.way is None else read_journal(self.folder, self.way.destination)

    @precondition(lambda self: self.state is State.IDLE and len(self.paths) < MAX_LAYERS)
    @rule(data=st.data())
    def snapshot(self, data: st.DataObject) -> None:
        snapshot = data.draw(small_snapshots(self.model.shapes[0]))
        path = self.new_path("layer")
        size = None if snapshot.sector_count is None else snapshot.sector_count * SECTOR
        make(self.folder, path, self.made, size=size, parent=self.paths[0], block_size=snapshot.block_size)
        self.model.apply(snapshot)
        self.paths.insert(0, path)
        COUNTS["snapshot"] += 1

    @precondition(lambda self: self.state is State.IDLE and self.mergeable)
    @rule(data=st.data(), fate=fates, undo=st.booleans(), verify=st.booleans())
    def merge(self, data: st.DataObject, fate: Fate, undo: bool, verify: bool) -> None:
        merge = data.draw(st.sampled_from(self.mergeable))
        self.way = UnderWay(
            merge=merge,
            sources=self.paths[merge.depth_from : merge.depth_to],
            destination=self.paths[merge.depth_to],
            undo=self.new_path("undo") if undo else "",
            verify=verify,
        )
        self.run_merge(fate)

    @precondition(lambda self: self.state is State.CUT)
    @rule(fate=fates)
    def resume(self, fate: Fate) -> None:
        COUNTS["resumed"] += self.journal is not None
        self.run_merge(fate)

    def run_merge(self, fate: Fate) -> None:
        way = self.way
        assert way is not None
        keep = way.merge.keep

        def action(progress: Callable[[object], None]) -> None:
            plan = vhdkit.plan_merge(
                way.top,
                into=way.destination,
                keep_sources=keep,
                undo=way.undo or None,
                verify=way.verify,
                folder=self.folder,
            )
            vhdkit.merge(plan, progress=progress, folder=self.folder)

        COUNTS["merge"] += 1
        is_done = self.act(action, fate)
        if is_done and way.undo:
            self.state = State.DONE
        elif is_done or (self.journal is None and self.is_past):
            self.merged()
        else:
            self.state = State.CUT

    @property
    def is_past(self) -> bool:
        """Whether names say that the merge is complete: the topmost source is gone, or nobody reads through it."""
        way = self.way
        assert way is not None
        if not self.folder.exists(way.top) or not way.merge.depth_from:
            return not self.folder.exists(way.top)
        with vhdkit.open_chain(self.paths[way.merge.depth_from - 1], folder=self.folder) as chain:
            return way.top not in [layer.path for layer in chain.layers]

    @precondition(lambda self: self.way is not None and self.way.undo and self.state is not State.DROPPING)
    @rule(fate=fates)
    def roll_back(self, fate: Fate) -> None:
        way, journal = self.way, self.journal
        assert way is not None
        if not self.folder.exists(way.undo) and self.state is not State.ROLLING_BACK:
            return
        try:
            is_done = self.act(lambda step: vhdkit.rollback(way.undo, progress=step, folder=self.folder), fate)
        except vhdkit.JournalError:
            # It would bring back a chain whose topmost source is another one now; begun anew, it is that one.
            assert way.written, "a roll-back is refused that nothing stands in the way of"
            assert journal is not None
            assert not journal.rolling_back
            COUNTS["roll-back refused"] += 1
            return
        COUNTS["roll-back"] += 1
        if is_done or self.journal is None:
            self.way, self.state = None, State.IDLE
        elif self.journal.rolling_back:
            self.state = State.ROLLING_BACK

    @precondition(lambda self: self.state in {State.DONE, State.DROPPING})
    @rule(fate=fates)
    def drop(self, fate: Fate) -> None:
        way = self.way
        assert way is not None
        fate = Whole() if isinstance(fate, Cancel) else fate
        is_done = self.act(lambda _: vhdkit.drop_undo(way.undo, folder=self.folder), fate)
        COUNTS["drop"] += 1
        journal = self.journal
        if is_done or journal is None:
            self.merged()
        elif journal.dropping:
            self.state = State.DROPPING

    @property
    def mergeable(self) -> list[Merge]:
        """Every merge of layers that is not refused."""
        shapes = self.model.shapes
        found = [
            Merge(depth_from=top, depth_to=bottom, keep=keep)
            for bottom in range(1, len(shapes))
            for top in range(bottom)
            for keep in (False, True)
        ]
        return [merge for merge in found if merge_refusal(shapes, merge) is None]

    # Laws

    @invariant()
    def nothing_is_corrupt(self) -> None:
        for path in self.images:
            report = vhdkit.check(path, folder=self.folder)
            assert report.exit_code in {0, 3}, [str(finding) for finding in report.findings]

    @invariant()
    def every_view_that_has_not_ended_is_the_models(self) -> None:
        for path, expected in self.views().items():
            with vhdkit.open_chain(path, folder=self.folder) as chain:
                assert chain.read(0, chain.size) == expected, f"{path} reads otherwise, {self.state.name}"
            COUNTS["views"] += 1

    @invariant()
    def nothing_is_left_behind(self) -> None:
        if self.state is State.IDLE:
            # Marks of layers whose view has ended stay beside them, and go when vhdkit removes the layer.
            images = [path for path in self.folder.names_of if not path.endswith(ENDED_SUFFIX)]
            assert sorted(images) == sorted(self.paths)

    @property
    def images(self) -> list[str]:
        return [path for path in self.folder.names_of if path.endswith(("vhd", "avhd"))]

    def views(self) -> dict[str, bytes]:
        """Return what is to be read through every image whose view has not ended."""
        views = {path: self.model.view(depth).tobytes() for depth, path in enumerate(self.paths)}
        way = self.way
        if way is None:
            return views
        before, top = views[way.destination], views[way.top]
        for path in (*way.sources[1:], way.destination):
            del views[path]
        if not self.folder.exists(way.top):
            del views[way.top]
        if not self.folder.exists(way.top) or self.state in {State.DONE, State.DROPPING}:
            views[way.destination] = top
        if way.undo and self.folder.exists(way.undo):
            views[way.undo] = before
        return views


def make(folder: CrashFolder, path: str, number: int, **fields: Any) -> None:
    """Create an image that is the same every time."""
    vhdkit.create_image(path, stamp=number, unique_id=number.to_bytes(16, "big"), folder=folder, **fields)


def run_machine(examples: int, *, seeded: bool) -> None:
    COUNTS.clear()
    run_state_machine_as_test(
        Machine,
        settings=settings(
            deadline=None,
            max_examples=examples,
            stateful_step_count=14,
            derandomize=seeded,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_merges_in_any_order_with_anything_are_the_models() -> None:
    run_machine(40, seeded=True)
    assert COUNTS["cut"] > 12


@pytest.mark.slow
def test_thousands_of_merges_in_any_order_are_the_models() -> None:
    run_machine(2000, seeded=False)
    print(dict(COUNTS))  # noqa: T201 - the figures are what the run is for
