"""Every field of manifests and signposts forged, at the states that a machine may be in.

Nothing outside of the machine's folders changes, and nothing but the errors that callers expect comes out. Run by hand
in full (`-m slow`): 22,000 forgeries and more.
"""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from tests.forging import Forgery, drawn, forgeries
from tests.histories import BASES, Act, Apply, Delete, Take, Write, begin, carry_out, put
from vhdkit.errors import MergeCancelled, VhdError
from vhdkit.journal.claims import Change, obstacles
from vhdkit.snapshot.adopt import adopt
from vhdkit.snapshot.machine import Machine
from vhdkit.storage.memory import MemoryFolder
from vhdkit.storage.search_scope import SearchScope
from vhdkit.vhd.create import create_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MANIFEST = "/vms/c.vhdkit-snapshots.json"
GUID = "0F0E0D0C-0B0A-4908-8706-050403020100"
VICTIM = f"/victim/c_{GUID}.avhd"
VICTIM_ID = "ab" * 16
TEXTS = (
    VICTIM,
    f"..{VICTIM}",
    f"../victim/c_{GUID}_memory",
    f"../victim/x/../c_{GUID}.avhd",
    "../victim/precious.vhd",
    "../victim",
    "/victim",
    "../victim/evil",
    VICTIM_ID,
    GUID,
)
STATES: dict[str, tuple[int, list[Act]]] = {
    "nothing taken": (1, []),
    "one snapshot with a file": (1, [Write(0, 1, 3, "a"), Take("A", state="memory"), Write(0, 2, 3, "b")]),
    "two disks": (2, [Write(0, 1, 3, "a"), Take("A"), Write(1, 1, 3, "b"), Take("B")]),
    "a branch": (1, [Write(0, 1, 3, "a"), Take("A"), Write(0, 2, 3, "b"), Take("B"), Apply("A"), Take("C")]),
    "merges to be done": (1, [Write(0, 1, 3, "a"), Take("A"), Write(0, 2, 3, "b"), Take("B"), Delete("A")]),
    "a merge cut off": (1, [Write(0, 1, 3, "a"), Take("A"), Write(0, 2, 9, "b"), Take("B"), Delete("A")]),
    "an operation cut off": (1, [Write(0, 1, 3, "a"), Take("A", state="memory")]),
    "layers in another folder": (1, [Write(0, 1, 3, "a"), Take("A")]),
}


def machine_in(state: str) -> MemoryFolder:
    """Return a folder with a machine in some state, and another folder with files that are no affair of its."""
    folder = MemoryFolder()
    disks, acts = STATES[state]
    begin(folder, disks)
    for at, act in enumerate(acts):
        carry_out(folder, act, at)
    machine = Machine(BASES[0], folder=folder)
    if state == "a merge cut off":
        cut_off(machine)
    elif state == "layers in another folder":
        machine.take("B", directory="/fast")
    elif state == "an operation cut off":
        record = json.loads(bytes(folder[MANIFEST].content))
        record["begun"] = [{"path": f"c_{GUID}.avhd", "unique_id": VICTIM_ID}]
        record["doomed"] = [{"path": f"c_{GUID}_memory", "unique_id": ""}]
        put(folder, MANIFEST, json.dumps(record).encode())
        create_image(f"/vms/c_{GUID}.avhd", parent=BASES[0], unique_id=bytes.fromhex(VICTIM_ID), folder=folder)
        put(folder, f"/vms/c_{GUID}_memory", b"kept")
    create_image("/victim/precious.vhd", size=1 << 14, folder=folder)
    create_image(VICTIM, parent="/victim/precious.vhd", unique_id=bytes.fromhex(VICTIM_ID), folder=folder)
    put(folder, f"{VICTIM}.0123abcd.partial", b"being made")
    put(folder, f"/victim/c_{GUID}_memory", b"secret")
    return folder


def cut_off(machine: Machine) -> None:
    import threading  # noqa: PLC0415 - for this alone

    stop = threading.Event()

    def advance(state: Any) -> None:
        if state.bytes_done:
            stop.set()

    with suppress(MergeCancelled):
        machine.settle(progress=advance, cancel=stop)
    assert machine.file.read().foldings


def copy_of(folder: MemoryFolder) -> MemoryFolder:
    copy = MemoryFolder({entry.path: bytes(folder[entry.path].content) for entry in folder.walk("/")})
    for entry in folder.walk("/"):
        copy[entry.path].read_only = folder[entry.path].read_only
    return copy


def outside(folder: MemoryFolder) -> dict[str, tuple[bytes, bool]]:
    """Return every file, with its bytes and its mark, but those where the machine's files may be."""
    allowed = ("/vms/", "/fast/", "/out/")
    return {
        entry.path: (bytes(folder[entry.path].content), folder[entry.path].read_only)
        for entry in folder.walk("/")
        if not entry.path.startswith(allowed)
    }


def verbs(folder: MemoryFolder) -> list[Callable[[], object]]:
    numbers = count(1)

    def machine() -> Machine:
        return Machine(BASES[0], folder=folder, new_id=lambda: uuid.UUID(int=next(numbers) << 64))

    return [
        lambda: [machine().owed(), machine().is_running(), machine().active, machine().snapshots],
        lambda: machine().check(),
        lambda: machine().export("A", "/out/flat"),
        lambda: machine().export("A", "/out/chain", chain=True),
        lambda: machine().take("new", state=["/given/A.bin"]),
        lambda: machine().rename("A", "Z"),
        lambda: machine().apply("new", state_to="/out/state"),
        lambda: machine().revert(),
        lambda: obstacles(SearchScope(folder), Change(destination=BASES[0], sources=tuple(machine().active))),
        lambda: machine().delete("Z", subtree=True),
        lambda: machine().settle(),
        lambda: machine().check(accept=True),
        lambda: adopt([BASES[0]], folder=folder),
    ]


def forged(state: str, found: list[Forgery], path: str, sound: MemoryFolder) -> int:
    """Let everything be done with each forgery; return how many calls there were."""
    calls = 0
    for forgery in found:
        folder = copy_of(sound)
        # As it is written: what is no JSON for Python is some for others.
        folder[path].content[:] = forgery.text.encode()
        before = outside(folder)
        for verb in verbs(folder):
            calls += 1
            try:
                verb()
            except (VhdError, OSError):
                continue
        assert outside(folder) == before, f"{state}, {path}: {forgery}"
        handed_out = [bytes(folder[entry.path].content) for entry in folder.walk("/out")]
        assert b"secret" not in handed_out, f"{state}, {path}: {forgery}"
    return calls


def side_files(folder: MemoryFolder) -> Iterator[str]:
    for entry in folder.walk("/"):
        if entry.path == MANIFEST or entry.path.endswith(".at"):
            yield entry.path


@pytest.mark.parametrize("state", STATES)
def test_a_forged_field_changes_nothing_outside(state: str) -> None:
    sound = machine_in(state)
    for path in side_files(sound):
        document = json.loads(bytes(sound[path].content))
        assert forged(state, drawn(document, 17, 25, texts=TEXTS), path, sound)


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_every_forged_field_changes_nothing_outside(state: str) -> None:
    sound = machine_in(state)
    total = calls = 0
    for path in side_files(sound):
        document = json.loads(bytes(sound[path].content))
        found = list(forgeries(document, texts=TEXTS))
        total += len(found)
        calls += forged(state, found, path, sound)
    print(f"{state}: {total} forgeries, {calls} calls")  # noqa: T201 - figures for whoever runs it by hand


def test_the_forger_sees_what_a_forgery_could_gain() -> None:
    """The victim's files would go if the manifest's folder were theirs: what is looked at is what is asked."""
    folder = machine_in("an operation cut off")
    Machine(BASES[0], folder=folder).settle()
    assert not folder.exists(f"/vms/c_{GUID}.avhd")
    assert not folder.exists(f"/vms/c_{GUID}_memory")
    assert folder.exists(VICTIM)
