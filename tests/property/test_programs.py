"""Programs of Create, Write, Snapshot, Resize and Merge, on the model and by vhdkit's public API on real files.

After every step every layer's view is the model's, and every file passes the judge. Of a merge the plan's figures must
be what happened; a merge that the model refuses must be refused, with every file as it was.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vhdkit
from tests.model import (
    Create,
    Kind,
    Merge,
    ModelChain,
    Shape,
    Snapshot,
    Write,
    merge_refusal,
    shapes_after,
    write_files,
)
from tests.plaincheck import validate
from tests.plainvhd import DIFFERENCING, DYNAMIC, FIXED, PAGE, SECTOR, PlainImage, flat, parse, round_up
from tests.strategies import BLOCK_SIZES, merges, snapshots, writes
from vhdkit.journal.ended_view import SUFFIX as ENDED_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from tests.model import Operation, Program
    from tests.plainbuild import ImageSpec

SMALL = (SECTOR, 4096, 8 * 4096)
LARGE = (512 * 1024, 2 * 1024 * 1024)
MAX_LAYERS = 6


# What hypothesis draws


@st.composite
def far_snapshots(draw: st.DrawFn, parent: Shape) -> Snapshot:
    """A child so much larger that its parent's BAT must grow by a sector or more."""
    per_block = parent.block_size // SECTOR
    blocks = draw(st.integers(120, 400))
    return Snapshot(sector_count=parent.sector_count + blocks * per_block + draw(st.integers(0, 9)))


@st.composite
def steps(draw: st.DrawFn, start: Sequence[Shape], block_sizes: Sequence[int], max_steps: int) -> Program:
    """Operations that go on from layers of the given shapes, merges that must be refused among them."""
    shapes = list(start)
    program: list[Operation] = []
    for _ in range(draw(st.integers(1, max_steps))):
        choices: list[st.SearchStrategy[Operation]] = [writes(shapes[0]), writes(shapes[0])]
        if len(shapes) < MAX_LAYERS:
            choices.append(snapshots(shapes[0], block_sizes, shorter=False))
            if shapes[0].block_size <= 4096 and shapes[0].sector_count < 4000:
                choices.append(far_snapshots(shapes[0]))
        if len(shapes) > 1:
            choices += [merges(shapes, refused=True)] * 2
        operation = draw(st.one_of(choices))
        program.append(operation)
        if not isinstance(operation, Merge) or refusal(shapes, operation) is None:
            shapes = shapes_after(shapes, in_effect(operation))
    return tuple(program)


@st.composite
def bases(draw: st.DrawFn, kinds: Sequence[Kind], block_sizes: Sequence[int]) -> Create:
    block_size = draw(st.sampled_from(block_sizes))
    per_block = block_size // SECTOR
    blocks = draw(st.integers(0, 2 if per_block > 128 else 6))
    odd = draw(st.sampled_from([0, 1, -1, per_block // 2]) | st.integers(0, per_block - 1))
    count = max(1, blocks * per_block + odd)
    return Create(kind=draw(st.sampled_from(kinds)), sector_count=count, block_size=block_size)


@st.composite
def own_programs(draw: st.DrawFn, block_sizes: Sequence[int]) -> Program:
    """Programs that begin with files of vhdkit's own making."""
    create = draw(bases((Kind.DYNAMIC, Kind.FIXED), block_sizes))
    shape = Shape(create.kind, create.sector_count, create.block_size)
    return create, *draw(steps([shape], block_sizes, 12))


@dataclass(frozen=True, kw_only=True)
class Start:
    """A chain that other tools made, the layout of its files leaf first, and what is done with it."""

    made: Program
    layouts: tuple[dict[str, Any], ...]
    junk: tuple[bool, ...]
    program: Program


@st.composite
def foreign_programs(draw: st.DrawFn, block_sizes: Sequence[int]) -> Start:
    """Programs that go on from files of any layout, children smaller than their parents and raw bases among them."""
    create = draw(bases((Kind.DYNAMIC, Kind.DYNAMIC, Kind.FIXED, Kind.RAW), block_sizes))
    shapes = [Shape(create.kind, create.sector_count, create.block_size)]
    made: list[Operation] = [create]
    for _ in range(draw(st.integers(1, MAX_LAYERS - 2))):
        made += draw(st.lists(writes(shapes[0]), max_size=3))
        made.append(draw(snapshots(shapes[0], block_sizes, shorter=True)))
        shapes = shapes_after(shapes, made[-1])
    made += draw(st.lists(writes(shapes[0]), max_size=3))
    layouts = tuple(draw(layout()) for _ in shapes)
    junk = tuple(draw(st.booleans()) for _ in shapes)
    return Start(made=tuple(made), layouts=layouts, junk=junk, program=draw(steps(shapes, block_sizes, 8)))


@st.composite
def layout(draw: st.DrawFn) -> dict[str, Any]:
    """Where things lie in a file of another tool (docs/reference/vhd.md 1.12).

    A file that lost its footer ends behind its last block: data in the footer's place are refused (tests/corrupt).
    """
    trailing_footer = draw(st.sampled_from(["whole", "whole", "511", "none"]))
    return {
        "all_ones": draw(st.booleans()),
        "data_alignment": draw(st.sampled_from([SECTOR, PAGE])),
        "gap": draw(st.sampled_from([0, 0, 5 * SECTOR])),
        "footer_gap": 7 * SECTOR if trailing_footer == "none" else draw(st.sampled_from([0, 0, 7 * SECTOR])),
        "table_multiple": draw(st.sampled_from([SECTOR, PAGE])),
        "table_fill": draw(st.sampled_from([0xFF, 0])),
        "extra_entries": draw(st.sampled_from([0, 0, 1, 200])),
        "locators_first": draw(st.booleans()),
        "trailing_footer": trailing_footer,
    }


def varied(start: Start) -> Callable[[ImageSpec], ImageSpec]:
    """Return what gives each file of a chain, leaf first, the next layout."""
    left = iter(zip(start.layouts, start.junk, strict=True))

    def vary(spec: ImageSpec) -> ImageSpec:
        fields, junk = next(left)
        if spec.disk_type == FIXED:
            # Without its footer a fixed disk is no VHD; 511 bytes of it are enough.
            return replace(spec, trailing_footer="511" if fields["trailing_footer"] == "511" else "whole")
        # All ones would say that a differencing disk holds what it does not.
        fields = fields | {"all_ones": fields["all_ones"] and spec.disk_type == DYNAMIC}
        spec = replace(spec, **fields)
        if junk:
            end = round_up(spec.sector_count, spec.block_size // SECTOR)
            past = {number: bytes([99 + number % 100]) * SECTOR for number in range(spec.sector_count, end)}
            spec = replace(spec, sectors={**spec.sectors, **past}, bits_past_end=True)
        return replace(spec, order=spec.blocks[::-1]) if fields["gap"] else spec

    return vary


def refusal(shapes: Sequence[Shape], merge: Merge) -> str | None:
    """Say why vhdkit must refuse a merge: as the model, and a raw file is never merged into."""
    reason = merge_refusal(shapes, merge)
    if reason is None and shapes[merge.depth_to].kind is Kind.RAW:
        return "a raw destination"
    return reason


def in_effect(operation: Operation) -> Operation:
    """Return what an operation comes to: the layers above kept sources are relinked past them all the same."""
    if isinstance(operation, Merge) and operation.depth_from:
        return replace(operation, keep=False)
    return operation


# The run


@dataclass
class Run:
    """A program's state: the model, the files leaf first, and their bytes when they were last looked at.

    Views of kept layers between source and destination end with a merge of several levels: what `ended` ones show is
    nobody's promise, and depends on whether zeros are held or merely not hidden.
    """

    folder: Path
    model: ModelChain = field(default_factory=ModelChain)
    paths: list[Path] = field(default_factory=list)
    seen: dict[Path, bytes] = field(default_factory=dict)
    flawed: set[Path] = field(default_factory=set)
    ended: set[Path] = field(default_factory=set)
    made: int = 0

    def start(self, chain: ModelChain, paths: list[Path]) -> None:
        self.model, self.paths = chain, paths
        self.check()

    def do(self, operation: Operation) -> None:
        match operation:
            case Create():
                path = self._new_path("vhd")
                kind: Any = operation.kind.value
                length = operation.sector_count * SECTOR
                vhdkit.create_image(str(path), size=length, disk_type=kind, block_size=operation.block_size)
                self.paths = [path]
                self.model.apply(operation)
            case Write():
                with vhdkit.open_chain(str(self.paths[0]), writable=True, parent=self._raw(0)) as chain:
                    chain.write(operation.offset, operation.data)
                self.model.apply(operation)
            case Snapshot():
                path = self._new_path("avhd")
                size = None if operation.sector_count is None else operation.sector_count * SECTOR
                parent = str(self.paths[0])
                vhdkit.create_image(str(path), size=size, parent=parent, block_size=operation.block_size)
                self.paths.insert(0, path)
                self.model.apply(operation)
            case Merge():
                self._merge(operation)
        self.check()

    def check(self) -> None:
        """Hold every file against the judge and every view against the model, as far as files have changed."""
        now = self._contents()
        assert set(now) == set(self.paths)
        changed = [depth for depth, path in enumerate(self.paths) if now[path] != self.seen.get(path)]
        for depth in changed:
            self._judge(self.paths[depth], now[self.paths[depth]], depth)
        parsed = [self._parsed(now[path], depth) for depth, path in enumerate(self.paths)]
        for depth in range(max(changed, default=-1) + 1):
            path, expected = self.paths[depth], self.model.view(depth)
            if path in self.ended:
                continue
            assert np.array_equal(flat(parsed[depth:]), expected), f"{path.name} reads otherwise"
            if isinstance(parsed[depth], PlainImage):
                with vhdkit.open_chain(str(path), parent=self._raw(depth)) as chain:
                    assert chain.read(0, chain.size) == expected.tobytes(), f"vhdkit reads {path.name} otherwise"
        self.seen = now

    def _contents(self) -> dict[Path, bytes]:
        """Return every image's bytes; beside them lie marks of layers whose view has ended, and nothing else."""
        found = set(self.folder.iterdir())
        marks = {path for path in found if path.name.endswith(ENDED_SUFFIX)}
        assert {Path(str(mark).removesuffix(ENDED_SUFFIX)) for mark in marks} <= self.ended
        return {path: path.read_bytes() for path in found - marks}

    def _judge(self, path: Path, raw: bytes, depth: int) -> None:
        """Let nothing become wrong with a file that was in order, nor be wrong with one of vhdkit's own."""
        problems = self._problems(raw, depth)
        if problems and path not in self.seen and self.made == 0:
            self.flawed.add(path)  # another tool's
        assert not problems or path in self.flawed, path.name
        if not problems:
            self.flawed.discard(path)

    # Merging

    def _merge(self, merge: Merge) -> None:
        if merge.depth_to >= len(self.paths):
            return  # a merge that kept its sources has left fewer layers than were drawn for
        if refusal(self.model.shapes, merge) is not None:
            with pytest.raises(vhdkit.MergeError):
                vhdkit.merge(self._plan(merge))
            assert self._contents() == self.seen
            return
        expected = self._expected(merge)
        plan = self._plan(merge)
        result = vhdkit.merge(plan)
        self._check_figures(merge, plan, result, expected)
        if merge.keep and merge.depth_from:
            self._check_kept(merge)
        self.model.apply(in_effect(merge))
        top, bottom = self.paths[merge.depth_from], self.paths[merge.depth_to]
        self.ended.update(self.paths[merge.depth_from + 1 : merge.depth_to])
        self.ended = self.ended | {bottom} if top in self.ended else self.ended - {bottom}
        if merge.depth_from or not merge.keep:
            for path in self.paths[merge.depth_from : merge.depth_to]:
                path.unlink(missing_ok=merge.keep is False)
                Path(f"{path}{ENDED_SUFFIX}").unlink(missing_ok=True)
                del self.seen[path]
            del self.paths[merge.depth_from : merge.depth_to]

    def _plan(self, merge: Merge) -> vhdkit.MergePlan:
        top, bottom = self.paths[merge.depth_from], self.paths[merge.depth_to]
        parent = self._raw(merge.depth_from)
        return vhdkit.plan_merge(str(top), into=str(bottom), keep_sources=merge.keep, parent=parent, accept_ended=True)

    def _expected(self, merge: Merge) -> npt.NDArray[np.bool_]:
        """Return which sectors the destination is to be given, from the files' own bitmaps."""
        layers = [self._parsed(self.seen[path], depth) for depth, path in enumerate(self.paths)]
        sources, destination = layers[merge.depth_from : merge.depth_to], layers[merge.depth_to]
        assert isinstance(destination, PlainImage)
        count = self.model.layers[merge.depth_from].sector_count
        moved, zeros, decided = (np.zeros(count, dtype=np.bool_) for _ in range(3))
        for source in sources:
            assert isinstance(source, PlainImage)
            own = held(source, count) & ~decided
            moved |= own
            decided |= own
            zeros[source.sector_count :] |= ~decided[source.sector_count :]
            decided[source.sector_count :] = True
        zeros[destination.sector_count :] |= ~decided[destination.sector_count :]
        if destination.disk_type == DIFFERENCING:
            below = self.model.layers[merge.depth_to + 1].sector_count
            moved[:below] |= zeros[:below]
        return moved

    def _check_figures(
        self, merge: Merge, plan: vhdkit.MergePlan, result: vhdkit.MergeResult, expected: npt.NDArray[np.bool_]
    ) -> None:
        destination = self.paths[merge.depth_to]
        before, after = parse(self.seen[destination]), parse(destination)
        sources = tuple(str(path) for path in self.paths[merge.depth_from : merge.depth_to])
        assert plan.sources == result.sources == sources
        assert plan.removals == result.removed == (() if merge.keep else sources)
        assert all(os.path.exists(path) == merge.keep for path in sources)
        children = [str(path) for path in self.paths[: merge.depth_from][-1:]]
        assert [relink.child for relink in plan.relinks] == list(result.relinked) == children
        assert plan.payload_bytes == result.bytes_copied == int(expected.sum()) * SECTOR
        assert plan.destination_size == result.destination_size == len(after.raw)
        assert plan.destination_size_before == len(before.raw)
        holes = plan.space_needed - (len(after.raw) - len(before.raw))
        assert 0 <= holes <= len(before.raw), "what it grows by, and the holes that are filled"
        assert (plan.virtual_size_before, plan.virtual_size) == (before.size, after.size)
        assert after.size == len(expected) * SECTOR
        if after.disk_type != FIXED:
            per_block = after.block_size // SECTOR
            needed = set((np.flatnonzero(expected) // per_block).tolist())
            assert plan.blocks_added.tolist() == sorted(needed - set(before.allocated))
            assert set(after.allocated) == needed | set(before.allocated)
            assert self._problems(after.raw, merge.depth_to) == [], "the destination after a merge"
        untouched = [*self.paths[: merge.depth_from][:-1], *self.paths[merge.depth_to + 1 :]]
        untouched += self.paths[merge.depth_from : merge.depth_to] if merge.keep else []
        assert all(path.read_bytes() == self.seen[path] for path in untouched)

    def _check_kept(self, merge: Merge) -> None:
        """Kept sources whose children were relinked past them still read as before, if they are the top one."""
        path = self.paths[merge.depth_from]
        with vhdkit.open_chain(str(path), parent=self._raw(merge.depth_from)) as chain:
            assert chain.read(0, chain.size) == self.model.view(merge.depth_from).tobytes()

    # Files

    def _new_path(self, extension: str) -> Path:
        self.made += 1
        return self.folder / f"made-{self.made}.{extension}"

    def _raw(self, depth: int) -> str | None:
        """Return the raw base, which is only read if it is named, for a layer above it."""
        has_raw_base = self.model.layers[-1].kind is Kind.RAW
        return str(self.paths[-1]) if has_raw_base and depth < len(self.paths) - 1 else None

    def _parsed(self, raw: bytes, depth: int) -> PlainImage | bytes:
        return raw if self.model.layers[depth].kind is Kind.RAW else parse(raw)

    def _problems(self, raw: bytes, depth: int) -> list[str]:
        kinds = [layer.kind for layer in self.model.layers]
        if kinds[depth] is Kind.RAW:
            return []
        return validate(raw, raw_parent=kinds[depth + 1 : depth + 2] == [Kind.RAW])


def held(image: PlainImage, count: int) -> npt.NDArray[np.bool_]:
    """Return which of `count` sectors a differencing disk holds."""
    sectors = np.zeros(count, dtype=np.bool_)
    per_block = image.block_size // SECTOR
    for index in image.allocated:
        block, first = image.block(index), index * per_block
        window = sectors[first : min(first + per_block, image.sector_count)]
        if block is not None:
            window[:] = block.bitmap[: len(window)]
    return sectors


def new_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder in memory where there is one: the programs sync thousands of times."""
    fast = "/dev/shm"  # noqa: S108 - its contents are in a folder of our own
    return tempfile.TemporaryDirectory(dir=fast if os.access(fast, os.W_OK) else None)


def run_own(program: Program) -> None:
    with new_folder() as name:
        run = Run(Path(name))
        for operation in program:
            run.do(operation)


def run_foreign(start: Start) -> None:
    with new_folder() as name:
        run = Run(Path(name))
        chain = ModelChain.run(start.made)
        run.start(chain, write_files(chain, run.folder, varied(start)))
        for operation in start.program:
            run.do(operation)


PROGRAMS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
    "small blocks": (own_programs(SMALL), run_own),
    "large blocks": (own_programs(LARGE), run_own),
    "blocks of all sizes": (own_programs(BLOCK_SIZES), run_own),
    "foreign files, small blocks": (foreign_programs(SMALL), run_foreign),
    "foreign files, blocks of all sizes": (foreign_programs(BLOCK_SIZES), run_foreign),
}
FEW = {"small blocks": 40, "foreign files, small blocks": 40}
MANY = {"small blocks": 3000, "large blocks": 300, "foreign files, small blocks": 3000}


def run_many(name: str, examples: int) -> None:
    strategy, run = PROGRAMS[name]

    @settings(deadline=None, max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def programs_agree(program: Any) -> None:
        run(program)

    programs_agree()


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_read_and_merge_as_the_model_says(name: str) -> None:
    run_many(name, FEW.get(name, 20))


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_thousands_of_programs_read_and_merge_as_the_model_says(name: str) -> None:
    run_many(name, MANY.get(name, 600))
