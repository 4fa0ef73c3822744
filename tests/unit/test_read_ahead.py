"""Items that are worked out on another thread (vhdkit/storage/read_ahead.py)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from vhdkit.storage.read_ahead import read_ahead

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_items_come_in_order_and_no_more_are_ahead_than_asked_for() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            yield number

    for number in read_ahead(items(), 2):
        assert len(made) <= number + 4
    assert made == list(range(50))


def test_what_working_out_raises_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError(5, "failed")

    found = read_ahead(items(), 2)
    assert next(found) == 1
    with pytest.raises(OSError, match="failed"):
        next(found)


def test_a_caller_that_stops_early_leaves_no_thread_behind() -> None:
    def items() -> Iterator[int]:
        yield from range(1_000_000)

    before = threading.active_count()
    ahead = read_ahead(items(), 2)
    assert next(ahead) == 0
    ahead.close()  # type: ignore[attr-defined] # it is a generator
    assert threading.active_count() == before


def test_without_threads_items_are_worked_out_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert list(read_ahead(iter(range(5)), 2)) == [0, 1, 2, 3, 4]
