"""Small merges as data: what is built, what is merged, and what every image must read as at every instant.

A program is one of tests/model.py whose last operation is the merge. `branches` are further images over its layers:
over the topmost source they are children to be relinked, over other layers siblings, which need `undo`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.model import Create, Kind, Merge, ModelChain, Snapshot, Write, specs
from tests.plainbuild import ImageSpec, build, locator
from tests.plainvhd import SECTOR

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.model import Operation

FOLDER = "/vms"
UNDO = f"{FOLDER}/undo.avhd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """Another child of the layer at `depth` (from the leaf, which is 0), with some writes."""

    depth: int
    writes: tuple[Write, ...] = ()
    block_size: int = 4096


@dataclass(frozen=True, kw_only=True)
class CrashProgram:
    """A chain and a merge in it. `vary` has fields of some layers' ImageSpec, by depth."""

    name: str
    build: tuple[Operation, ...]
    merge: Merge = field(default_factory=Merge)
    branches: tuple[Branch, ...] = ()
    undo: bool = False
    verify: bool = False
    relink_siblings: bool = False
    vary: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def chain(self) -> ModelChain:
        """The model before the merge."""
        return ModelChain.run(self.build)

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Every file before the merge, the chain's leaf first."""
        chain = self._files_of(self.chain, self.vary)
        return chain | {path: raw for number in range(len(self.branches)) for path, raw in [self._branch(number)]}

    @property
    def paths(self) -> list[str]:
        """The chain's files, leaf first."""
        return list(self.files)[: len(self.chain.layers)]

    @property
    def top(self) -> str:
        """The topmost source."""
        return self.paths[self.merge.depth_from]

    @property
    def destination(self) -> str:
        """What is merged into."""
        return self.paths[self.merge.depth_to]

    @property
    def sources(self) -> list[str]:
        """What is merged, leaf first."""
        return self.paths[self.merge.depth_from : self.merge.depth_to]

    @property
    def below(self) -> list[str]:
        """What no merge may touch."""
        return self.paths[self.merge.depth_to + 1 :]

    @cached_property
    def views(self) -> dict[str, bytes]:
        """What the topmost source, and everything that is not merged, reads as: before, at every instant, after.

        Of the sources below the topmost, and of the destination, nothing is promised but to their other children.
        """
        chain = {self.paths[depth]: self.chain.view(depth).tobytes() for depth in range(self.merge.depth_from + 1)}
        below = {
            path: self.chain.view(self.merge.depth_to + 1 + number).tobytes() for number, path in enumerate(self.below)
        }
        branches = {
            f"{FOLDER}/branch-{number}.avhd": self._branch_chain(branch).view().tobytes()
            for number, branch in enumerate(self.branches)
        }
        return chain | below | branches

    @cached_property
    def before(self) -> dict[str, bytes]:
        """What every image reads as before the merge: what a roll-back restores."""
        chain = {path: self.chain.view(depth).tobytes() for depth, path in enumerate(self.paths)}
        return chain | self.views

    @property
    def grows(self) -> bool:
        """Whether the destination's disk becomes larger."""
        return len(self.views[self.top]) > len(self.old_destination)

    @cached_property
    def old_destination(self) -> bytes:
        """What the destination read as before the merge: with `undo` that must not be lost."""
        return self.chain.view(self.merge.depth_to).tobytes()

    @cached_property
    def yesterday(self) -> dict[str, dict[str, bytes]]:
        """The chain's files from before their own last writes: one sector other, and one that was not held yet."""
        other, fewer = self.chain.copy(), self.chain.copy()
        for layer in other.layers:
            for sector in np.flatnonzero(layer.data.any(axis=1))[:1]:
                layer.data[sector] = ~layer.data[sector]
        for layer in fewer.layers:
            for sector in np.flatnonzero(layer.held)[-1:] if layer.kind is not Kind.FIXED else ():
                layer.held[sector], layer.data[sector] = False, 0
        found = {"other": self._files_of(other, self.vary), "fewer": self._files_of(fewer, self.vary)}
        return {
            path: {kind: files[path] for kind, files in found.items() if files[path] != self.files[path]}
            for path in self.paths
        }

    def _branch_chain(self, branch: Branch) -> ModelChain:
        chain = ModelChain(self.chain.layers[branch.depth :]).copy()
        chain.snapshot(Snapshot(block_size=branch.block_size))
        for write in branch.writes:
            chain.apply(write)
        return chain

    def _branch(self, number: int) -> tuple[str, bytes]:
        _, spec = next(specs(self._branch_chain(self.branches[number])))
        assert isinstance(spec, ImageSpec)
        return f"{FOLDER}/branch-{number}.avhd", build(replace(spec, unique_id=b"vhdkit-branch-%02d" % number))

    @staticmethod
    def _files_of(chain: ModelChain, vary: Mapping[int, Mapping[str, Any]]) -> dict[str, bytes]:
        files = {}
        for depth, (name, spec) in enumerate(specs(chain)):
            assert isinstance(spec, ImageSpec)
            files[f"{FOLDER}/{name}"] = build(replace(spec, **vary.get(depth, {})))
        return files


def put(first: int, count: int, fill: int) -> Write:
    """Write sectors."""
    return Write(offset=first * SECTOR, length=count * SECTOR, fill=fill)


def _base(kind: Kind, sectors: int, block_size: int) -> tuple[Operation, ...]:
    """Make the destination; a differencing one gets a full parent."""
    if kind is not Kind.DIFFERENCING:
        return (Create(kind=kind, sector_count=sectors, block_size=block_size),)
    create = Create(kind=Kind.DYNAMIC, sector_count=sectors, block_size=block_size)
    return (create, put(0, sectors, 3), Snapshot(block_size=block_size))


def _seams(kind: Kind, block_size: int) -> tuple[Operation, ...]:
    """Writes that end at, begin at and cross the seams of blocks, in old and in new ones; the disk ends inside one."""
    per_block = block_size // SECTOR
    sectors = 5 * per_block + max(1, per_block // 2)
    return (
        *_base(kind, sectors, block_size),
        put(0, per_block, 9),
        put(2 * per_block, 1, 8),
        Snapshot(block_size=block_size),
        put(per_block - 1, 2, 7),
        put(2 * per_block, per_block, 6),
        put(sectors - 1, 1, 5),
    )


def _levels(kind: Kind, count: int, block_size: int = 4096) -> tuple[Operation, ...]:
    """Return so many layers over the destination, each over parts of those below it."""
    layers: list[Operation] = [*_base(kind, 40, block_size), put(0, 9, 1)]
    for level in range(count):
        layers += [Snapshot(block_size=block_size), put(3 + 4 * level, 7, 20 + level), put(30 - level, 2, 40 + level)]
    return tuple(layers)


def _grown(kind: Kind, *held: int, block_size: int = SECTOR, blocks: int = 300) -> tuple[Operation, ...]:
    """Return a child whose disk needs so many blocks, over one whose BAT is a full sector."""
    per_block = block_size // SECTOR
    sectors = blocks * per_block
    return (
        *_base(kind, 128 * per_block, block_size),
        *(put(block * per_block, 1, 9) for block in held),
        Snapshot(sector_count=sectors, block_size=block_size),
        put(sectors - 2, 2, 7),
        put(2 * per_block, 1, 6),
        put(126 * per_block, 4, 5),
    )


_DYNAMIC_KINDS = (Kind.DYNAMIC, Kind.DIFFERENCING)
_KINDS = (Kind.FIXED, *_DYNAMIC_KINDS)
_TWO_LOCATORS_FIRST = {"locators_first": True}
_LONG_NAME = {
    "locators": (
        locator(0, b"W2ku", "C:\\vms\\layer-0.vhd"),
        locator(1, b"W2ru", ".\\layer-0.vhd"),
        locator(2, b"MacX", "file://./layer-0.vhd"),
    )
}


def _plain() -> list[CrashProgram]:
    return [
        CrashProgram(name=f"seams {kind} {size}", build=_seams(kind, size))
        for kind in _KINDS
        for size in (512, 1024, 4096, 8192)
    ] + [
        CrashProgram(name="nothing to copy", build=(*_base(Kind.DYNAMIC, 40, 4096), put(0, 3, 1), Snapshot())),
        CrashProgram(
            name="zeros over data", build=(*_base(Kind.DYNAMIC, 40, 4096), put(0, 9, 1), Snapshot(), put(2, 9, 0))
        ),
        CrashProgram(
            name="child of smaller blocks",
            build=(*_base(Kind.DYNAMIC, 40, 8192), put(0, 9, 1), Snapshot(block_size=512), put(2, 19, 2)),
        ),
        CrashProgram(
            name="child of larger blocks",
            build=(*_base(Kind.DYNAMIC, 40, 512), put(0, 9, 1), Snapshot(block_size=8192), put(2, 19, 2)),
        ),
        CrashProgram(
            name="no trailing footer", build=_seams(Kind.DYNAMIC, 4096), vary={1: {"trailing_footer": "none"}}
        ),
        CrashProgram(
            name="footer of 511 bytes", build=_seams(Kind.DYNAMIC, 4096), vary={1: {"trailing_footer": "511"}}
        ),
        CrashProgram(name="room before the footer", build=_seams(Kind.DYNAMIC, 512), vary={1: {"footer_gap": 4096}}),
        CrashProgram(name="gaps between blocks", build=_seams(Kind.DIFFERENCING, 4096), vary={1: {"gap": 1024}}),
        CrashProgram(name="verified", build=_seams(Kind.DYNAMIC, 4096), verify=True),
        CrashProgram(name="verified differencing", build=_seams(Kind.DIFFERENCING, 512), verify=True),
    ]


def _deep() -> list[CrashProgram]:
    return (
        [
            CrashProgram(name=f"{count} levels {kind}", build=_levels(kind, count), merge=Merge(depth_to=count))
            for kind in _KINDS
            for count in (2, 3)
        ]
        + [
            CrashProgram(
                name=f"kept {count} levels {kind}",
                build=_levels(kind, count),
                merge=Merge(depth_to=count, keep=True),
            )
            for kind in _KINDS
            for count in (1, 2)
        ]
        + [
            CrashProgram(
                name=f"relinked {kind} from {first} to {last}",
                build=_levels(kind, last),
                merge=Merge(depth_from=first, depth_to=last),
            )
            for kind in _KINDS
            for first, last in ((1, 2), (1, 3))
        ]
        + [
            CrashProgram(
                name=f"two children relinked {kind}",
                build=_levels(kind, 2),
                merge=Merge(depth_from=1, depth_to=2),
                branches=(Branch(depth=1, writes=(put(1, 5, 77),)),),
            )
            for kind in _KINDS
        ]
        + [
            CrashProgram(
                name="three children relinked, of three locators",
                build=_levels(Kind.DYNAMIC, 2),
                merge=Merge(depth_from=1, depth_to=2),
                branches=(Branch(depth=1, writes=(put(1, 5, 77),)), Branch(depth=1, block_size=512)),
                vary={1: _LONG_NAME},
            ),
            CrashProgram(
                name="a grandchild far above",
                build=_levels(Kind.DYNAMIC, 3, 512),
                merge=Merge(depth_from=2, depth_to=3),
            ),
        ]
    )


def _growing() -> list[CrashProgram]:
    return [
        CrashProgram(name=f"longer BAT {kind} over {len(held)} blocks", build=_grown(kind, *held))
        for kind in _DYNAMIC_KINDS
        for held in ((), (0,), (5, 1, 90, 0))
    ] + [
        CrashProgram(name="longer BAT of larger blocks", build=_grown(Kind.DYNAMIC, 0, 1, block_size=4096, blocks=140)),
        CrashProgram(name="BAT grown by two sectors", build=_grown(Kind.DIFFERENCING, 3, 4, blocks=500)),
        CrashProgram(
            name="locators make way",
            build=_grown(Kind.DIFFERENCING, 0, 1),
            vary={1: _LONG_NAME},
        ),
        CrashProgram(
            name="locators before the table",
            build=_grown(Kind.DIFFERENCING, 0, 1),
            vary={1: _TWO_LOCATORS_FIRST},
        ),
        CrashProgram(name="grown into padding", build=_grown(Kind.DYNAMIC, 0), vary={1: {"table_multiple": 4096}}),
        CrashProgram(
            name="grown inside the last block",
            build=(*_base(Kind.DYNAMIC, 37, 4096), put(36, 1, 9), Snapshot(sector_count=39), put(38, 1, 7)),
        ),
        CrashProgram(
            name="grown with a longer grandparent",
            build=(
                *_base(Kind.DYNAMIC, 61, 4096),
                put(0, 61, 1),
                Snapshot(sector_count=37),
                put(36, 1, 3),
                Snapshot(sector_count=61),
                put(44, 1, 4),
            ),
        ),
        CrashProgram(
            name="grown and relinked",
            build=(*_grown(Kind.DYNAMIC, 0, 1), Snapshot(block_size=512), put(9, 2, 3)),
            merge=Merge(depth_from=1, depth_to=2),
        ),
        CrashProgram(
            name="grown and kept",
            build=_grown(Kind.DYNAMIC, 0, 1),
            merge=Merge(keep=True),
        ),
    ]


def _undone() -> list[CrashProgram]:
    return (
        [CrashProgram(name=f"undo {kind}", build=_seams(kind, 4096), undo=True) for kind in _KINDS]
        + [
            CrashProgram(name=f"undo 2 levels {kind}", build=_levels(kind, 2), merge=Merge(depth_to=2), undo=True)
            for kind in _KINDS
        ]
        + [
            CrashProgram(
                name=f"undo with siblings {kind}",
                build=_levels(kind, 2),
                merge=Merge(depth_from=1, depth_to=2),
                branches=(Branch(depth=2, writes=(put(2, 4, 66),)),),
                undo=True,
                relink_siblings=True,
            )
            for kind in _KINDS
        ]
        + [
            CrashProgram(
                name="undo with two siblings and verified",
                build=_levels(Kind.DYNAMIC, 1, 512),
                branches=(Branch(depth=1, writes=(put(2, 4, 66),)), Branch(depth=1)),
                undo=True,
                verify=True,
                relink_siblings=True,
            ),
            CrashProgram(name="undo of growth", build=_grown(Kind.DYNAMIC, 0, 1), undo=True),
            CrashProgram(name="undo of growth by one sector", build=_grown(Kind.DYNAMIC, 0, 1, blocks=140), undo=True),
            CrashProgram(name="undo of small blocks", build=_seams(Kind.DIFFERENCING, 512), undo=True),
        ]
    )


PROGRAMS: tuple[CrashProgram, ...] = (*_plain(), *_deep(), *_growing(), *_undone())
