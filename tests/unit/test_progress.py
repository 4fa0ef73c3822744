"""How fast a merge goes and how soon it stops: the rate that was asked for, and less than a second."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.model import Kind, ModelChain, Snapshot
from tests.through import ThroughStorage
from tests.unit.test_merge_laws import Event, SpyFolder, chain_over, contents, in_memory, plain_view, put
from vhdkit.chain.compare import compare
from vhdkit.chain.convert import convert
from vhdkit.merging.run.run_journal import RunJournal
from vhdkit.progress import Phase, Reporter
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.progress import Progress
    from vhdkit.storage.protocols import Storage, Syncing

MIB = 1 << 20


def large_chain(mebibytes: int) -> ModelChain:
    sectors = mebibytes * 2048
    return chain_over(Kind.DYNAMIC, Snapshot(block_size=MIB), put(0, sectors, 5), sectors=sectors, block_size=MIB)


class Clock:
    """A clock that only sleeping moves: how long a test takes on this machine is no part of its verdict."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        assert seconds >= 0
        # As every real clock it moves on, however short the sleep: less than a step of the float would not count.
        self.now += max(seconds, 1e-9) if seconds else 0.0


def test_a_rate_is_kept_within_a_fifth() -> None:
    folder, paths = in_memory(large_chain(8))
    plan = vhdkit.plan_merge(paths[0], folder=folder)
    clock = Clock()
    vhdkit.merge(plan, rate=6 * MIB, folder=folder, clock=clock)
    assert 0.8 <= (clock.now - 100.0) / (plan.payload_bytes / (6 * MIB)) <= 1.2


def test_without_a_rate_nobody_waits() -> None:
    folder, paths = in_memory(large_chain(2))
    clock = Clock()
    vhdkit.merge(vhdkit.plan_merge(paths[0], folder=folder), folder=folder, clock=clock)
    assert clock.now == 100.0


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_of_nothing_is_refused_before_anything_is_done(rate: int) -> None:
    folder, paths = in_memory(large_chain(1))
    plan = vhdkit.plan_merge(paths[0], folder=folder)
    before = contents(folder)
    with pytest.raises(ValueError, match="rate"):
        vhdkit.merge(plan, rate=rate, folder=folder)
    assert contents(folder) == before


class SlowFolder(SpyFolder):
    """A disk that writes 4 MiB a second: at once into its cache if it has one, and on sync for certain.

    A sync that is begun is under way from then on; a file is not closed before it has ended. All of it by `clock`.
    """

    def __init__(self, inner: SpyFolder | object, clock: Clock, *, cached: bool) -> None:
        super().__init__(inner, self.dawdle)  # type: ignore[arg-type] # any folder
        self.clock = clock
        self.cached = cached
        self.dirty = 0
        self.busy_until = 0.0

    def dawdle(self, event: Event) -> None:
        if event.operation in {"write", "copy"} and not self.cached:
            self.clock.sleep(event.length / (4 * MIB))
        elif event.operation in {"write", "copy"}:
            self.dirty += event.length
        elif event.operation == "sync":
            self.take()
            self.rest()

    def take(self) -> None:
        self.busy_until = max(self.busy_until, self.clock.now) + self.dirty / (4 * MIB)
        self.dirty = 0

    def rest(self) -> None:
        self.clock.sleep(max(0.0, self.busy_until - self.clock.now))

    def open(self, path: str, *, writable: bool = False) -> Storage:
        return SlowStorage(super().open(path, writable=writable), self)


class TimedStorage(ThroughStorage):
    """A storage that copies until a time of `clock`."""

    def __init__(self, inner: Storage, clock: Clock) -> None:
        super().__init__(inner)
        self._clock = clock

    def copy_many_from(
        self,
        source: Storage,
        source_offsets: Sequence[int],
        offsets: Sequence[int],
        lengths: Sequence[int],
        until: float = math.inf,
    ) -> int:
        for count, piece in enumerate(zip(source_offsets, offsets, lengths, strict=True)):
            if count and self._clock.now > until:
                return count
            self.copy_from(source, *piece)
        return len(lengths)


class SlowStorage(TimedStorage):
    def __init__(self, inner: Storage, folder: SlowFolder) -> None:
        super().__init__(inner, folder.clock)
        self._folder = folder

    def begin_sync(self) -> Syncing:
        self._folder.take()
        return SlowSyncing(self._folder)

    def close(self) -> None:
        self._folder.rest()
        self.inner.close()


class SlowSyncing:
    def __init__(self, folder: SlowFolder) -> None:
        self._folder = folder
        self._begun = folder.clock.now

    def is_done(self) -> bool:
        return False

    def wait(self) -> float:
        self._folder.rest()
        return self._folder.clock.now - self._begun


class CancelLater:
    """A `Cancel` that is set from a time on."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.at = math.inf

    def is_set(self) -> bool:
        return self.clock.now >= self.at


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("rate", [None, 100_000])
def test_a_merge_stops_within_a_second_on_a_slow_disk(cached: bool, rate: int | None) -> None:
    chain = large_chain(24)
    folder, paths = in_memory(chain)
    clock = Clock()
    slow = SlowFolder(folder, clock, cached=cached)
    plan = vhdkit.plan_merge(paths[0], folder=folder)
    cancel = CancelLater(clock)

    def ask(state: Progress) -> None:
        if state.phase is Phase.COPYING:
            cancel.at = min(cancel.at, clock.now + 0.4)

    with pytest.raises(vhdkit.MergeCancelled) as caught:
        vhdkit.merge(plan, progress=ask, cancel=cancel, rate=rate, folder=slow, clock=clock)
    assert clock.now - cancel.at < 1
    assert "reads as before" in "".join(caught.value.__notes__)
    assert plain_view(folder, paths) == chain.view().tobytes()
    again = vhdkit.plan_merge(paths[0], folder=folder)
    assert again.resume is vhdkit.Resume.CONTINUES
    assert again.journal is not None
    assert again.journal.stopped == "cancelled"
    vhdkit.merge(again, folder=folder)
    assert plain_view(folder, paths[1:]) == chain.view().tobytes()
    assert list(contents(folder)) == [paths[1]]


def test_what_was_copied_when_it_was_asked_to_stop_is_kept() -> None:
    chain = large_chain(24)
    folder, paths = in_memory(chain)
    cancel = threading.Event()
    done = [0]

    def ask(state: Progress) -> None:
        done[0] = state.bytes_done
        if state.bytes_done >= 18 * MIB:
            cancel.set()

    with pytest.raises(vhdkit.MergeCancelled):
        vhdkit.merge(vhdkit.plan_merge(paths[0], folder=folder), progress=ask, cancel=cancel, folder=folder)
    again = vhdkit.plan_merge(paths[0], folder=folder)
    assert again.resume is vhdkit.Resume.CONTINUES
    # All but the part that it was at; a part is 8 MiB.
    assert done[0] - 8 * MIB <= again.bytes_done <= done[0]
    assert again.bytes_done >= 8 * MIB
    assert plain_view(folder, paths) == chain.view().tobytes()
    vhdkit.merge(again, folder=folder)
    assert plain_view(folder, paths[1:]) == chain.view().tobytes()


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("cached", [None, False, True])
def test_a_merge_that_is_cancelled_early_keeps_what_was_copied(cached: bool | None, stop: int) -> None:
    chain = large_chain(8)
    folder, paths = in_memory(chain)
    cancel, clock, done, asked = threading.Event(), Clock(), [0], [math.inf]
    place = folder if cached is None else SlowFolder(folder, clock, cached=cached)

    def ask(state: Progress) -> None:
        done[0] = state.bytes_done
        if state.bytes_done >= stop * MIB and not cancel.is_set():
            asked[0] = clock.now
            cancel.set()

    plan = vhdkit.plan_merge(paths[0], folder=folder)
    with pytest.raises(vhdkit.MergeCancelled) as stopped:
        vhdkit.merge(plan, progress=ask, cancel=cancel, folder=place, clock=clock)
    assert clock.now - asked[0] <= 1.5
    again = vhdkit.plan_merge(paths[0], folder=folder)
    # All but the part that it was at: a block of 2 MiB, or twice as much after the first checkpoint.
    is_kept = done[0] - 4 * MIB <= again.bytes_done <= done[0]
    assert is_kept or "is copied again: making it durable" in "".join(stopped.value.__notes__)
    assert is_kept or cached is not None
    assert plain_view(folder, paths) == chain.view().tobytes()
    vhdkit.merge(again, folder=folder)
    assert plain_view(folder, paths[1:]) == chain.view().tobytes()


def test_a_resumed_merge_that_is_cancelled_at_once_keeps_its_mark() -> None:
    folder, paths = in_memory(large_chain(24))
    marks = []
    for stop in (18 * MIB, 0, 0):
        cancel, plan = threading.Event(), vhdkit.plan_merge(paths[0], folder=folder)

        def ask(state: Progress, stop: int = stop, cancel: threading.Event = cancel) -> None:
            if state.phase is Phase.COPYING and state.bytes_done >= stop:
                cancel.set()

        with pytest.raises(vhdkit.MergeCancelled):
            vhdkit.merge(plan, progress=ask, cancel=cancel, folder=folder)
        marks.append(vhdkit.plan_merge(paths[0], folder=folder).bytes_done)
    assert marks[0] >= 8 * MIB
    assert marks == sorted(marks)


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase not in {Phase.COMPARING, Phase.HASHING}])
def test_the_progress_function_may_stop_it_in_every_phase(phase: Phase) -> None:
    chain = chain_over(Kind.DYNAMIC, put(0, 9, 1), Snapshot(), put(3, 30, 2))
    folder, paths = in_memory(chain)

    def stop(state: Progress) -> None:
        if state.phase is phase:
            raise vhdkit.MergeCancelled("enough")

    plan = vhdkit.plan_merge(paths[0], verify=True, folder=folder)
    with pytest.raises(vhdkit.MergeCancelled, match="enough"):
        vhdkit.merge(plan, progress=stop, folder=folder)
    assert plain_view(folder, paths) == chain.view().tobytes()
    vhdkit.merge(vhdkit.plan_merge(paths[0], folder=folder), folder=folder)
    assert plain_view(folder, paths[1:]) == chain.view().tobytes()
    assert list(contents(folder)) == [paths[1]]


def test_a_second_interruption_while_the_first_is_noted_still_tells_how_things_stand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chain = large_chain(24)
    folder, paths = in_memory(chain)
    cancel = threading.Event()

    def ask(state: Progress) -> None:
        if state.bytes_done >= 10 * MIB:
            cancel.set()

    def interrupted(*_words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunJournal, "_note_stopped", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        vhdkit.merge(vhdkit.plan_merge(paths[0], folder=folder), progress=ask, cancel=cancel, folder=folder)
    (note,) = caught.value.__notes__
    assert "goes on with it" in note
    assert plain_view(folder, paths) == chain.view().tobytes()
    vhdkit.merge(vhdkit.plan_merge(paths[0], folder=folder), folder=folder)
    assert plain_view(folder, paths[1:]) == chain.view().tobytes()


def test_an_event_that_was_set_before_stops_it_before_anything_is_changed_for_good() -> None:
    folder, paths = in_memory(large_chain(1))
    expected = plain_view(folder, paths)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(vhdkit.MergeCancelled):
        vhdkit.merge(vhdkit.plan_merge(paths[0], folder=folder), cancel=cancel, folder=folder)
    assert plain_view(folder, paths) == expected


def test_progress_never_passes_the_total_nor_goes_back() -> None:
    seen: list[Progress] = []
    reporter = Reporter(100, 10, seen.append, None, None)
    for count in (30, 30, 90):
        reporter.add(count)
    assert [state.bytes_done for state in seen] == [40, 70, 100]
    assert {state.bytes_total for state in seen} == {100}


RATE = 1 << 20


def test_the_rate_is_kept() -> None:
    clock = Clock()
    reporter = Reporter(100 * RATE, 0, None, None, RATE, clock)
    for _ in range(40):
        reporter.add(RATE // 4)
    assert clock.now == pytest.approx(110.0)


@pytest.mark.parametrize("pause", [0.3, 5, 3600])
def test_a_pause_is_not_made_up_for_by_going_faster(pause: float) -> None:
    clock = Clock()
    reporter = Reporter(100 * RATE, 0, None, None, RATE, clock)
    clock.sleep(pause)
    after = clock.now
    for _ in range(40):
        reporter.add(RATE // 4)
    assert 9.2 <= clock.now - after <= 10.0


class Dawdling:
    """A sync of a disk that takes a fifth of a millisecond for each piece, and no time for long ones."""

    def __init__(self, folder: PieceFolder) -> None:
        self._clock = folder.clock
        self._until = self._clock.now + folder.pieces / 5000
        folder.pieces = 0

    def is_done(self) -> bool:
        return self._clock.now >= self._until

    def wait(self) -> float:
        left = max(0.0, self._until - self._clock.now)
        self._clock.sleep(left)
        return left


class PieceFolder(SpyFolder):
    def __init__(self, inner: object) -> None:
        super().__init__(inner, self.count)  # type: ignore[arg-type] # any folder
        self.clock = Clock()
        self.pieces = 0

    def count(self, event: Event) -> None:
        if event.operation == "sync":
            Dawdling(self).wait()
        elif event.operation in {"write", "copy"} and event.length <= 4096:
            self.pieces += 1

    def open(self, path: str, *, writable: bool = False) -> Storage:
        return PieceStorage(super().open(path, writable=writable), self)


class PieceStorage(TimedStorage):
    def __init__(self, inner: Storage, folder: PieceFolder) -> None:
        super().__init__(inner, folder.clock)
        self._folder = folder

    def begin_sync(self) -> Syncing:
        return Dawdling(self._folder)


def test_full_blocks_that_were_soon_durable_say_nothing_of_thousands_of_pieces() -> None:
    full, step, count = 16 * MIB, 8192, 12000
    folder = MemoryFolder({})
    vhdkit.create_image("/base.vhd", size=full + step * count, folder=folder)
    vhdkit.create_image("/leaf.avhd", parent="/base.vhd", folder=folder)
    with vhdkit.open_chain("/leaf.avhd", writable=True, folder=folder) as chain:
        chain.write(0, b"f" * full)
        for at in range(count):
            chain.write(full + at * step, b"p" * 512)
    slow, cancel, asked = PieceFolder(folder), threading.Event(), [0.0]

    def ask(state: Progress) -> None:
        if state.bytes_done > full + count * 460 and not asked[0]:
            asked[0] = slow.clock.now
            cancel.set()

    plan = vhdkit.plan_merge("/leaf.avhd", folder=slow)
    with pytest.raises(vhdkit.MergeCancelled):
        vhdkit.merge(plan, progress=ask, cancel=cancel, folder=slow, clock=slow.clock)
    assert asked[0]
    assert slow.clock.now - asked[0] < 1
    vhdkit.merge(vhdkit.plan_merge("/leaf.avhd", folder=folder), folder=folder)


@pytest.mark.parametrize("kind", ["raw", "fixed", "dynamic"])
def test_a_conversion_says_how_far_it_is_and_stops_when_asked(kind: Any) -> None:
    folder, paths = in_memory(large_chain(8))
    seen: list[Progress] = []
    name = "/new.raw" if kind == "raw" else "/new.vhd"
    convert(paths[0], name, output_format=kind, progress=seen.append, folder=folder)
    done = [state.bytes_done for state in seen]
    assert done == sorted(done)
    assert {(state.phase, state.bytes_total) for state in seen} == {(Phase.COPYING, 8 * MIB)}
    assert done[-1] == 8 * MIB
    folder.remove(name)
    event = threading.Event()
    event.set()
    with pytest.raises(vhdkit.Cancelled):
        convert(paths[0], name, output_format=kind, cancel=event, folder=folder)
    assert not folder.exists(name)


def test_a_comparison_says_how_far_it_is_and_stops_when_asked() -> None:
    folder, paths = in_memory(large_chain(8))
    seen: list[Progress] = []
    assert compare(paths[0], paths[0], progress=seen.append, folder=folder).equal
    assert {(state.phase, state.bytes_total) for state in seen} == {(Phase.COMPARING, 8 * MIB)}
    assert seen[-1].bytes_done == 8 * MIB
    event = threading.Event()
    event.set()
    with pytest.raises(vhdkit.Cancelled):
        compare(paths[0], paths[0], cancel=event, folder=folder)


def test_a_cancelled_merge_is_a_merge_error_and_cancelled() -> None:
    assert issubclass(vhdkit.MergeCancelled, vhdkit.MergeError)
    assert issubclass(vhdkit.MergeCancelled, vhdkit.Cancelled)
