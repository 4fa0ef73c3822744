"""Machines in real folders, and short words for what is done with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import vhdkit
from vhdkit.command_hints import commands_of
from vhdkit.snapshot.machine import Machine

if TYPE_CHECKING:
    from pathlib import Path

    from vhdkit.snapshot.remark import Remark

MIB = 1 << 20
SIZE = 8 * MIB


@dataclass
class Kept:
    """A machine whose snapshots are kept; every question opens it anew."""

    folder: Path
    base: str

    @classmethod
    def made(cls, folder: Path, bases: list[str], *, size: int = SIZE) -> Kept:
        for base in bases:
            vhdkit.create_image(str(folder / base), size=size)
        Machine.adopt([str(folder / base) for base in bases])
        return cls(folder, str(folder / bases[0]))

    @property
    def machine(self) -> Machine:
        return Machine(self.base)

    def write(self, letter: str, *, at: int = 0, length: int = MIB, disk: int = 0) -> None:
        """Let the machine write, and end."""
        with vhdkit.open_chain(self.machine.active[disk], writable=True) as chain:
            chain.write(at, letter.encode() * length, sync=True)

    def take(self, name: str, letter: str = "") -> None:
        """Write a letter, and take a snapshot."""
        if letter:
            self.write(letter)
        self.machine.take(name)

    def shows(self, name: str = "", disk: int = 0) -> str:
        """Return the first letter that a snapshot shows, or the machine as it is."""
        machine = self.machine
        path = machine.layers_of(name)[disk] if name else machine.active[disk]
        return letter_of(path)

    def all_shown(self) -> dict[str, str]:
        """Return the same for every snapshot, and for now."""
        return {each.name: self.shows(each.name) for each in self.machine.snapshots} | {"now": self.shows()}

    @property
    def images(self) -> list[str]:
        """The names of the images in the folder."""
        return sorted(path.name for path in self.folder.iterdir() if path.suffix in {".vhd", ".avhd"})


def letter_of(path: str) -> str:
    with vhdkit.open_chain(path) as chain:
        return chain.read(0, 1).decode()


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file's bytes but the lock's."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".lock"}


def advised(remark: Remark) -> tuple[str, ...]:
    """Return the commands that a remark shows at the command line."""
    return tuple(command for hint in remark.hints for command in commands_of(hint))
