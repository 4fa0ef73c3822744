"""Where files that belong to a chain are looked for, apart from the chain's own folders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Folder


@dataclass(frozen=True, slots=True)
class SearchScope:
    """The directories that a caller named for a search, and the folder that reads them."""

    folder: Folder
    directories: tuple[str, ...] = ()
