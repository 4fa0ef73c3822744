"""Histories of a machine's snapshots as data, carried out on any folder beside a model of plain arrays.

The model is what every disk showed when each snapshot was taken, and what the machine has written since.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from vhdkit.chain.chain import open_chain
from vhdkit.snapshot.adopt import adopt
from vhdkit.snapshot.machine import Machine
from vhdkit.vhd.create import create_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.storage.protocols import Folder

SECTOR = 512
# Small blocks, so that few sectors are many blocks.
BLOCK_SIZE = 4096
SECTORS = 32
SIZE = SECTORS * SECTOR


class Write(NamedTuple):
    """The machine writes sectors of one letter."""

    disk: int
    sector: int
    length: int
    letter: str


class Take(NamedTuple):
    """A snapshot is taken, with a file of that content unless it is empty."""

    name: str
    state: str = ""


class Apply(NamedTuple):
    """A snapshot is applied."""

    name: str


class Revert(NamedTuple):
    """The machine goes back to the snapshot above now."""


class Delete(NamedTuple):
    """A snapshot is deleted."""

    name: str
    subtree: bool = False


class Rename(NamedTuple):
    """A snapshot gets another name."""

    name: str
    new_name: str


class Settle(NamedTuple):
    """What is owed is carried out."""


Act = Write | Take | Apply | Revert | Delete | Rename | Settle


class Views(NamedTuple):
    """What can be read: every snapshot's disks by its name, its kept files, the active disks, and the tree.

    The tree is part of it since two histories may read alike and still go on differently.
    """

    snapshots: dict[str, tuple[bytes, ...]]
    state: dict[str, bytes]
    active: tuple[bytes, ...]
    parents: dict[str, str | None]
    now: str | None


@dataclass
class Model:
    """What should be read, by plain means."""

    active: list[bytearray]
    snapshots: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    state: dict[str, bytes] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    now: str | None = None

    @classmethod
    def empty(cls, disks: int) -> Model:
        return cls(active=[bytearray(SIZE) for _ in range(disks)])

    def copy(self) -> Model:
        active = [bytearray(disk) for disk in self.active]
        return Model(active, dict(self.snapshots), dict(self.state), dict(self.parents), self.now)

    def views(self) -> Views:
        active = tuple(map(bytes, self.active))
        return Views(dict(self.snapshots), dict(self.state), active, dict(self.parents), self.now)

    def carry_out(self, act: Act) -> None:
        match act:
            case Write():
                length = act.length * SECTOR
                at = act.sector * SECTOR
                self.active[act.disk][at : at + length] = act.letter.encode() * length
            case Take():
                self.snapshots[act.name] = tuple(map(bytes, self.active))
                self.parents[act.name], self.now = self.now, act.name
                if act.state:
                    self.state[act.name] = act.state.encode()
            case Apply():
                self.active, self.now = [bytearray(disk) for disk in self.snapshots[act.name]], act.name
            case Revert():
                if self.now is not None:
                    self.active = [bytearray(disk) for disk in self.snapshots[self.now]]
            case Delete():
                for name in self.below(act.name) if act.subtree else [act.name]:
                    self._forget(name)
            case Rename():
                names = {act.name: act.new_name}
                self.snapshots = {names.get(name, name): views for name, views in self.snapshots.items()}
                self.state = {names.get(name, name): content for name, content in self.state.items()}
                self.parents = {
                    names.get(name, name): None if parent is None else names.get(parent, parent)
                    for name, parent in self.parents.items()
                }
                self.now = None if self.now is None else names.get(self.now, self.now)

    def below(self, name: str) -> list[str]:
        found = [name]
        for each in found:  # which grows
            found += [child for child, parent in self.parents.items() if parent == each]
        return found[::-1]

    def _forget(self, name: str) -> None:
        del self.snapshots[name]
        self.state.pop(name, None)
        parent = self.parents.pop(name)
        self.parents = {child: parent if above == name else above for child, above in self.parents.items()}
        if self.now == name:
            self.now = parent


def ids(seed: int = 0) -> Iterator[uuid.UUID]:
    """Yield ids that are the same each time."""
    return (uuid.UUID(int=seed << 64 | number) for number in count(1))


BASES = ("/vms/c.vhd", "/vms/d.vhd", "/vms/e.vhd")


def begin(folder: Folder, disks: int) -> None:
    """Make the disks of a machine, and its manifest."""
    numbers = ids(1)
    for at in range(disks):
        unique_id = uuid.UUID(int=(at + 1) << 96).bytes
        create_image(BASES[at], size=SIZE, block_size=BLOCK_SIZE, stamp=7, unique_id=unique_id, folder=folder)
    adopt(BASES[:disks], folder=folder, new_id=lambda: next(numbers))


def machine_on(folder: Folder, seed: int) -> Machine:
    """Return the machine; its ids follow from the seed, which must differ from act to act."""
    numbers = ids(seed + 2)
    return Machine(BASES[0], folder=folder, clock=lambda: 1e9 + seed, new_id=lambda: next(numbers))


def carry_out(folder: Folder, act: Act, seed: int) -> None:
    """Do what an act says."""
    machine = machine_on(folder, seed)
    match act:
        case Write():
            with open_chain(machine.active[act.disk], writable=True, folder=folder) as chain:
                chain.write(act.sector * SECTOR, act.letter.encode() * (act.length * SECTOR), sync=True)
        case Take():
            given = []
            if act.state:
                given = [f"/given/{act.name}.bin"]
                put(folder, given[0], act.state.encode())
            machine.take(act.name, state=given)
        case Apply():
            machine.apply(act.name)
        case Revert():
            machine.revert()
        case Delete():
            machine.delete(act.name, subtree=act.subtree)
        case Rename():
            machine.rename(act.name, act.new_name)
        case Settle():
            machine.settle()


def put(folder: Folder, path: str, content: bytes) -> None:
    """Put a file there, durable."""
    if folder.exists(path):
        folder.remove(path)
    storage = folder.create(path)
    storage.write_at(0, content)
    storage.sync()
    storage.close()
    folder.sync(path.rsplit("/", 1)[0])


def views_on(folder: Folder) -> Views:
    """Return what is really read, through the manifest."""
    machine = Machine(BASES[0], folder=folder)
    snapshots, state = {}, {}
    for snapshot in machine.snapshots:
        snapshots[snapshot.name] = tuple(view_of(folder, path) for path in machine.layers_of(snapshot.name))
        for file in snapshot.state:
            state[snapshot.name] = content_of(folder, machine.file.absolute(file.path))
    names: dict[str | None, str | None] = {None: None} | {each.id: each.name for each in machine.snapshots}
    parents = {each.name: names[each.parent] for each in machine.snapshots}
    active = tuple(view_of(folder, path) for path in machine.active)
    return Views(snapshots, state, active, parents, names[machine.manifest.now])


def view_of(folder: Folder, path: str) -> bytes:
    """Return all that a chain shows."""
    with open_chain(path, folder=folder) as chain:
        return chain.read(0, chain.size)


def content_of(folder: Folder, path: str) -> bytes:
    """Return a file's bytes."""
    storage = folder.open(path)
    raw = bytearray(storage.size())
    storage.read_into(0, raw)
    storage.close()
    return bytes(raw)


def strays(folder: Folder) -> list[str]:
    """Return the files beside the disks that no manifest tells of."""
    machine = Machine(BASES[0], folder=folder)
    manifest = machine.manifest
    known = {machine.file.absolute(layer.path) for disk in manifest.disks for layer in disk.layers}
    known |= {machine.file.absolute(file.path) for each in manifest.snapshots for file in each.state}
    known |= {machine.file.path, machine.file.path.replace(".json", ".lock")}
    return [entry.path for entry in folder.walk("/vms") if entry.path not in known]
