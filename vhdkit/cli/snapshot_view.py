"""Snapshots as plain values for JSON, and as a tree for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vhdkit.cli.output import echo, path_text, short_size, tree_lines
from vhdkit.cli.time_text import local_iso
from vhdkit.command_hints import commands_of
from vhdkit.findings import printable

if TYPE_CHECKING:
    from collections.abc import Collection

    from vhdkit.journal.manifest import Manifest, Snapshot
    from vhdkit.snapshot.machine import Machine
    from vhdkit.snapshot.pending_merges import Owed
    from vhdkit.snapshot.remark import Remark


# Beyond 64 levels a terminal shows no tree.
_DEEPEST_INDENT = 256


def describe_machine(machine: Machine) -> dict[str, Any]:
    """Return all that is known of a machine."""
    return machine.steadily(lambda manifest: _described(machine, manifest))


def _described(machine: Machine, manifest: Manifest) -> dict[str, Any]:
    return {
        "machine": manifest.machine,
        "manifest": machine.file.path,
        "running": machine.is_running(),
        "now": manifest.now,
        "disks": [
            {
                "name": disk.stem,
                "active": machine.file.absolute(disk.active),
                "base": machine.file.absolute(next(layer.path for layer in disk.layers if layer.parent is None)),
                "directory": machine.file.absolute(disk.directory),
                "layers": len(disk.layers),
                **_sizes(machine, disk.active),
            }
            for disk in manifest.disks
        ],
        "snapshots": [describe_snapshot(machine, manifest, each) for each in manifest.snapshots],
        "owed": describe_owed(machine.owed()),
    }


def describe_snapshot(machine: Machine, manifest: Manifest, snapshot: Snapshot) -> dict[str, Any]:
    """Return one snapshot; `size` is that of its own layers, which hold what was written since the one before."""
    return {
        "id": snapshot.id,
        "name": snapshot.name,
        "note": snapshot.note,
        "taken": local_iso(snapshot.taken),
        "parent": snapshot.parent,
        "is-above-now": snapshot.id == manifest.now,
        "layers": [
            {"disk": disk.stem, "filename": machine.file.absolute(path), **_sizes(machine, path)}
            for disk, path in zip(manifest.disks, snapshot.layers, strict=True)
        ],
        "state": [{"name": file.name, "filename": machine.file.absolute(file.path)} for file in snapshot.state],
    }


def describe_owed(owed: Owed) -> dict[str, Any]:
    """Return what deletions leave to do, as JSON."""
    return {
        "merges": [{"sources": list(sources), "destination": into} for sources, into in owed.merges],
        "removals": [{"filename": path, "kept-since": why or None} for path, why in owed.removals],
        "waiting": list(owed.waiting),
    }


def describe_remark(remark: Remark) -> dict[str, Any]:
    """Return what `check` has to say of one file."""
    return {
        "kind": str(remark.kind).replace(" ", "-"),
        "filename": remark.path,
        "message": remark.message,
        "commands": [command for hint in remark.hints for command in commands_of(hint)],
    }


def print_machine(machine: Machine) -> None:
    """Print the tree of a machine's snapshots, with what it writes to and what is pending."""
    for line in machine.steadily(lambda manifest: _lines(machine, manifest)):
        echo(line)
    print_owed(machine.owed())


def _lines(machine: Machine, manifest: Manifest) -> list[str]:
    running = ", running" if machine.is_running() else ""
    actives = [(machine.file.absolute(disk.active), _sizes(machine, disk.active)) for disk in manifest.disks]
    return [
        f"{printable(manifest.machine)}, {_count(len(manifest.disks), 'disk')}{running}",
        *_tree(machine, manifest),
        *(f"active: {path_text(path)}  {_file_size(sizes)}" for path, sizes in actives),
    ]


def print_owed(owed: Owed, *, but: Collection[str] = ()) -> None:
    """Print what deletions leave to do, but for merges into the images of `but`."""
    for sources, into in owed.merges:
        if into in but:
            continue
        echo(f"pending: merge of {', '.join(map(path_text, sources))} into {path_text(into)}")
    for path, why in owed.removals:
        echo(f"pending: removal of {path_text(path)}" + (f", kept since {printable(why)}" if why else ""))
    for path in owed.waiting:
        echo(f"waits: {path_text(path)}, until only one layer reads through it")


def print_remarks(remarks: tuple[Remark, ...]) -> None:
    """Print what `check` has to say."""
    for remark in remarks:
        echo(f"{remark.kind}: {path_text(remark.path)}: {printable(remark.message)}")
        for command in (each for hint in remark.hints for each in commands_of(hint)):
            echo(f"    {printable(command)}")


def _tree(machine: Machine, manifest: Manifest) -> list[str]:
    """Return the lines of the tree, without recursion: it may be deep."""
    fork, corner, bar = tree_lines()
    children: dict[str | None, list[Snapshot | None]] = {}
    for each in manifest.snapshots:
        children.setdefault(each.parent, []).append(each)
    children.setdefault(manifest.now, []).append(None)
    lines = []
    todo = _level(children, None, "")
    while todo:
        snapshot, indent, is_last = todo.pop()
        lines.append(f"{indent}{corner if is_last else fork}{_line(machine, snapshot)}")
        if snapshot is not None:
            # Deeper down nothing is indented further: the lines would grow with the depth, to a gigabyte in all.
            is_deep = len(indent) >= _DEEPEST_INDENT
            todo += _level(children, snapshot.id, indent if is_deep else indent + ("    " if is_last else bar))
    return lines


def _level(
    children: dict[str | None, list[Snapshot | None]], parent: str | None, indent: str
) -> list[tuple[Snapshot | None, str, bool]]:
    """Return what hangs below a snapshot, the last first."""
    return [(each, indent, place == 0) for place, each in enumerate(reversed(children.get(parent, [])))]


def _line(machine: Machine, snapshot: Snapshot | None) -> str:
    if snapshot is None:
        return "now"
    sizes = [_sizes(machine, path)["file-size"] for path in snapshot.layers]
    size = "missing" if None in sizes else short_size(sum(size or 0 for size in sizes))
    when = local_iso(snapshot.taken)
    parts = [printable(snapshot.name), (when or "").replace("T", " ")[:16], size, printable(snapshot.note)]
    if snapshot.state:
        parts.insert(3, _count(len(snapshot.state), "kept file"))
    return "  ".join(part for part in parts if part)


def _sizes(machine: Machine, path: str) -> dict[str, int | None]:
    """Return a layer's file size and what it takes of the disk, None for one that is not there."""
    try:
        storage = machine.folder.open(machine.file.absolute(path))
    except OSError:
        return {"file-size": None, "actual-size": None}
    with storage:
        return {"file-size": storage.size(), "actual-size": storage.allocated_size}


def _file_size(sizes: dict[str, int | None]) -> str:
    size = sizes["file-size"]
    return "missing" if size is None else short_size(size)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
