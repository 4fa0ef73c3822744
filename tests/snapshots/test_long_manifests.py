"""Manifests of many thousand layers cost time in proportion to their length."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.histories import begin, put
from vhdkit.cli.snapshot_view import describe_machine
from vhdkit.errors import VhdError
from vhdkit.snapshot.machine import Machine
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.thorough

MANIFEST = "/vms/c.vhdkit-snapshots.json"


def guid(number: int) -> str:
    return str(uuid.UUID(int=number + 1)).upper()


def in_a_line(record: dict[str, Any], count: int) -> None:
    layers = [
        {"path": f"c_{guid(at)}.avhd", "parent": f"c_{guid(at - 1)}.avhd", "unique_id": f"{at:032x}", "mark": None}
        for at in range(count)
    ]
    layers[0]["parent"] = None
    record["disks"][0] |= {"layers": layers, "active": layers[-1]["path"]}


def with_snapshots(record: dict[str, Any], count: int) -> None:
    in_a_line(record, count)
    record["snapshots"] = [
        {"id": guid(at), "name": f"s{at}", "note": "", "taken": 1.0, "parent": guid(at - 1) if at else None}
        | {"layers": [f"c_{guid(at)}.avhd"], "state": []}
        for at in range(count - 1)
    ]
    record["now"] = guid(count - 2)


def with_merges(record: dict[str, Any], count: int) -> None:
    in_a_line(record, count)
    names = [layer["path"] for layer in record["disks"][0]["layers"]]
    record["foldings"] = [
        {"disk": 0, "fold": {"sources": [names[at + 1]], "destination": names[at]}, "is_empty": True}
        for at in range(0, count - 1, 2)
    ]


def with_made(record: dict[str, Any], count: int) -> None:
    record["doomed"] = [{"path": f"c_{guid(at)}.avhd", "unique_id": f"{at:032x}"} for at in range(count)]


VERBS: dict[str, Callable[[Machine], object]] = {
    "list": describe_machine,
    "check": Machine.check,
    "take": lambda machine: machine.take("new"),
    "settle": Machine.settle,
    "delete": lambda machine: machine.delete("s0", subtree=True),
}


def seconds_of(change: Callable[[dict[str, Any], int], None], count: int, verb: Callable[[Machine], object]) -> float:
    """Return what a verb takes of the processor, at best."""
    folder = MemoryFolder()
    begin(folder, 1)
    record = json.loads(bytes(folder[MANIFEST].content))
    change(record, count)
    raw = json.dumps(record).encode()
    found = []
    for _ in range(3):
        put(folder, MANIFEST, raw)
        machine = Machine(MANIFEST, folder=folder)
        begun = time.process_time()
        with suppress(VhdError):
            verb(machine)
        found.append(time.process_time() - begun)
    return min(found)


@pytest.mark.parametrize("change", [in_a_line, with_snapshots, with_merges, with_made])
@pytest.mark.parametrize("verb", VERBS)
def test_eight_times_as_many_layers_cost_no_more_than_that(
    change: Callable[[dict[str, Any], int], None], verb: str
) -> None:
    """Of what grows with the square the larger would take 64 times as long, whatever the machine."""
    # What a busy machine makes long once it does not make long three times; a square always is.
    ratios: list[float] = []
    while len(ratios) < 3 and (not ratios or min(ratios) >= 28):
        few, many = (seconds_of(change, count, VERBS[verb]) for count in (500, 4000))
        ratios.append(many / max(few, 0.002))
    assert min(ratios) < 28
