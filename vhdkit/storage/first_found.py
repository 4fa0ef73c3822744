"""Search items on several threads for the first, in their order, in which something is found.

Reading a file lets go of the interpreter: of two threads that read and compare, one reads while the other compares.
"""

from __future__ import annotations

from threading import Lock, current_thread
from typing import TYPE_CHECKING, Generic, TypeVar

from vhdkit.storage.background_call import Aside, end_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Item = TypeVar("Item")
Found = TypeVar("Found")


def first_found(
    finders: Sequence[Callable[[Item], Found | None]], items: Iterable[Item], looked: Callable[[Item], None]
) -> Found | None:
    """Return what is found in the first item in which anything is, None if in none of them.

    Each finder has a thread of its own, the first one the caller's, and takes the next item when it is free; `looked`
    is called with those of the caller's thread. What an item or a finder raises is raised if nothing was found before
    it. However this ends, the other threads have stopped by then: the files that they read may be closed.
    """
    search: _Search[Item, Found] = _Search(items)
    others = [Aside(lambda finder=finder: search.run(finder)) for finder in finders[1:]]  # type: ignore[misc]
    try:
        for other in others:
            other.begin()
        search.run(finders[0], looked)
    finally:
        search.is_stopped = True
        end_all(others)
    for other in others:
        other.wait()
    return search.result()


class _Search(Generic[Item, Found]):
    """The items that are left, and how the search ended in those that ended it, by their number."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self._caller = current_thread()
        self._taking = Lock()
        self._taken = 0
        self._ends: dict[int, Found | Exception] = {}
        self.is_stopped = False

    def run(self, find: Callable[[Item], Found | None], looked: Callable[[Item], None] | None = None) -> None:
        """Look through items until there are no more, or the search has ended in one: those before it were taken."""
        if looked is None and current_thread() is self._caller:
            return  # no thread was to be had: the caller looks through all of them
        while not self.is_stopped and not self._ends:
            with self._taking:
                number, self._taken = self._taken, self._taken + 1
                try:
                    item = next(self._items)
                except StopIteration:
                    return
                except Exception as error:  # noqa: BLE001 - raised by `result`
                    self._ends[number] = error
                    return
            try:
                found = find(item)
            except Exception as error:  # noqa: BLE001 - raised by `result`
                self._ends[number] = error
                return
            if found is not None:
                self._ends[number] = found
            if looked is not None:
                looked(item)

    def result(self) -> Found | None:
        """Return what was found first, or raise the error that came before it."""
        if not self._ends:
            return None
        first = self._ends[min(self._ends)]
        if isinstance(first, Exception):
            raise first
        return first
