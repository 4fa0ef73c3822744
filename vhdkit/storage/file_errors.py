"""Errors of calls that work on a descriptor say which file it was, and whether it is closed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from vhdkit.storage.handle import Handle

if TYPE_CHECKING:
    from collections.abc import Callable

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def naming_file(method: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let the errors of a method that works on a descriptor say which file it was, and whether it is closed."""

    @functools.wraps(method)
    def wrapped(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        try:
            return method(*arguments, **named)
        except (OSError, ValueError) as error:
            name_file(error, *arguments)
            raise

    return wrapped


def name_file(error: OSError | ValueError, *arguments: object) -> None:
    """Let an error say which file it was, the first of the arguments; raise another if any of them is closed."""
    # Asked only now: a call that works costs 5 us. Some take a descriptor of -1 for a wrong value.
    for each in arguments:
        if isinstance(each, Handle):
            each.check_open()
    if isinstance(error, OSError) and error.filename is None:
        error.filename = getattr(arguments[0], "path", None)
