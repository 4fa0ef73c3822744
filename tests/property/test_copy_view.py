"""A view that is copied to a new file has the view's bytes and no room for zeros, whatever way its stretches take."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vhdkit
from tests.model import Kind, Program
from tests.plainvhd import SECTOR, flat, parse
from tests.property.test_reading import files, open_files, run
from tests.strategies import programs
from vhdkit.chain import batch_copier, copy_view
from vhdkit.chain.convert import write_dynamic
from vhdkit.chain.copy_view import bridged, pages_in_use
from vhdkit.disk import extents
from vhdkit.disk.extents import Kind as ExtentKind
from vhdkit.storage.local_folder import LocalFolder

ALL_KINDS = [Kind.DYNAMIC, Kind.FIXED, Kind.RAW]


def small(patch: pytest.MonkeyPatch, long: int, bridge: int) -> None:
    """Let what is true of long stretches be true of a few sectors."""
    patch.setattr(copy_view, "_PAGE", SECTOR)
    patch.setattr(copy_view, "LONG_BYTES", long * SECTOR)
    patch.setattr(copy_view, "_BRIDGE_BYTES", bridge * SECTOR)
    patch.setattr(copy_view, "_SCAN_BYTES", 3 * SECTOR)
    patch.setattr(batch_copier, "_BATCH_BYTES", 8 * SECTOR)
    patch.setattr(batch_copier, "_KEPT_BYTES", 3 * SECTOR)
    patch.setattr(batch_copier, "_SYNC_BYTES", 4 * SECTOR)


@settings(deadline=None, max_examples=80)
@given(programs(kinds=ALL_KINDS, shorter=True), st.sampled_from(["raw", "fixed", "dynamic", "to"]), st.data())
def test_a_copy_has_the_bytes_of_the_view(program: Program, output: Any, data: st.DataObject) -> None:
    model = run(program)
    view = model.view().tobytes()
    with pytest.MonkeyPatch.context() as patch, files(model) as paths, TemporaryDirectory() as folder:
        small(patch, data.draw(st.integers(1, 6)), data.draw(st.integers(0, 4)))
        target = str(Path(folder, "new.raw" if output == "raw" else "new.vhd"))
        with open_files(model, paths) as chain:
            copied = [0]
            if output == "to":
                write_dynamic(chain, LocalFolder(), target, 4096, copied=copied.append)
                assert sum(copied) == sum(window.of(ExtentKind.DATA).total for window in chain.extents())
            else:
                raw = str(paths[-1]) if model.layers[-1].kind is Kind.RAW else None
                vhdkit.convert(chain.path, target, output_format=output, parent=raw)
        content = Path(target).read_bytes()
        if output == "raw":
            assert content == view
        else:
            assert flat([parse(content)]).tobytes() == view


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(0, 4095))
def test_pages_in_use_are_those_with_a_byte_that_is_not_zero(kinds: list[int], rest: int) -> None:
    pages = {0: bytes(4096), 1: b"\1" + bytes(4095), 2: bytes(4095) + b"\1", 3: bytes(range(256)) * 16}
    content = b"".join(pages[kind] for kind in kinds) + bytes(rest // 2) + b"\7" * (rest - rest // 2)
    expected = [any(content[at : at + 4096]) for at in range(0, len(content), 4096)]
    assert pages_in_use(np.frombuffer(content, np.uint8)).tolist() == expected


def slow_bridged(owner: list[int], long: int, bridge: int) -> list[tuple[int, int]]:
    """Return sectors [start, stop) of the layer that holds most, over at most so many sectors of others, no zeros."""
    depths = [depth for depth in owner if depth >= 0]
    if not depths:
        return []
    best = max(sorted(set(depths)), key=depths.count)
    found: list[tuple[int, int]] = []
    for sector, depth in enumerate(owner):
        if depth != best:
            continue
        between = owner[found[-1][1] : sector] if found else []
        if found and len(between) <= bridge and -1 not in between:
            found[-1] = (found[-1][0], sector + 1)
        else:
            found.append((sector, sector + 1))
    return [(start, stop) for start, stop in found if stop - start >= long]


@given(st.lists(st.integers(-1, 2), min_size=1, max_size=40), st.integers(1, 5), st.integers(0, 3))
def test_bridges_lie_over_data_alone(owner: list[int], long: int, bridge: int) -> None:
    parts = [
        extents.single(at * SECTOR, (at + 1) * SECTOR, ExtentKind.DATA, (depth * 100 + at) * SECTOR).at_depth(depth)
        if depth >= 0
        else extents.single(at * SECTOR, (at + 1) * SECTOR, ExtentKind.ZERO)
        for at, depth in enumerate(owner)
    ]
    with pytest.MonkeyPatch.context() as patch:
        small(patch, long, bridge)
        found = bridged(extents.concatenate(parts))
    stretches = list(zip((found.start // SECTOR).tolist(), (found.stop // SECTOR).tolist(), strict=True))
    assert stretches == slow_bridged(owner, long, bridge)
    assert (found.file_offset // SECTOR - found.start // SECTOR == found.depth * 100).all()
