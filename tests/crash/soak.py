"""Killing the program at random moments, and going on, until the work is done."""

from __future__ import annotations

import signal
import time
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from tests.crash.real import MIB, TOP, UNDO, Running, journal_of, names_in
from vhdkit.journal.merge_journal import SUFFIX
from vhdkit.vhd.header_update import SUFFIX as STEP

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from tests.crash.real import Ended, Journal, Scene, Stage

# A kill follows within this time on what was waited for; or it comes at any time of the run, this often.
_LATER = 0.03
_BY_CLOCK = 0.4
# MiB of payload from which on a first checkpoint is followed by a second, which marks it.
_MARKED = 12


def signs(scene: Scene, verb: str) -> list[str]:
    """Return what a run may be waited for to do before it is killed: kinds of records, phases, changes of names."""
    if verb != "merge":
        return ["rollback" if verb == "rollback" else "dropping", "a name gone", *["step"] * scene.grand]
    found = ["begin", "reserved", "merged", "finishing", "a name come"]
    found += ["grown"] if scene.grows else []
    found += ["saved", "saved"] if scene.undo else ["a name gone", "a name gone"]
    found += ["verifying", "verifying"] if scene.verify else []
    found += ["step", "step"] if scene.grand or scene.sibling or scene.grows else []
    return found + (["mark", "mark"] if scene.dense >= _MARKED else [])


@dataclass(slots=True)
class Tally:
    """What a soak has done. `twice` is the most payload, in bytes, that a kill has made to be copied again."""

    kills: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    resumed: int = 0
    restarted: int = 0
    rolled_back: int = 0
    dropped: int = 0
    twice: int = 0

    @property
    def killed(self) -> int:
        return self.kills.total()

    def add(self, other: Tally) -> None:
        """Count the other's too."""
        for item in fields(self):
            mine, others = getattr(self, item.name), getattr(other, item.name)
            setattr(self, item.name, max(mine, others) if item.name == "twice" else mine + others)

    def __str__(self) -> str:
        return (
            f"{self.killed} kills in {self.rounds} merges: {dict(self.kills)}; found then: {dict(self.moments)}; "
            f"{self.resumed} runs resumed, {self.restarted} started over, {self.rolled_back} merges rolled back, "
            f"{self.dropped} made final; at most {self.twice / MIB:.0f} MiB copied twice by a kill"
        )


class Soak:
    """Rounds of one scene: its merge is killed some times, and so is what follows it."""

    def __init__(self, stage: Stage, dice: random.Random, tally: Tally, *, plain_share: float = 0.3) -> None:
        self.stage = stage
        self.dice = dice
        self.tally = tally
        self.plain_share = plain_share

    def round(self) -> None:
        """Merge with kills until it is done; then, with an undo image, roll back or make final, with kills too."""
        stage, scene, dice = self.stage, self.stage.scene, self.dice
        stage.restore()
        self.tally.rounds += 1
        give_up = scene.undo and dice.random() < 0.3
        kills = dice.choice([2, 3, 3, 4, 5])
        for _ in range(kills):
            if self._killed("merge", scene.merge) and give_up and UNDO in names_in(stage.work):
                break
        else:
            give_up = False
            self._finish_merge()
        if not scene.undo:
            return
        if give_up or dice.random() < 0.5:
            self._carry_out("rollback", ["rollback", UNDO, "--json", "--progress", "json"])
            self.tally.rolled_back += 1
            stage.assert_as_before()
        else:
            option = ["--keep-file"] if scene.sibling else []
            self._carry_out("undo drop", ["undo", "drop", UNDO, "--json", *option])
            self.tally.dropped += 1
            assert names_in(stage.work) == stage.left | ({UNDO} if scene.sibling else set())
            stage.look()

    def _finish_merge(self) -> None:
        stage = self.stage
        before = journal_of(stage.work, stage.scene)
        if before is not None or TOP in names_in(stage.work):
            done = Running(stage.work, stage.scene.merge).ended()
            assert done.code == 0, done.err
            self.tally.resumed += done.json["resumed"]
            if before is not None and "merged" not in before.kinds:
                self.tally.restarted += done.json["bytes-copied"] > before.payload - before.done
        stage.assert_merged()

    def _carry_out(self, verb: str, command: Sequence[str]) -> None:
        """Kill a roll-back or a drop sometimes, then let it come to its end."""
        for _ in range(self.dice.choice([0, 1, 1, 2])):
            self._killed(verb, command)
        if journal_of(self.stage.work, self.stage.scene) is not None:
            done = Running(self.stage.work, command).ended()
            assert done.code == 0, done.err

    def _killed(self, verb: str, command: Sequence[str]) -> bool:
        """Start it, kill it somewhere, and look; return whether it was killed, and not done before."""
        stage, dice = self.stage, self.dice
        before = journal_of(stage.work, stage.scene)
        if before is None and (verb != "merge" or TOP not in names_in(stage.work)):
            return False
        run = Running(stage.work, command)
        if dice.random() < _BY_CLOCK:
            later = run.begun + dice.uniform(0.2, max(0.6, stage.seconds * 1.02))
        else:
            run.wait_until(self._sign(run, dice.choice(signs(stage.scene, verb))))
            later = time.monotonic() + dice.uniform(0, _LATER) * dice.random()
        run.wait_until(lambda: time.monotonic() >= later)
        run.send(signal.SIGKILL)
        ended = run.ended()
        assert ended.code in {0, -signal.SIGKILL}, ended.err
        if ended.code:
            self._count(verb, before, ended)
        stage.look(plain=dice.random() < self.plain_share, lock=dice.random() < 0.5)
        return bool(ended.code)

    def _count(self, verb: str, before: Journal | None, ended: Ended) -> None:
        tally, after = self.tally, journal_of(self.stage.work, self.stage.scene)
        tally.kills[verb] += 1
        tally.moments[after.phase if after is not None else "no journal"] += 1
        if verb != "merge" or before is None or after is None:
            known = 0
        else:
            known = before.kinds.count("begin")
            tally.resumed += len(after.kinds) > len(before.kinds) and known > 0
        if after is not None and verb == "merge":
            tally.restarted += known > 0 and after.kinds.count("begin") > known
            if "merged" not in after.kinds:
                tally.twice = max(tally.twice, ended.bytes_reached - after.done)

    def _sign(self, run: Running, sign: str) -> Callable[[], bool]:
        """Return what tells that something has happened since now."""
        folder, journal = self.stage.work, self.stage.work / (self.stage.scene.destination + SUFFIX)
        names = names_in(folder)
        if sign == "step":
            return lambda: any(name.endswith(STEP) for name in names_in(folder))
        if sign == "a name gone":
            return lambda: bool(names - names_in(folder))
        if sign == "a name come":
            return lambda: bool(names_in(folder) - names)
        if sign in {"finishing", "verifying"}:
            return lambda: sign.encode() in run.told

        def count() -> int:
            try:
                return journal.read_bytes().count(f'"kind":"{sign}"'.encode())
            except FileNotFoundError:
                return 0

        known = count()
        return lambda: count() > known
