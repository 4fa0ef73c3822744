"""Calls that fail: what is left then, what is said, and that the same command goes on; CI takes a seeded portion."""

from __future__ import annotations

import errno
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.crash.acts import drop, merged, run, take_back
from tests.crash.failing import Fault, shorten_system_calls
from tests.crash.failures import broken_by, broken_undoing_by, calls, faults, fresh
from tests.crash.laws import Tally
from tests.crash.programs import PROGRAMS
from tests.model import write_files
from tests.plainvhd import flat, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.crash.programs import CrashProgram

pytestmark = pytest.mark.thorough

BY_NAME = {program.name: program for program in PROGRAMS}
UNDOABLE = [program for program in PROGRAMS if program.undo]
FAULTS = list(faults())
# Every kind of fault meets every ninth program, another one each time.
PAIRS = [(program, fault) for at, program in enumerate(PROGRAMS) for fault in FAULTS[at % 9 :: 9]]
UNDOING = [(act, program) for at, program in enumerate(UNDOABLE) for act in ((take_back, drop)[at % 2],)]


def named(value: object) -> str | None:
    if isinstance(value, Fault):
        name = "half" if value.error is None else errno.errorcode[value.error]
        return name + " partly" * value.partly + " lasting" * value.lasting
    return getattr(value, "name", getattr(value, "__name__", None))


def each(fault: Fault, count: int, share: float, seed: str) -> Iterator[Fault]:
    """Yield the fault at a share of so many calls, at one of them at the least."""
    drawn = random.Random(seed).sample(range(count), max(1, round(count * share)))
    return (replace(fault, at=at) for at in sorted(drawn))


@pytest.mark.parametrize(("program", "fault"), PAIRS, ids=named)
def test_a_merge_goes_on_after_a_portion_of_the_calls_failed(program: CrashProgram, fault: Fault) -> None:
    count = calls(run, program, lambda: fresh(program), fault)
    for one in each(fault, count, 0.001, program.name):
        assert [str(one), *broken_by(program, one, Tally(), share=0.01)][1:] == []


@pytest.mark.parametrize(("act", "program"), UNDOING, ids=named)
@pytest.mark.parametrize("fault", FAULTS[1::4], ids=named)
def test_undoing_goes_on_after_a_portion_of_the_calls_failed(act: object, program: CrashProgram, fault: Fault) -> None:
    chosen = take_back if act is take_back else drop
    count = calls(chosen, program, lambda: merged(program), fault)
    for one in each(fault, count, 0.002, program.name):
        assert [str(one), *broken_undoing_by(chosen, program, one, Tally())][1:] == []


@pytest.mark.parametrize(
    "name",
    ["seams differencing 4096", "relinked dynamic from 1 to 3", "longer BAT dynamic over 1 blocks"],
)
def test_what_a_failed_sync_lost_is_not_built_upon(name: str) -> None:
    program, tally = BY_NAME[name], Tally()
    fault = Fault(at=0, error=errno.EIO, kinds=frozenset({"sync"}))
    for at in range(0, calls(run, program, lambda: fresh(program), fault), 2):
        assert list(broken_by(program, replace(fault, at=at), tally, share=0.01)) == []


@pytest.mark.parametrize("every", [1, 2, 3])
def test_short_calls_of_the_kernel_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    program = BY_NAME["relinked differencing from 1 to 3"]
    paths = [str(path) for path in write_files(program.chain, tmp_path)]
    uncut = tmp_path / "uncut"
    uncut.mkdir()
    expected = [str(path) for path in write_files(program.chain, uncut)]
    for path in (*paths, *expected):
        os.utime(path, (1.7e9, 1.7e9))
    vhdkit.merge(vhdkit.plan_merge(expected[1], into=expected[3]))
    shortened = shorten_system_calls(monkeypatch, every) if every > 1 else [1]
    vhdkit.merge(vhdkit.plan_merge(paths[1], into=paths[3]))
    monkeypatch.undo()
    assert shortened[0]
    left = [parse(path) for path in (paths[0], *paths[3:])]
    assert flat(left).tobytes() == program.chain.view().tobytes()
    assert Path(paths[3]).read_bytes() == Path(expected[3]).read_bytes()


@pytest.mark.slow
def test_every_failing_call_keeps_the_laws() -> None:
    tally = Tally()
    found: list[str] = []
    for program in PROGRAMS[::4]:
        for fault in FAULTS:
            for at in range(calls(run, program, lambda: fresh(program), fault)):  # noqa: B023 - called at once
                found += broken_by(program, replace(fault, at=at), tally, share=0.01)
    print(f"\nfailing calls: {tally}")  # noqa: T201 - the figures are what the run is for
    assert found == []
