"""The window of a BAT that is kept in memory (vhdkit/vhd/bat_window.py)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhd.bat_window import WINDOW, Table

if TYPE_CHECKING:
    from types import FrameType


def test_threads_that_read_at_once_get_the_entries_that_they_ask_for() -> None:
    """Another thread may come between any two instructions: it asks for the other window at each of them."""
    raw = np.arange(2 * WINDOW, dtype=">u4").tobytes()
    with MemoryFolder({"/a": raw}).open("/a") as storage:
        table = Table(storage, 0, 2 * WINDOW)
        wrong: list[int] = []
        asked = 0

        def other(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal asked
            if frame.f_code is not Table._load.__code__:  # noqa: SLF001 - where threads could meet
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                asked += 1
                if table.entries(WINDOW, WINDOW + 1)[0] != WINDOW:
                    wrong.append(frame.f_lasti)
            return other

        before = sys.gettrace()
        sys.settrace(other)
        try:
            found = [int(table.entries(number, number + 1)[0]) for number in (5, WINDOW + 5, 7)]
        finally:
            sys.settrace(before)
    assert found == [5, WINDOW + 5, 7]
    assert not wrong
    assert asked > 50
