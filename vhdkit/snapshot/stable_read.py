"""Look at files that other processes are changing, and answer only when they rested meanwhile."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from vhdkit.errors import ImageInUseError, VhdError
from vhdkit.snapshot.check import may_pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.snapshot.remark import Remark

State = TypeVar("State")
Answer = TypeVar("Answer")

# An operation or a merge that goes on beside is seen half done for a moment; what is cut off stays so.
_LOOKS, _BETWEEN_SECONDS = 40, 0.25
_SOON_SECONDS = 0.01


def rested(ask: Callable[[State], Answer], state: Callable[[], State]) -> Answer:
    """Return what `ask` makes of the state, asked again as long as that is another one afterwards.

    Raises:
        ImageInUseError: it never rests.
        VhdError, OSError: what `ask` raises, twice for one state.

    """
    failed: State | None = None
    for _ in range(_LOOKS):
        before = state()
        try:
            answer = ask(before)
        except (VhdError, OSError):
            if failed == before == state():
                raise
            failed = before
        else:
            if state() == before:
                return answer
        time.sleep(_SOON_SECONDS)
    raise _never_rests()


def seen_twice(look: Callable[[], tuple[Remark, ...]], state: Callable[[], State]) -> tuple[Remark, ...]:
    """Return what two looks have found alike: an operation under way looks like one that was cut off.

    Raises:
        ImageInUseError: what is looked at never rests.
        VhdError, OSError: two looks have raised it.

    """
    before: tuple[object, object] | None = None
    for at in range(_LOOKS):
        if at:
            time.sleep(_BETWEEN_SECONDS)
        noted = state()
        failure: VhdError | OSError | None = None
        found: tuple[Remark, ...] = ()
        try:
            found = look()
        except (VhdError, OSError) as error:
            failure = error
        if state() != noted:
            before = None
            continue
        if failure is None and not may_pass(found):
            return found
        now = (noted, found if failure is None else str(failure))
        if now == before:
            if failure is not None:
                raise failure
            return found
        before = now
    raise _never_rests()


def _never_rests() -> ImageInUseError:
    return ImageInUseError("other processes keep changing the machine's files; try again when they are done", path="")
