"""Work out what an iterator yields on another thread, a few items ahead of the caller.

Reading and writing a file let go of the interpreter, so that a copy reads its next piece while it writes the last one.
"""

from __future__ import annotations

from contextlib import contextmanager
from queue import SimpleQueue
from threading import Semaphore, current_thread
from typing import TYPE_CHECKING, TypeVar

from vhdkit.storage.background_call import Aside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Item = TypeVar("Item")


@contextmanager
def read_ahead(items: Iterable[Item], depth: int) -> Iterator[Iterator[Item]]:
    """Iterate over items inside the block, at most `depth` of them worked out before they are asked for.

    While the caller has one item, `depth` wait and one is being made: what is reused for items needs `depth + 2` of it.
    What working them out raises is raised here, after the items before it. However the block ends, the other thread has
    stopped by then: the files that it reads may be closed. Where no thread is to be had, nothing is ahead.
    """
    slots, ready = Semaphore(depth + 1), SimpleQueue[tuple[Item] | None]()
    caller, is_stopped = current_thread(), False

    def work() -> None:
        if current_thread() is caller:
            return
        try:
            for item in items:
                ready.put((item,))
                slots.acquire()
                if is_stopped:
                    break
        finally:
            ready.put(None)

    def made() -> Iterator[Item]:
        while (found := ready.get()) is not None:
            yield found[0]
            slots.release()
        ahead.wait()

    ahead = Aside(work)
    ahead.begin()
    if ahead.ident is None:
        yield iter(items)
        return
    try:
        yield made()
    finally:
        is_stopped = True
        slots.release()
        ahead.end()
