"""A search by several threads ends as one by a single thread would (vhdkit/storage/first_found.py)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdkit.storage.first_found import first_found

if TYPE_CHECKING:
    from collections.abc import Iterator


class Fault(Exception):  # noqa: N818 - what stands for a disk's error
    """What looking at an item raises."""


def find(item: str) -> str | None:
    if item == "fault":
        raise Fault
    return item if item.startswith("found") else None


def looked(_: str) -> None:
    """Nothing."""


def one_by_one(items: list[str]) -> str | None:
    for item in items:
        if (found := find(item)) is not None:
            return found
    return None


@given(st.lists(st.sampled_from(["-", "-", "-", "found a", "found b", "fault"]), max_size=12), st.integers(1, 3))
def test_it_ends_as_a_search_one_by_one_does(items: list[str], threads: int) -> None:
    try:
        expected = one_by_one(items)
    except Fault:
        with pytest.raises(Fault):
            first_found([find] * threads, items, looked)
    else:
        assert first_found([find] * threads, items, looked) == expected


def test_of_two_ends_that_came_the_other_way_round_the_first_item_counts() -> None:
    is_second_over = threading.Event()

    def slow(item: int) -> int | None:
        if item == 0:
            assert is_second_over.wait(10)
            return 0
        is_second_over.set()
        raise Fault

    assert first_found([slow, slow], range(10), lambda _item: None) == 0


def test_an_error_of_the_items_comes_after_what_was_found_before_it() -> None:
    def items() -> Iterator[str]:
        yield "-"
        raise Fault

    with pytest.raises(Fault):
        first_found([find, find], items(), looked)


def test_the_caller_that_stops_leaves_no_thread_behind() -> None:
    def stop(_: str) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        first_found([find, find], ("-" for _ in range(1_000_000)), stop)
    assert threading.active_count() == before


def test_without_threads_the_caller_looks_at_every_item(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    seen: list[str] = []
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert first_found([find, find, find], ["-", "-", "found it", "-"], seen.append) == "found it"
    assert seen == ["-", "-", "found it"]
