"""Calls on another thread: that they are over is known whatever comes between (vhdkit/storage/background_call.py)."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from vhdkit.storage.background_call import Aside, end_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

needs_signals = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers that signal")


class Call:
    """A call that takes until it is let go."""

    def __init__(self) -> None:
        self.let_go, self.begun, self.over = threading.Event(), threading.Event(), False

    def __call__(self) -> None:
        self.begun.set()
        assert self.let_go.wait(10)
        self.over = True


@pytest.fixture
def _interrupts() -> Iterator[None]:
    """Signals as of a user who presses Ctrl-C over and over."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_call_is_made_aside_and_its_seconds_are_told() -> None:
    call = Call()
    aside = Aside(call)
    aside.begin()
    assert call.begun.wait(10)
    assert not aside.is_done()
    time.sleep(0.05)
    call.let_go.set()
    assert aside.wait() >= 0.05
    assert aside.is_done()
    assert call.over


@needs_signals
@pytest.mark.usefixtures("_interrupts")
@pytest.mark.parametrize("ask", [Aside.end, Aside.wait])
def test_nobody_goes_on_before_a_call_is_over_however_often_it_is_interrupted(ask: Callable[[Aside], object]) -> None:
    call = Call()
    aside = Aside(call)
    aside.begin()
    timer = threading.Timer(0.4, call.let_go.set)
    timer.start()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the timer must not ring outside
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
            ask(aside)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert call.over
    assert aside.is_done()
    aside.end()
    assert aside.wait() > 0.2


def test_a_call_whose_beginning_was_interrupted_is_over_when_it_was_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever that was: before there was a thread, or when it runs already."""
    made: list[str] = []
    start = threading.Thread.start

    def make() -> None:
        time.sleep(0.1)
        made.append("made")

    def interrupted_before(_thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    def interrupted_after(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    for broken in (interrupted_before, interrupted_after):
        aside = Aside(make)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", broken)
            with pytest.raises(KeyboardInterrupt):
                aside.begin()
        aside.end()
        count = len(made)
        time.sleep(0.2)
        assert len(made) == count, "it was made when nobody expected it any more"
    never = Aside(lambda: None)
    never.end()
    with pytest.raises(OSError, match=r"[Cc]ancel") as caught:
        never.wait()
    assert caught.value.errno == errno.ECANCELED


def test_a_call_that_was_not_begun_is_made_by_who_waits() -> None:
    made: list[threading.Thread] = []
    assert Aside(lambda: made.append(threading.current_thread())).wait() >= 0
    assert made == [threading.main_thread()]


def test_an_error_is_told_each_time_by_waiting_and_not_by_ending() -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "broken")

    aside = Aside(fail)
    with contextlib.suppress(RuntimeError):
        aside.begin()
    aside.end()
    for _ in range(2):
        with pytest.raises(OSError, match="broken"):
            aside.wait()


@needs_signals
@pytest.mark.usefixtures("_interrupts")
@pytest.mark.parametrize("every", [0.0, 0.03])
def test_of_several_calls_all_are_over_however_often_that_is_interrupted(every: float) -> None:
    calls = [Call() for _ in range(4)]
    asides = [Aside(call) for call in calls]
    for aside in asides:
        aside.begin()
    for number, call in enumerate(calls):
        threading.Timer(0.1 * (number + 1), call.let_go.set).start()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the timer may strike at once
        signal.setitimer(signal.ITIMER_REAL, 0.05, every)
        end_all(asides)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert all(call.over for call in calls)
    end_all(asides)
