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

    with read_ahead(items(), 2) as ahead:
        for number in ahead:
            assert len(made) <= number + 4
    assert made == list(range(50))


def test_what_working_out_raises_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError(5, "failed")

    with read_ahead(items(), 2) as found:
        assert next(found) == 1
        with pytest.raises(OSError, match="failed"):
            next(found)


def test_a_caller_that_stops_early_leaves_no_thread_behind() -> None:
    def items() -> Iterator[int]:
        yield from range(1_000_000)

    before = threading.active_count()
    with read_ahead(items(), 2) as ahead:
        assert next(ahead) == 0
    assert threading.active_count() == before


def test_an_error_of_the_caller_leaves_no_thread_behind() -> None:
    def items() -> Iterator[int]:
        yield from range(1_000_000)

    def fail() -> None:
        with read_ahead(items(), 2) as ahead:
            raise ValueError(next(ahead))

    before = threading.active_count()
    with pytest.raises(ValueError, match="0") as caught:
        fail()
    # The error, whose traceback keeps every local value alive, is still there.
    assert (threading.active_count(), caught.type) == (before, ValueError)


def test_without_threads_items_are_worked_out_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with read_ahead(iter(range(5)), 2) as ahead:
        assert list(ahead) == [0, 1, 2, 3, 4]
