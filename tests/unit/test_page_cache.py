"""What a merge says that it will not read again, and what the system does about it."""

from __future__ import annotations

import errno
import os
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vhdkit
from tests.cutting import small_checkpoints
from tests.model import Kind, Merge, Snapshot, Write
from tests.plainvhd import bitmap_length, parse
from tests.unit.test_merge_laws import SpyFolder, chain_over, fold, in_memory, put
from tests.unit.test_storage import make_place, pattern, read
from vhdkit.merging.run.page_cache import CacheDropper

if TYPE_CHECKING:
    from pathlib import Path

    from tests.model import ModelChain
    from vhdkit.storage.protocols import Storage

BLOCK = 16384  # four windows
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_ENOUGH_BYTES", "_LEAST_BLOCK"):
        monkeypatch.setattr(f"vhdkit.merging.run.page_cache.{name}", 1)
    small_checkpoints(monkeypatch)


def three_levels(touched: list[list[int]]) -> ModelChain:
    """A base and levels that each have a few sectors of blocks of eight, written in the order given."""
    steps: list[Write | Snapshot] = []
    for level in touched:
        steps += [Snapshot(block_size=BLOCK), *(put(at, 1, at + 1) for at in level)]
    return chain_over(Kind.DYNAMIC, put(0, 60, 7), *steps, sectors=200, block_size=BLOCK)


def stretches(spy: SpyFolder, path: str) -> list[range]:
    return [
        range(event.offset, event.offset + event.length)
        for event in spy.events
        if event.operation == "forget" and event.path == path
    ]


@pytest.mark.fast_path("forgetting")
@given(touched=st.lists(st.lists(st.integers(0, 199), min_size=1, max_size=9), min_size=1, max_size=3))
def test_what_is_forgotten_is_not_read_again_and_is_all_of_the_blocks(touched: list[list[int]]) -> None:
    folder, paths = in_memory(three_levels(touched))
    *sources, destination = paths
    blocks = {path: parse(bytes(folder[path].content)) for path in sources}
    spy = SpyFolder(folder)
    fold(spy, paths, Merge(depth_to=len(sources)))
    for path, image in blocks.items():
        forgotten = set[int]()
        for event in spy.events:
            if event.path != path:
                continue
            place = range(event.offset, event.offset + event.length)
            if event.operation == "forget":
                forgotten |= set(place)
            elif event.operation == "read":
                assert forgotten.isdisjoint(place), event
        span = bitmap_length(BLOCK) + BLOCK
        whole = [int(image.bat[block]) * 512 for block in image.allocated if (block + 1) * BLOCK <= 200 * 512]
        assert forgotten >= {at for start in whole for at in range(start, start + span)}
    assert not stretches(spy, destination)


@pytest.mark.parametrize("options", [{"keep_sources": True}, {"undo": "/undo.vhd"}])
def test_what_stays_is_not_forgotten(options: dict[str, Any]) -> None:
    folder, paths = in_memory(three_levels([[1, 9, 80], [3, 90]]))
    spy = SpyFolder(folder)
    plan = vhdkit.plan_merge(paths[0], into=paths[-1], folder=spy, **options)
    vhdkit.merge(plan, folder=spy)
    assert not [event for event in spy.events if event.operation == "forget"]


@pytest.mark.fast_path("forgetting")
def test_less_than_enough_is_left_to_the_closing_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhdkit.merging.run.page_cache._ENOUGH_BYTES", 100 * BLOCK)
    folder, paths = in_memory(three_levels([[1, 9, 80, 150]]))
    spy = SpyFolder(folder)
    fold(spy, paths, Merge())
    assert not stretches(spy, paths[0])


@pytest.mark.fast_path("forgetting")
def test_a_merge_that_goes_on_forgets_nothing_before_its_mark() -> None:
    folder, paths = in_memory(three_levels([list(range(0, 199, 5))]))
    with vhdkit.open_chain(paths[0], folder=SpyFolder(folder)) as chain:
        forgetting = CacheDropper(chain.layers[:1], 3 * BLOCK + 512)
        image = parse(bytes(folder[paths[0]].content))
        spy = chain.layers[0].storage._folder  # type: ignore[attr-defined] # noqa: SLF001
        forgetting.passed(5 * BLOCK + 512)
        forgetting.passed(5 * BLOCK + 512)
    places = [int(image.bat[block]) * 512 for block in (3, 4)]
    told = {at for stretch in stretches(spy, paths[0]) for at in stretch}
    assert told == {at for start in places for at in range(start, start + bitmap_length(BLOCK) + BLOCK)}


# The system


class Advice:
    """What the system was told about which files; it may be slow, or fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[int, int]] = []
        self.error = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.entered = threading.Event()
        monkeypatch.setattr(os, "posix_fadvise", self.fadvise)

    def fadvise(self, descriptor: int, offset: int, length: int, advice: int) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.entered.set()
        assert self.may_go_on.wait(10)
        os.fstat(descriptor)
        assert advice == os.POSIX_FADV_DONTNEED
        self.told.append((offset, length))
        if self.error:
            raise OSError(self.error, os.strerror(self.error))


needs_advice = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no advice")


def opened(kind: str, tmp_path: Path) -> Storage:
    place = make_place(kind, str(tmp_path))
    return place.folder.open(place.put("file", pattern(4 * MIB)))


@needs_advice
@pytest.mark.parametrize("error", [0, errno.EINVAL])
@pytest.mark.parametrize("kind", ["local", "portable"])
def test_the_system_is_told_aside_in_their_order_and_may_fail(
    kind: str, error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice, storage = Advice(monkeypatch), opened(kind, tmp_path)
    advice.error = error
    advice.may_go_on.clear()
    pieces = [(number * 4096, 4096) for number in range(50)]
    for piece in pieces:
        storage.forget(*piece)
    assert advice.told == []
    assert read(storage, 0, 4 * MIB) == pattern(4 * MIB)
    advice.may_go_on.set()
    storage._forgetting.join(10)  # type: ignore[attr-defined] # noqa: SLF001 - nobody else waits for it
    assert advice.told == pieces
    storage.close()


@needs_advice
def test_a_file_is_closed_when_no_advice_is_under_way_and_the_rest_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice, storage = Advice(monkeypatch), opened("local", tmp_path)
    advice.may_go_on.clear()
    for number in range(50):
        storage.forget(number * 4096, 4096)
    assert advice.entered.wait(10)
    closing = threading.Thread(target=storage.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive(), "its descriptor is used, and could soon be another file's"
    advice.may_go_on.set()
    closing.join(10)
    assert not closing.is_alive()
    assert advice.told == [(0, 4096)]


@needs_advice
@pytest.mark.fast_path("closing")
def test_of_a_removed_file_two_threads_let_go_and_it_is_closed_after_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice, storage = Advice(monkeypatch), opened("local", tmp_path)
    descriptor = storage._descriptor  # type: ignore[attr-defined] # noqa: SLF001
    entered, may_go_on, told = threading.Event(), threading.Event(), advice.fadvise

    def fadvise(at: int, offset: int, length: int, what: int) -> None:
        if offset == 0:
            entered.set()
            assert may_go_on.wait(10)
        told(at, offset, length, what)

    monkeypatch.setattr(os, "posix_fadvise", fadvise)
    for number in range(50):
        storage.forget(number * 4096, 4096)
    assert entered.wait(10)
    storage.begin_close()
    until = time.monotonic() + 10
    while len(advice.told) < 49 and time.monotonic() < until:
        time.sleep(0.01)
    assert advice.told == [(number * 4096, 4096) for number in range(1, 50)]
    os.fstat(descriptor)
    may_go_on.set()
    storage.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(descriptor)
    assert advice.told[-1] == (0, 4096)


@needs_advice
@pytest.mark.fast_path("closing")
def test_without_a_thread_a_ctrl_c_in_the_middle_of_it_closes_the_file_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    storage = opened("local", tmp_path)
    storage.lock(exclusive=True)
    descriptor = storage._descriptor  # type: ignore[attr-defined] # noqa: SLF001
    storage._to_forget.append((0, 4096))  # type: ignore[attr-defined] # noqa: SLF001
    monkeypatch.setattr(os, "posix_fadvise", interrupted)
    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(KeyboardInterrupt):
        storage.begin_close()
    storage.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(descriptor)


@needs_advice
def test_a_large_stretch_is_told_in_parts_that_two_can_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advice, storage = Advice(monkeypatch), opened("local", tmp_path)
    storage.forget(5 * MIB, 200 * MIB)
    storage._forgetting.join(10)  # type: ignore[attr-defined] # noqa: SLF001
    ends = [5 * MIB, 64 * MIB, 128 * MIB, 192 * MIB, 205 * MIB]
    assert advice.told == [(start, stop - start) for start, stop in pairwise(ends)]
    storage.close()


@needs_advice
def test_what_is_forgotten_is_in_memory_no_more_and_reads_as_before(tmp_path: Path) -> None:
    storage = opened("local", tmp_path)
    with open(storage.path, "rb") as file:
        os.fsync(file.fileno())
        read(storage, 0, 4 * MIB)
        if not is_in_memory(file.fileno(), MIB):
            pytest.skip("the file system does not tell what is in memory")
        storage.forget(0, 4 * MIB)
        storage._forgetting.join(10)  # type: ignore[attr-defined] # noqa: SLF001
        assert not is_in_memory(file.fileno(), MIB)
    assert read(storage, 0, 4 * MIB) == pattern(4 * MIB)
    storage.close()


def is_in_memory(descriptor: int, offset: int) -> bool:
    try:
        return bool(os.preadv(descriptor, [bytearray(512)], offset, os.RWF_NOWAIT))
    except OSError:
        return False


def test_a_system_that_takes_no_advice_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    storage = opened("portable", tmp_path)
    storage.forget(0, 4096)
    assert read(storage, 0, 9) == pattern(9)
    storage.close()


@needs_advice
def test_what_is_asked_for_faster_than_it_is_done_is_no_burden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advice, storage = Advice(monkeypatch), opened("local", tmp_path)
    advice.may_go_on.clear()
    for number in range(10_000):
        storage.forget(number * 512, 512)
    assert len(storage._to_forget) <= 4096  # type: ignore[attr-defined] # noqa: SLF001
    advice.may_go_on.set()
    storage.close()
