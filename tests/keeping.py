"""What a test opens and leaves open, closed when the test is over."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Opened = TypeVar("Opened", bound="AbstractContextManager[Any]")

_opened = ExitStack()


def keep(opened: Opened) -> Opened:
    """Return what was opened, to be closed at the end of the test."""
    _opened.enter_context(opened)
    return opened


def close_kept() -> None:
    _opened.close()
