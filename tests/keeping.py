"""What a test opens and leaves open, closed when the test is over."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Opened = TypeVar("Opened")

_opened = ExitStack()


def keep(opened: AbstractContextManager[Opened]) -> Opened:
    """Return what was opened, to be closed at the end of the test."""
    return _opened.enter_context(opened)


def close_kept() -> None:
    _opened.close()
