"""Side files as a forger would have them, and what every verb does with them: counted, and what must not be, told.

A state is a folder in memory in which a merge, a roll-back or a change of a header was cut off, and beside it a folder
that is none of its business. A forgery changes one field of one record; the checksums are right again.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import vhdkit
from tests.cutting import JOURNAL, at_first, cut_off
from tests.forging import drawn, forgeries
from tests.journals.make import after_records, cut, three, two
from tests.model import Kind, Snapshot
from tests.side_files import taken_apart
from tests.unit.test_merge_laws import chain_over, in_memory, put, vhdkit_view
from vhdkit.journal.merge_journal import read_journal
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.model import ModelChain

    Verb = Callable[["State", MemoryFolder], object]

STEP = ".vhdkit-header"
ENDED = ".vhdkit-ended"
UNDO = "/vms/undo.vhd"
# Names that a forger tries: of files that are there and of new ones, outside and inside.
NAMES = (
    *("../victim/layer-0.vhd", "../victim/layer-1.avhd", "../victim/new.vhd", "/victim/layer-0.vhd", "../new.vhd"),
    *(
        "layer-0.vhd",
        "layer-1.avhd",
        "layer-2.avhd",
        "undo.vhd",
        "new.vhd",
        "layer-0.vhd.vhdkit-journal",
        "below/x.vhd",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Files in memory, which of them is forged, and what the disk shows."""

    name: str
    files: Mapping[str, bytes]
    forged: str
    leaf: str
    top: str
    view: bytes

    def records(self) -> list[dict[str, Any]]:
        """Return the records of the file that is forged."""
        return taken_apart(self.files[self.forged])[0]

    def folder(self, content: bytes) -> MemoryFolder:
        """Return the files, one of them with other content."""
        return MemoryFolder({**self.files, self.forged: content})


@dataclass(slots=True)
class Tally:
    """How many forgeries and calls there were, how the calls ended, and what must not be."""

    forgeries: int = 0
    calls: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.forgeries:,} forgeries, {self.calls:,} calls, ended {dict(self.ends)}, {len(self.faults)} faults"


def longer() -> ModelChain:
    """A leaf that is larger than its parent, whose blocks lie where the longer table will."""
    return chain_over(Kind.DYNAMIC, put(0, 40, 1), Snapshot(sector_count=2000), put(100, 9, 2))


def contents(folder: MemoryFolder) -> dict[str, bytes]:
    return {entry.path: bytes(folder[entry.path].content) for entry in folder.walk("/")}


def laid(chain: ModelChain) -> tuple[MemoryFolder, list[str], bytes]:
    folder, paths = in_memory(chain)
    view = vhdkit_view(folder, paths[0])
    victims = {path.replace("/vms/", "/victim/"): bytes(folder[path].content) for path in paths}
    for path, content in (victims | {"/victim/precious.txt": b"precious"}).items():
        with folder.create(path) as storage:
            storage.write_at(0, content)
    return folder, paths, view


def journal_states() -> Iterator[State]:
    """Yield the states of merges that are cut off, each with its journal."""
    cuts: dict[str, tuple[ModelChain, int, Any, bool]] = {
        "begin": (two(), 0, at_first("create", ".partial"), True),
        "reserved": (two(), 0, after_records(2), False),
        "growing": (longer(), 0, at_first("remove", STEP), False),
        "mark": (two(), 0, after_records(6), True),
        "merged": (three(), 1, at_first("create", STEP), False),
        "removing": (three(), 0, at_first("remove", "layer-1.avhd"), False),
    }
    for name, (chain, top, when, keeps) in cuts.items():
        folder, paths, view = laid(chain)
        cut_off(folder, paths[top], paths[-1], when, **({"undo": UNDO} if keeps else {}))
        yield _state(name, folder, paths, paths[top], view)
    for name, call, when in (
        ("dropping", vhdkit.drop_undo, at_first("remove", ".avhd")),
        ("rollback", vhdkit.rollback, at_first("remove", "undo.vhd")),
    ):
        folder, paths, view = laid(two())
        vhdkit.merge(vhdkit.plan_merge(paths[0], undo=UNDO, folder=folder), folder=folder)
        cut(lambda cutting, call=call: call(UNDO, folder=cutting), when, folder)  # type: ignore[misc]
        yield _state(name, folder, paths, paths[0], view)


def _state(name: str, folder: MemoryFolder, paths: list[str], top: str, view: bytes) -> State:
    leaf = paths[0] if folder.exists(paths[0]) else paths[-1]
    return State(name=name, files=contents(folder), forged=paths[-1] + JOURNAL, leaf=leaf, top=top, view=view)


def step_states() -> Iterator[State]:
    """Yield the states in which a header was being changed: of a longer table, of a child that is relinked."""
    for name, chain, top, image in (
        ("longer table", longer(), 0, "layer-0.vhd"),
        ("relink", three(), 1, "layer-2.avhd"),
    ):
        folder, paths, view = laid(chain)
        cut_off(folder, paths[top], paths[-1], at_first("remove", STEP))
        yield State(
            name=name, files=contents(folder), forged=f"/vms/{image}{STEP}", leaf=paths[0], top=paths[top], view=view
        )


# What is done


def _read(state: State, folder: MemoryFolder) -> None:
    with vhdkit.open_chain(state.leaf, folder=folder) as chain:
        chain.read(0, chain.size)


def _open_to_write(state: State, folder: MemoryFolder) -> None:
    vhdkit.open_image(state.forged.removesuffix(STEP).removesuffix(JOURNAL), writable=True, folder=folder).close()


def _merge(state: State, folder: MemoryFolder, **options: Any) -> None:
    into = None if state.name == "relink" else state.forged.removesuffix(JOURNAL).removesuffix(STEP)
    plan = vhdkit.plan_merge(state.top, into=into, folder=folder, **options)
    vhdkit.merge(plan, folder=folder)


READING: dict[str, Verb] = {
    "read": _read,
    "check": lambda state, folder: vhdkit.check(state.leaf, chain=True, folder=folder),
    "scan": lambda _, folder: vhdkit.scan("/vms", folder=folder),
    "plan": lambda state, folder: vhdkit.plan_merge(state.top, folder=folder),
}
WRITING: dict[str, Verb] = {
    "merge": _merge,
    "merge --undo": lambda state, folder: _merge(state, folder, undo=UNDO),
    "rollback": lambda _, folder: vhdkit.rollback(UNDO, folder=folder),
    "undo drop": lambda _, folder: vhdkit.drop_undo(UNDO, folder=folder),
    "open to write": _open_to_write,
}


def forge(state: State, tally: Tally, *, seed: int | None = None, count: int = 0) -> None:
    """Forge the side file of a state in every field, or in so many that a seed draws, and try every verb on each."""
    found = state.records()
    for index, record in enumerate(found):
        choice = forgeries(record, texts=NAMES) if seed is None else drawn(record, seed + index, count, texts=NAMES)
        for forgery in choice:
            tally.forgeries += 1
            texts = [json.dumps(each, sort_keys=True, separators=(",", ":")) for each in found]
            texts[index] = forgery.text
            try_all(state, sealed(texts), f"{state.name}, record {index} {forgery}", tally)


def sealed(texts: list[str]) -> bytes:
    """Return lines of these texts, whatever they are, their checksums right."""
    from hashlib import sha256  # noqa: PLC0415 - written from the description of the lines, not with their writer

    lines, previous = [], ""
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        previous = sha256(previous.encode() + raw).hexdigest()
        whole = previous.encode() + b" " + raw
        lines.append(whole.ljust(-(-(len(whole) + 1) // 512) * 512 - 1) + b"\n")
    return b"".join(lines)


def try_all(state: State, content: bytes, name: str, tally: Tally) -> None:
    folder = state.folder(content)
    before = contents(folder)
    # One that is refused whole is refused by each verb alike: they take turns.
    turn = tally.forgeries if _is_refused(state, folder) else None
    for verb, act in _taking_turns(READING, turn):
        tally.faults += (f"{name}: {verb}: {fault}" for fault in _faults(state, act, folder, tally))
        if contents(folder) != before:
            tally.faults.append(f"{name}: {verb} has changed files")
            folder = state.folder(content)
    for verb, act in _taking_turns(WRITING, turn):
        tally.faults += (f"{name}: {verb}: {fault}" for fault in _faults(state, act, state.folder(content), tally))


def _is_refused(state: State, folder: MemoryFolder) -> bool:
    try:
        read_journal(folder, state.forged.removesuffix(JOURNAL))
    except (vhdkit.VhdError, OSError):
        return state.forged.endswith(JOURNAL)
    except Exception:  # noqa: BLE001 - each verb is to be seen with it
        return False
    return False


def _taking_turns(verbs: Mapping[str, Verb], turn: int | None) -> Sequence[tuple[str, Verb]]:
    found = tuple(verbs.items())
    return found if turn is None else (found[turn % len(found)],)


def _faults(state: State, act: Verb, folder: MemoryFolder, tally: Tally) -> Iterator[str]:
    before = contents(folder)
    tally.calls += 1
    end = "done"
    try:
        act(state, folder)
    except (vhdkit.VhdError, OSError) as error:
        end = type(error).__name__
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        end = type(error).__name__
        yield f"{end}: {str(error)[:200]}"
    tally.ends[end] += 1
    after = contents(folder)
    for path in before.keys() | after.keys():
        if not path.startswith("/vms/") and before.get(path) != after.get(path):
            yield f"changed {path}"
    for path in after.keys() - before.keys():
        if path not in {UNDO, state.forged} and not path.endswith((JOURNAL, STEP, ENDED)):
            yield f"made {path}"
    leaf = state.leaf if folder.exists(state.leaf) else "/vms/layer-0.vhd"
    try:
        view = vhdkit_view(folder, leaf)
    except Exception as error:  # noqa: BLE001 - the same
        yield f"after {end} {leaf} cannot be read: {type(error).__name__}: {error}"
        return
    if view != state.view:
        yield f"after {end} {leaf} shows something else"
