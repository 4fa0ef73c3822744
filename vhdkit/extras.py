"""Libraries that only some verbs need, each of which is an extra of the package."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from vhdkit.errors import MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType


def load_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Return a module that an extra brings.

    Raises:
        MissingExtraError: it is not installed.

    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in {module, module.partition(".")[0]}:
            raise
        raise MissingExtraError(purpose, extra=extra) from None
