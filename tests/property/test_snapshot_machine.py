"""Any history of snapshots: what each shows never changes, and the machine reads what it wrote last.

The power is cut in any operation, merges are stopped half way, and the history goes on.
"""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.crash.disks import Disk
from tests.crash.survivals import cuts
from tests.crashfs import CrashFolder
from tests.histories import (
    SECTORS,
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
from vhdkit.errors import MergeCancelled

pytestmark = pytest.mark.thorough

_MOST_SNAPSHOTS = 12


class Snapshots(RuleBasedStateMachine):
    """One machine with one to three disks, beside its model."""

    @initialize(disks=st.integers(1, 3))
    def start(self, disks: int) -> None:
        self.folder = CrashFolder({}, clock=True)
        begin(self.folder, disks)
        self.model = Model.empty(disks)
        self.disks = disks
        self.step = 0
        self.names = 0

    def act(self, act: Act, cut: float | None = None, choice: int = 0) -> None:
        """Carry an act out; with `cut` the power goes at that share of its changes."""
        self.step += 1
        self.folder = Disk.of(self.folder).folder()
        before = self.model.copy()
        carry_out(self.folder, act, self.step)
        self.model.carry_out(act)
        if cut is None:
            return
        at = round(cut * len(self.folder.log))
        for each in cuts(self.folder):
            if each.index == at:
                survivals = list(each.survivals(choice, missing=3, alone=1, drawn=3))
                self.folder = survivals[choice % len(survivals)].folder(clock=True)
                break
        found = views_on(self.folder)
        assert found in (before.views(), self.model.views())
        if found == before.views():
            self.model = before

    def names_known(self) -> list[str]:
        return sorted(self.model.snapshots)

    cutting = st.none() | st.none() | st.floats(0, 1)
    choosing = st.integers(0, 1000)

    @rule(
        disk=st.integers(0, 2),
        sector=st.integers(0, SECTORS - 1),
        count=st.integers(1, SECTORS),
        letter=st.sampled_from("abcdefgh"),
    )
    def write(self, disk: int, sector: int, count: int, letter: str) -> None:
        self.act(Write(disk % self.disks, sector, min(count, SECTORS - sector), letter))

    @precondition(lambda self: len(self.model.snapshots) < _MOST_SNAPSHOTS)
    @rule(cut=cutting, choice=choosing, state=st.sampled_from(["", "memory"]))
    def take(self, cut: float | None, choice: int, state: str) -> None:
        self.names += 1
        self.act(Take(f"s{self.names}", state), cut, choice)

    @precondition(lambda self: self.model.snapshots)
    @rule(cut=cutting, choice=choosing)
    def apply(self, cut: float | None, choice: int) -> None:
        names = self.names_known()
        self.act(Apply(names[choice % len(names)]), cut, choice)

    @precondition(lambda self: self.model.now is not None)
    @rule(cut=cutting, choice=choosing)
    def revert(self, cut: float | None, choice: int) -> None:
        self.act(Revert(), cut, choice)

    @precondition(lambda self: self.model.snapshots)
    @rule(cut=cutting, choice=choosing, subtree=st.booleans())
    def delete(self, cut: float | None, choice: int, subtree: bool) -> None:
        names = self.names_known()
        self.act(Delete(names[choice % len(names)], subtree), cut, choice)

    @precondition(lambda self: self.model.snapshots)
    @rule(cut=cutting, choice=choosing)
    def rename(self, cut: float | None, choice: int) -> None:
        names = self.names_known()
        self.names += 1
        self.act(Rename(names[choice % len(names)], f"r{self.names}"), cut, choice)

    @rule(cut=cutting, choice=choosing)
    def settle(self, cut: float | None, choice: int) -> None:
        self.act(Settle(), cut, choice)
        if cut is None:
            assert machine_on(self.folder, self.step).owed().is_nothing
            assert strays(self.folder) == []

    @rule(after=st.integers(1, 6))
    def settle_and_stop(self, after: int) -> None:
        """The merges are cancelled at some piece, and resumed by whatever settles next."""
        self.step += 1
        self.folder = Disk.of(self.folder).folder()
        stop = threading.Event()
        left = [after]

        def advance(_state: object) -> None:
            left[0] -= 1
            if left[0] <= 0:
                stop.set()

        with suppress(MergeCancelled):
            machine_on(self.folder, self.step).settle(progress=advance, cancel=stop)

    @invariant()
    def reads_as_it_should(self) -> None:
        if hasattr(self, "model"):
            assert views_on(self.folder) == self.model.views()


TestSnapshots = Snapshots.TestCase
TestSnapshots.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
