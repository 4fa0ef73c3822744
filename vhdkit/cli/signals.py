"""Ctrl-C, SIGTERM and SIGHUP: the first asks the work to stop where it is safe, the second ends it where it is."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

# What a terminal that is closed, or an ssh connection that is lost, sends; Windows has none.
HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask this process to end; SIGHUP is none of them where `nohup` had it ignored."""
    if HANGUP is None or signal.getsignal(HANGUP) is signal.SIG_IGN:
        return signal.SIGINT, signal.SIGTERM
    return signal.SIGINT, signal.SIGTERM, HANGUP


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Lend an event that is set by the first signal; the next raises KeyboardInterrupt, which is as safe a cut.

    A terminal that is closed sends SIGHUP more than once, to the shell's jobs and to the session: it never cuts.
    """
    event = threading.Event()

    def handle(number: int, _frame: FrameType | None) -> None:
        if event.is_set() and number != HANGUP:
            raise KeyboardInterrupt
        event.set()

    with signals_handled(handle):
        yield event


@contextmanager
def signals_handled(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    """Handle the signals that ask this process to end; Python allows that in its main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in ending_signals()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
