"""Let dissect.target read chains of VHD and VHDX as they are: through every parent, and with the VHDX log replayed.

By itself it opens an AVHD as if it were a whole disk: what the child does not have reads as zeros.

    target-shell --plugin-path dissect_vhdkit.py leaf.avhd
    DISSECT_PLUGINS=dissect_vhdkit.py target-query -f users leaf.avhd

It takes over files of this machine, by their names or by what they begin or end with. A disk within a disk stays with
dissect's own containers. Parents are searched beside their children, as vhdkit does; it is read-only.

dissect.target is under the AGPL 3, and vhdkit imports nothing of it. To this file vhdkit's licence applies, Apache 2.0.
"""

from __future__ import annotations

import io
import pathlib
from typing import TYPE_CHECKING, Any, BinaryIO

from dissect.target import container

import vhdkit

if TYPE_CHECKING:
    from pathlib import Path

SUFFIXES = {".vhd", ".avhd", ".vhdx", ".avhdx"}


class ChainContainer(container.Container):  # type: ignore[misc] # dissect.target has no types
    """The disk of a chain, from its leaf."""

    __type__ = "vhdkit"

    def __init__(self, fh: Path | list[Path], *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - dissect's own
        """Open the chain of a leaf."""
        leaf = _first(fh)
        self._chain = vhdkit.open_chain(leaf)
        self._stream = self._chain.open_stream()
        super().__init__(leaf, self._chain.size, *args, **kwargs)

    @staticmethod
    def detect_path(path: Path, _original: list[Path] | Path) -> bool:
        """Whether a file of this machine has the name of an image."""
        return _is_of_this_machine(path) and path.suffix.lower() in SUFFIXES

    @staticmethod
    def _detect_fh(fh: BinaryIO, original: list[Path] | Path | BinaryIO) -> bool:
        """Whether a file of this machine is one, whatever its name."""
        if not _is_of_this_machine(_first(original)):
            return False
        if fh.read(8) in {b"vhdxfile", b"conectix"}:
            return True
        fh.seek(-512, io.SEEK_END)
        return b"conectix" in fh.read(9)

    def read(self, length: int = -1) -> bytes:
        """Return bytes from where the last read ended."""
        return self._stream.read(length)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._stream.tell()

    def close(self) -> None:
        """Close the files of the chain."""
        self._stream.close()
        self._chain.close()


def _first(item: Any) -> Any:  # noqa: ANN401 - a path, an open file, or a list of them
    return item[0] if isinstance(item, list) else item


def _is_of_this_machine(item: object) -> bool:
    # A path inside of a target is a pathlib.Path as well, and means a file on its disk.
    return type(item) in {pathlib.PosixPath, pathlib.WindowsPath}


# Of two containers that know a file, the first is taken.
container.CONTAINERS.insert(0, ChainContainer)
